"""Streaming decode of diffusers' 3D VAEs: device memory stays flat, whatever the number of frames.

Here a decode is an iterator of short runs of frames: each run leaves the device as soon as it is made, progress and
cancel are possible between runs, and the state of the clip lives in the iterator, so an exception leaves nothing behind
and two decodes cannot disturb each other.

Wan's and Qwen-Image's decoders are run one latent frame at a time by diffusers too, but every frame stays on the device
and all are copied again for each new one: with `latent_frames_per_step=1` streaming gives their result bit for bit.
HunyuanVideo 1.5's and LTX's are run over whole clips by diffusers: streaming gives the same within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks
from ...errors import InputError
from . import fast_arithmetic, hunyuan15, ltx, wan

if TYPE_CHECKING:
    import torch

    from .fast_arithmetic import FastArithmetic

StreamFunction = Callable[[Any, "torch.Tensor", int, "FastArithmetic | None"], "Iterator[torch.Tensor]"]


@dataclass(frozen=True)
class StreamingForm:
    """How one class of VAE is decoded in time.

    Attributes:
        stream: (vae, latents [B, C, T, h, w], latent frames per step, fast arithmetic or None) -> runs of pixel frames
            [B, 3, t, H, W] in order.
        refuse: why this particular object cannot be streamed, or "".
        refuse_fast: why `FastArithmetic` does not suit this particular object, or "".
        bit_identical: without fast arithmetic, steps of one latent frame give `vae.decode` bit for bit.
        temporal_factor: pixel frames per latent frame after the first; None = what the VAE says of itself.
    """

    stream: StreamFunction
    refuse: Callable[[Any], str]
    refuse_fast: Callable[[Any], str]
    bit_identical: bool = False
    temporal_factor: Callable[[Any], int] | None = None


_WAN = StreamingForm(wan.stream, lambda vae: "", wan.refuse_fast, bit_identical=True)
_LTX = StreamingForm(ltx.stream, ltx.refuse, fast_arithmetic.refuse, temporal_factor=ltx.temporal_factor)
# To add a family of VAEs: a file beside this one with its `stream`, its row here, and its maker in the tests' conftest.
STREAMING_FORMS: dict[str, StreamingForm] = {
    "AutoencoderKLWan": _WAN,
    "AutoencoderKLQwenImage": _WAN,
    "AutoencoderKLHunyuanVideo15": StreamingForm(hunyuan15.stream, hunyuan15.refuse, hunyuan15.refuse_fast),
    "AutoencoderKLLTXVideo": _LTX,
    "AutoencoderKLLTX2Video": _LTX,
}
NOT_LOCAL_IN_TIME = {
    "AutoencoderKLHunyuanVideo": "its GroupNorm takes statistics over all frames",
    "AutoencoderKLCogVideoX": "its GroupNorm takes statistics over all frames of a batch",
}


def refuse_streaming(vae: Any) -> str:
    """Why this VAE cannot be streamed in time exactly, as one phrase; "" when it can."""
    name = type(vae).__name__
    form = STREAMING_FORMS.get(name)
    if form is None:
        return NOT_LOCAL_IN_TIME.get(name, f"no streaming form is known for {name}")
    if getattr(vae, "use_tiling", False):
        return "spatial tiling is on"
    return form.refuse(vae)


def bring_to_device(vae: Any) -> None:
    """What diffusers' `apply_forward_hook` does for `vae.decode`: model offload brings the weights to the device."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


def stream_frames(
    vae: Any, latents: torch.Tensor, latent_frames_per_step: int = 1, fast: FastArithmetic | None = None
) -> Iterator[torch.Tensor]:
    """Decode in time, a short run of frames after the other.

    Args:
        vae: a diffusers VAE for which `refuse_streaming` is "".
        latents: [B, C, T, h, w] as `vae.decode` takes them, on the VAE's device and in its dtype.
        latent_frames_per_step: latent frames per run after the first, >= 1. With 1, forms that are `bit_identical` are.
        fast: other arithmetic than diffusers', for a VAE whose form's `refuse_fast` is "".

    Yields:
        Pixel frames in order, [B, 3, t, H, W] in -1..1, on the VAE's device. Must be consumed under `torch.no_grad()`.

    Raises:
        InputError: the VAE cannot be streamed (or not with `fast`), the latent is not 5-D, or the step is below 1.
    """
    reason = refuse_streaming(vae)
    form = STREAMING_FORMS.get(type(vae).__name__)
    if form is not None and fast is not None:
        reason = reason or form.refuse_fast(vae)
    if form is None or reason:
        raise InputError("vae", type(vae).__name__, reason, "decode it with vae.decode")
    if latents.ndim != 5:
        raise InputError("latents", tuple(latents.shape), "video latents are [B, C, T, h, w]", "add the time axis")
    if latent_frames_per_step < 1:
        raise InputError("latent_frames_per_step", latent_frames_per_step, "it must be at least 1", "use 1")
    bring_to_device(vae)
    yield from form.stream(vae, latents, latent_frames_per_step, fast)


def decode_streaming(
    vae: Any,
    latents: torch.Tensor,
    *,
    callbacks: Callbacks = SILENT,
    output_device: str | torch.device = "cpu",
    latent_frames_per_step: int = 1,
    fast: FastArithmetic | None = None,
) -> torch.Tensor:
    """Decode with device memory that does not depend on the number of frames.

    Args:
        vae, latents, latent_frames_per_step, fast: as for `stream_frames`.
        callbacks: ticked as stage "decode" with latent frames done; a cancel stops between two runs.
        output_device: where the frames are collected; the CPU keeps them off the card.

    Returns:
        [B, 3, T_pixels, H, W] in -1..1 in the VAE's dtype, on `output_device`.
    """
    import torch

    items = latents.split(1) if getattr(vae, "use_slicing", False) else [latents]
    with torch.no_grad():
        decoded = []
        for item in items:
            runs = stream_frames(vae, item, latent_frames_per_step, fast)
            decoded.append(_collect(vae, runs, item, callbacks, output_device))
        return decoded[0] if len(decoded) == 1 else torch.cat(decoded)


def _collect(
    vae: Any,
    runs: Iterator[torch.Tensor],
    latents: torch.Tensor,
    callbacks: Callbacks,
    output_device: str | torch.device,
) -> torch.Tensor:
    """All frames of the runs in one tensor on the output device."""
    from ...vae.streams import Gathering

    factor = temporal_factor(vae)
    total = latents.shape[2] if latents.ndim == 5 else 1
    gathering = Gathering(1 + (total - 1) * factor, output_device)
    for pixels in runs:
        gathering.add(pixels)
        del pixels
        callbacks.tick("decode", 1 + (gathering.written - 1) // factor, total)
    frames = gathering.frames()
    if frames is None:
        raise InputError("latents", tuple(latents.shape), "there is no frame in it", "pass at least one latent frame")
    return frames


def temporal_factor(vae: Any) -> int:
    """Pixel frames per latent frame after the first."""
    form = STREAMING_FORMS.get(type(vae).__name__)
    if form is not None and form.temporal_factor is not None:
        return form.temporal_factor(vae)
    factor: Any = getattr(vae, "temporal_compression_ratio", None) or getattr(vae.config, "scale_factor_temporal", 4)
    return int(factor)

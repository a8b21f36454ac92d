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
        refuse_fast: why this particular object cannot be walked with fast arithmetic, or "".
        bit_identical: without fast arithmetic, steps of one latent frame give `vae.decode` bit for bit.
        temporal_factor: pixel frames per latent frame after the first; None = what the VAE says of itself.
    """

    stream: StreamFunction
    refuse: Callable[[Any], str]
    refuse_fast: Callable[[Any], str]
    bit_identical: bool = False
    temporal_factor: Callable[[Any], int] | None = None


def _feature_cache_stream(
    vae: Any, latents: torch.Tensor, step: int, fast: FastArithmetic | None
) -> Iterator[torch.Tensor]:
    """Wan, Qwen-Image and their kin, finished: unpacked from patches and clamped."""
    if fast is None:
        runs = feature_cache_runs(vae, vae.post_quant_conv(latents), step)
    else:
        runs = wan.stream(vae, latents, step, fast)
    for pixels in runs:
        yield finish_pixels(vae, pixels).clamp_(-1.0, 1.0)


def feature_cache_runs(vae: Any, hidden: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
    """The decoder's raw output, run by run: it takes its cache as an argument, one slot per causal convolution.

    Args:
        hidden: [B, C, T, h, w] after `post_quant_conv`.
        step: latent frames per run. The first latent frame gives one pixel frame instead of four, so it goes alone.
    """
    import inspect

    decoder = vae.decoder
    slots = sum(1 for module in decoder.modules() if type(module).__name__.endswith("CausalConv3d"))
    marks_first_chunk = "first_chunk" in inspect.signature(decoder.forward).parameters
    cache: list[Any] = [None] * slots
    for start in [0, *range(1, hidden.shape[2], step)]:
        stop = 1 if start == 0 else min(start + step, hidden.shape[2])
        extra = {"first_chunk": start == 0} if marks_first_chunk else {}
        yield decoder(hidden[:, :, start:stop], feat_cache=cache, feat_idx=[0], **extra)


def finish_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Unpack the patches of VAEs that decode to patches (Wan 2.2 5B); others pass through."""
    patch_size = getattr(vae.config, "patch_size", None)
    return pixels if patch_size is None else _unpatchify(pixels, patch_size)


def _unpatchify(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, C * p * p, T, H, W] -> [B, C, T, H * p, W * p]; channels are packed as (channel, column, row)."""
    if patch == 1:
        return pixels
    batch, packed, frames, height, width = pixels.shape
    channels = packed // (patch * patch)
    pixels = pixels.view(batch, channels, patch, patch, frames, height, width)
    pixels = pixels.permute(0, 1, 4, 5, 3, 6, 2)
    return pixels.reshape(batch, channels, frames, height * patch, width * patch)


_FEATURE_CACHE = StreamingForm(_feature_cache_stream, lambda vae: "", wan.refuse, bit_identical=True)
_LTX = StreamingForm(ltx.stream, ltx.refuse, fast_arithmetic.refuse_fast, temporal_factor=ltx.temporal_factor)
STREAMING_FORMS: dict[str, StreamingForm] = {
    "AutoencoderKLWan": _FEATURE_CACHE,
    "AutoencoderKLQwenImage": _FEATURE_CACHE,
    "AutoencoderKLHunyuanVideo15": StreamingForm(hunyuan15.stream, hunyuan15.refuse, hunyuan15.refuse_fast_walk),
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
        InputError: the VAE cannot be streamed (or walked), the latent is not 5-D, or the step is below 1.
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

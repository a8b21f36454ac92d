"""Streaming decode of diffusers' causal 3D VAEs: device memory stays flat, whatever the number of frames.

diffusers decodes these VAEs one latent frame at a time already, but keeps every decoded frame on the device and copies
all of them again for each new one. Here a decode is an iterator of short runs of frames: each run leaves the device as
soon as it is made, progress and cancel are possible between runs, and the state of the causal convolutions lives in the
iterator, so an exception leaves nothing behind and two decodes cannot disturb each other.

`latent_frames_per_step=1` repeats diffusers' own arithmetic and gives its result bit for bit. Longer runs give the
convolutions more work per call, and the same result within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..callbacks import SILENT, Callbacks
from ..errors import InputError
from . import hunyuan15_decode

if TYPE_CHECKING:
    import torch

StreamFunction = Callable[[Any, "torch.Tensor", int], "Iterator[torch.Tensor]"]


@dataclass(frozen=True)
class StreamingForm:
    """How one class of VAE is decoded in time.

    Attributes:
        stream: (vae, latents [B, C, T, h, w], latent frames per step) -> runs of pixel frames [B, 3, t, H, W] in order.
        refuse: why this particular object cannot be streamed exactly, or "".
    """

    stream: StreamFunction
    refuse: Callable[[Any], str]


def _feature_cache_stream(vae: Any, latents: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
    """Wan, Qwen-Image and their kin, finished: unpacked from patches and clamped."""
    for pixels in feature_cache_runs(vae, vae.post_quant_conv(latents), step):
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


_FEATURE_CACHE = StreamingForm(_feature_cache_stream, lambda vae: "")
STREAMING_FORMS: dict[str, StreamingForm] = {
    "AutoencoderKLWan": _FEATURE_CACHE,
    "AutoencoderKLQwenImage": _FEATURE_CACHE,
    "AutoencoderKLHunyuanVideo15": StreamingForm(hunyuan15_decode.stream, hunyuan15_decode.refuse),
}
LOOKS_AHEAD = {
    "AutoencoderKLLTXVideo": "its decoder looks at later frames too",
    "AutoencoderKLLTX2Video": "its decoder looks at later frames too",
    "AutoencoderKLHunyuanVideo": "its GroupNorm takes statistics over all frames",
    "AutoencoderKLCogVideoX": "its GroupNorm takes statistics over all frames of a batch",
    "AutoencoderKLMochi": "its GroupNorm and its decoder are not causal frame by frame",
}


def refuse_streaming(vae: Any) -> str:
    """Why this VAE cannot be streamed in time exactly, as one phrase; "" when it can."""
    name = type(vae).__name__
    form = STREAMING_FORMS.get(name)
    if form is None:
        return LOOKS_AHEAD.get(name, f"no causal streaming form is known for {name}")
    if getattr(vae, "use_tiling", False):
        return "spatial tiling is on"
    return form.refuse(vae)


def bring_to_device(vae: Any) -> None:
    """What diffusers' `apply_forward_hook` does for `vae.decode`: model offload brings the weights to the device."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


def stream_frames(vae: Any, latents: torch.Tensor, latent_frames_per_step: int = 1) -> Iterator[torch.Tensor]:
    """Decode in time, a short run of frames after the other.

    Args:
        vae: a diffusers VAE for which `refuse_streaming` is "".
        latents: [B, C, T, h, w] as `vae.decode` takes them, on the VAE's device and in its dtype.
        latent_frames_per_step: latent frames per run after the first, >= 1; 1 is bit-identical to `vae.decode`.

    Yields:
        Pixel frames in order, [B, 3, t, H, W] in -1..1, on the VAE's device. Must be consumed under `torch.no_grad()`.

    Raises:
        InputError: the VAE cannot be streamed, the latent is not 5-D, or the step is below 1.
    """
    reason = refuse_streaming(vae)
    if reason:
        raise InputError("vae", type(vae).__name__, reason, "decode it with vae.decode")
    if latents.ndim != 5:
        raise InputError("latents", tuple(latents.shape), "video latents are [B, C, T, h, w]", "add the time axis")
    if latent_frames_per_step < 1:
        raise InputError("latent_frames_per_step", latent_frames_per_step, "it must be at least 1", "use 1")
    bring_to_device(vae)
    yield from STREAMING_FORMS[type(vae).__name__].stream(vae, latents, latent_frames_per_step)


def decode_streaming(
    vae: Any,
    latents: torch.Tensor,
    *,
    callbacks: Callbacks = SILENT,
    output_device: str | torch.device = "cpu",
    latent_frames_per_step: int = 1,
) -> torch.Tensor:
    """Decode with device memory that does not depend on the number of frames.

    Args:
        vae, latents, latent_frames_per_step: as for `stream_frames`.
        callbacks: ticked as stage "decode" with latent frames done; a cancel stops between two runs.
        output_device: where the frames are collected; the CPU keeps them off the card.

    Returns:
        [B, 3, T_pixels, H, W] in -1..1 in the VAE's dtype, on `output_device`.
    """
    import torch

    if getattr(vae, "use_slicing", False) and latents.shape[0] > 1:
        items = []
        for item in latents.split(1):
            items.append(_decode_item(vae, item, callbacks, output_device, latent_frames_per_step))
        return torch.cat(items)
    return _decode_item(vae, latents, callbacks, output_device, latent_frames_per_step)


def _decode_item(
    vae: Any, latents: torch.Tensor, callbacks: Callbacks, output_device: str | torch.device, step: int
) -> torch.Tensor:
    import torch

    frames_in = latents.shape[2] if latents.ndim == 5 else 1
    collected: torch.Tensor | None = None
    written = done = 0
    with torch.no_grad():
        runs = stream_frames(vae, latents, step)
        for pixels in runs:
            if collected is None:
                collected = _output_buffer(vae, pixels, frames_in, output_device)
            stop = written + pixels.shape[2]
            collected[:, :, written:stop].copy_(pixels)
            written = stop
            done = min(done + (1 if done == 0 else step), frames_in)
            del pixels
            callbacks.tick("decode", done, frames_in)
    if collected is None:
        raise InputError("latents", tuple(latents.shape), "there is no frame in it", "pass at least one latent frame")
    return collected[:, :, :written]


def _output_buffer(vae: Any, first: torch.Tensor, latent_frames: int, device: str | torch.device) -> torch.Tensor:
    import torch

    factor: Any = getattr(vae, "temporal_compression_ratio", None) or getattr(vae.config, "scale_factor_temporal", 4)
    frames = 1 + (latent_frames - 1) * int(factor)
    shape = (*first.shape[:2], max(frames, first.shape[2]), *first.shape[3:])
    return torch.empty(shape, dtype=first.dtype, device=device)

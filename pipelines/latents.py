"""Latents between diffusers' conventions and ComfyUI's, and their decode to frames.

ComfyUI's LATENT is what the VAE takes (scaling and shift undone), except for Flux.2 and LTX-2, whose VAEs undo the
normalisation themselves (`normalized_latents.py`). The arithmetic here is, operation by operation, that of the
diffusers pipelines, so that a decode through a LATENT equals the pipeline's own picture bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..callbacks import SILENT, Callbacks
from ..errors import InputError
from ..report import OptimizationRecord
from . import normalized_latents
from .families import Family
from .mirrored_edges import decode_at_any_size
from .types import LoadedPipeline
from .video_decode import refuse_streaming
from .video_decode_exactness import (
    BIT_IDENTICAL,
    FAST,
    RECORD,
    decode_bit_identical,
    decode_fast,
    not_fast,
    whole_is_exact_and_fits,
)
from .video_decode_tiled import can_stream_tiles, decode_tiles_streaming

if TYPE_CHECKING:
    import torch

    from ..optimizations.headroom import MemoryProbe
    from ..report import OptimizationReport


def to_comfy(native: torch.Tensor, family: Family, vae: Any, width: int, height: int) -> torch.Tensor:
    """A pipeline's latent in ComfyUI's convention, float32, on the device where it is.

    Args:
        native: what the denoising loop ends with, in the family's `layout`.
        family: a known family (`family.known`).
        vae: the pipeline's VAE; only its configuration and dtype are used.
        width, height: of the picture in pixels; a packed latent does not know its own shape.

    Returns:
        [B, C, h, w], or [B, C, T, h, w] for the families whose VAE has a time axis (Qwen-Image with T = 1).
    """
    latent = unpack(native, family, width, height)
    if family.layout in normalized_latents.LAYOUTS:
        return latent.float()
    latent = latent.to(decode_dtype(vae))
    mean, std = _statistics(vae, latent)
    if mean is None:
        latent = latent / vae.config.scaling_factor
        if vae.config.get("shift_factor") is not None:
            latent = latent + vae.config.shift_factor
    elif latent.ndim == 5:
        latent = latent / (1.0 / std) + mean
    else:
        latent = latent * std / vae.config.scaling_factor + mean
    return latent.float()


def from_comfy(latent: torch.Tensor, family: Family, vae: Any) -> torch.Tensor:
    """The inverse of `to_comfy`, still in the shape [B, C, h, w] or [B, C, T, h, w]; `pack` gives the layout.

    Raises:
        InputError: the latent has another number of channels than the family's.
    """
    check_latent(latent, family)
    latent = latent.float()
    if latent.ndim == 4 and _has_time_axis(vae):
        latent = latent.unsqueeze(2)
    if family.layout in normalized_latents.LAYOUTS:
        return latent
    mean, std = _statistics(vae, latent)
    if mean is None:
        shift = vae.config.get("shift_factor")
        return (latent - (shift or 0.0)) * vae.config.scaling_factor
    scaling = 1.0 if latent.ndim == 5 else vae.config.scaling_factor
    return (latent - mean) * scaling / std


def check_latent(latent: torch.Tensor, family: Family) -> None:
    """Raise InputError unless the latent has the form of the family's latents."""
    if latent.ndim not in (4, 5) or 0 in latent.shape:
        reason = f"its shape is {list(latent.shape)}, not [batch, channels, (frames,) height, width]"
        raise InputError("latent", "tensor", reason, "connect a LATENT output")
    if family.latent_channels and latent.shape[1] != family.latent_channels:
        reason = f"it has {latent.shape[1]} channels, but {family.name} latents have {family.latent_channels}"
        raise InputError("latent", "tensor", reason, "use a latent of the same kind of model")


def unpack(native: torch.Tensor, family: Family, width: int, height: int) -> torch.Tensor:
    """From the family's layout to [B, C, h, w] (or [B, C, T, h, w])."""
    if family.layout in ("plain", "video"):
        return native
    if native.ndim == 5:  # image-to-video steps the frames after the first one, unpacked
        return native
    batch, _, channels = native.shape
    if family.layout == "tokens":
        rows, columns = height // family.latent_stride, width // family.latent_stride
        return native.transpose(1, 2).reshape(batch, channels, -1, rows, columns)
    rows, columns = height // 16, width // 16
    if family.layout == "patches":
        return native.permute(0, 2, 1).reshape(batch, channels, rows, columns)
    latent = native.view(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    latent = latent.reshape(batch, channels // 4, rows * 2, columns * 2)
    return latent.unsqueeze(2) if family.comfy_format == "Wan21" else latent


def pack(latent: torch.Tensor, family: Family) -> torch.Tensor:
    """The inverse of `unpack`."""
    if family.layout in ("plain", "video"):
        return latent
    if family.layout == "tokens":
        return latent.flatten(2).transpose(1, 2)
    if latent.ndim == 5:
        latent = latent.squeeze(2)
    batch, channels, height, width = latent.shape
    if family.layout == "patches":
        return latent.reshape(batch, channels, height * width).permute(0, 2, 1)
    latent = latent.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return latent.reshape(batch, (height // 2) * (width // 2), channels * 4)


def decode(
    loaded: LoadedPipeline,
    latent: torch.Tensor,
    callbacks: Callbacks = SILENT,
    *,
    exactness: str = BIT_IDENTICAL,
    memory: MemoryProbe | None = None,
    report: OptimizationReport | None = None,
) -> torch.Tensor:
    """Decode a ComfyUI latent with the pipeline's VAE.

    Args:
        loaded: of a known family.
        latent: [B, C, h, w] or [B, C, T, h, w].
        callbacks: ticked as stage "decode"; a cancel takes effect between frames and between tiles.
        exactness: one of `EXACTNESS_CHOICES`; it matters to clips alone.
        memory: how much memory a device has; torch's own figures when None.
        report: told how exactly a clip was decoded.

    Returns:
        float32 [B, T, H, W, 3] in 0..1 on the CPU, T = 1 for images.

    Raises:
        InputError: the latent is not one of this family, or the pipeline's class is not known.
        torch.OutOfMemoryError: as raised; the VAE is usable afterwards.
    """
    import torch

    family, pipeline = loaded.family, loaded.pipeline
    if not family.known:
        reason = f"how {family.name} scales its latents is not known here"
        raise InputError("latent", "tensor", reason, "let the sampler decode")
    check_latent(latent, family)
    vae = pipeline.vae
    with torch.no_grad(), _upcast(vae):
        latent = latent.to(execution_device(vae, loaded.device), decode_dtype(vae))
        if latent.ndim == 4 and _has_time_axis(vae):
            latent = latent.unsqueeze(2)
        if family.layout in normalized_latents.LAYOUTS:
            latent = normalized_latents.denormalize(latent, family, vae)
        pixels, record = _decode_pixels(vae, latent, callbacks, exactness, memory)
        if report is not None and record is not None:
            report.set(record)
        return _to_frames(pixels)


def _decode_pixels(
    vae: Any, latent: torch.Tensor, callbacks: Callbacks, exactness: str, memory: MemoryProbe | None
) -> tuple[torch.Tensor, OptimizationRecord | None]:
    """Pixels in -1..1 by the way that suits the VAE and the latent; a record for clips, and where "fast" is not had."""
    fast = exactness == FAST
    clip = latent.ndim == 5 and latent.shape[2] > 1
    refusal = refuse_streaming(vae) if clip else "it is a single picture"
    if not refusal:
        whole = whole_is_exact_and_fits(vae, latent, memory)
        if fast:
            return decode_fast(vae, latent, callbacks, whole=whole)
        if not whole:
            return decode_bit_identical(vae, latent, callbacks)
    if can_stream_tiles(vae, latent):
        pixels = decode_tiles_streaming(vae, latent, callbacks=callbacks)
    else:
        with _decoder_progress(vae, latent, callbacks):
            pixels = decode_at_any_size(vae, latent, *_decode_timestep(vae, latent))
    if fast:
        return pixels, not_fast(refusal)
    return pixels, OptimizationRecord(RECORD, exactness, BIT_IDENTICAL, "diffusers' own decode") if clip else None


def encode(loaded: LoadedPipeline, frames: torch.Tensor, callbacks: Callbacks = SILENT) -> torch.Tensor:
    """Encode frames with the pipeline's VAE; the mode of the distribution, so without a seed.

    Args:
        loaded: of a known family.
        frames: [B, H, W, 3] images or [B, T, H, W, 3] clips in 0..1; H and W multiples of the family's stride.

    Returns:
        ComfyUI latent, float32 on the CPU.

    Raises:
        InputError: unknown family, or a size that does not divide.
    """
    import torch

    family, vae = loaded.family, loaded.pipeline.vae
    if not family.known:
        raise InputError("pixels", "tensor", f"how {family.name} scales its latents is not known here", "")
    clips = frames if frames.ndim == 5 else frames.unsqueeze(1)
    height, width = clips.shape[2:4]
    if height % family.latent_stride or width % family.latent_stride:
        cure = f"crop or scale to multiples of {family.latent_stride}"
        raise InputError("pixels", f"{width}x{height}", f"{family.name} encodes multiples of its stride only", cure)
    with torch.no_grad(), _upcast(vae):
        callbacks.tick("encode", 0, 1)
        pixels = clips[..., :3].permute(0, 4, 1, 2, 3).to(execution_device(vae, loaded.device), decode_dtype(vae))
        if not _has_time_axis(vae):
            pixels = pixels.permute(0, 2, 1, 3, 4).flatten(0, 1)
        latent = vae.encode((pixels * 2.0 - 1.0).contiguous()).latent_dist.mode()
        if family.layout in normalized_latents.LAYOUTS:
            latent = normalized_latents.normalize(latent, family, vae)
        callbacks.tick("encode", 1, 1)
        return latent.float().cpu()


def decode_dtype(vae: Any) -> torch.dtype:
    """The dtype in which diffusers decodes: the VAE's own, float32 for float16 weights that overflow (SDXL)."""
    import torch

    own = weights_dtype(vae)
    return torch.float32 if own == torch.float16 and vae.config.get("force_upcast", False) else own


def weights_dtype(module: Any) -> torch.dtype:
    """What `module.dtype` says, without its walk over all submodules: that takes a millisecond, and this every step."""
    dtype: torch.dtype = next(parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return dtype


def execution_device(module: Any, target: torch.device) -> torch.device:
    """Where a module computes: its weights may be elsewhere until an offload hook brings them."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None and getattr(hook, "execution_device", None) is not None:
        import torch

        return torch.device(hook.execution_device)
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None and registry.get_hook("group_offloading") is not None:
        return target
    device: torch.device = next(module.parameters()).device
    return device


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    before = weights_dtype(vae)
    wanted = decode_dtype(vae)
    if wanted != before:
        vae.to(dtype=wanted)
    try:
        yield
    finally:
        if wanted != before:
            vae.to(dtype=before)


def _has_time_axis(vae: Any) -> bool:
    return vae.config.get("z_dim") is not None or hasattr(vae, "temporal_compression_ratio")


def _decode_timestep(vae: Any, latent: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The noise level that VAEs which remove the last of the noise are told: none, diffusers' default for them."""
    return (latent.new_zeros(latent.shape[0]),) if vae.config.get("timestep_conditioning") else ()


def _statistics(vae: Any, latent: torch.Tensor) -> tuple[Any, Any]:
    """Per-channel mean and deviation of the latents as the VAE's config states them; (None, None) without."""
    import torch

    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return None, None
    shape = (1, -1) + (1,) * (latent.ndim - 2)
    mean, std = (torch.tensor(value).view(shape).to(latent.device, latent.dtype) for value in (mean, std))
    return mean, std


def _to_frames(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] or [B, 3, T, H, W] in -1..1 -> float32 [B, T, H, W, 3] in 0..1 on the CPU."""
    if pixels.ndim == 4:
        pixels = pixels.unsqueeze(2)
    pixels = (pixels * 0.5 + 0.5).clamp(0, 1)
    return pixels.cpu().permute(0, 2, 3, 4, 1).float().contiguous()


@contextmanager
def _decoder_progress(vae: Any, latent: torch.Tensor, callbacks: Callbacks) -> Iterator[None]:
    """Tick before every call of the decoder: once per picture, per tile, per latent frame of a clip."""
    decoder = getattr(vae, "decoder", None)
    # A hook would make a compiled decoder compile again.
    if decoder is None or callbacks is SILENT or decoder._compiled_call_impl is not None:
        callbacks.tick("decode", 0, 1)
        yield
        callbacks.tick("decode", 1, 1)
        return
    total = decoder_calls(vae, latent)
    calls = 0

    def before_call(module: Any, args: Any) -> None:
        nonlocal calls
        callbacks.tick("decode", min(calls, total), total)
        calls += 1

    handle = decoder.register_forward_pre_hook(before_call)
    try:
        yield
    finally:
        handle.remove()
    callbacks.tick("decode", total, total)


def decoder_calls(vae: Any, latent: torch.Tensor) -> int:
    """How often `vae.decode` will call its decoder for this latent: tiles times latent frames, times sliced items."""
    one_by_one = latent.ndim == 5 and vae.config.get("z_dim") is not None  # LTX-2's takes all frames at once
    frames = latent.shape[2] if one_by_one else 1
    items = latent.shape[0] if getattr(vae, "use_slicing", False) else 1
    if not getattr(vae, "use_tiling", False):
        return frames * items
    height, width = latent.shape[-2:]
    if hasattr(vae, "tile_sample_stride_height"):
        ratio = vae.spatial_compression_ratio
        edges = (vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio)
        strides = (vae.tile_sample_stride_height // ratio, vae.tile_sample_stride_width // ratio)
    elif hasattr(vae, "tile_latent_min_size"):
        edge = vae.tile_latent_min_size
        edges, strides = (edge, edge), (int(edge * (1 - vae.tile_overlap_factor)),) * 2
    else:
        return frames * items
    if height <= edges[0] and width <= edges[1]:
        return frames * items
    tiles = -(-height // max(1, strides[0])) * -(-width // max(1, strides[1]))
    return frames * items * tiles

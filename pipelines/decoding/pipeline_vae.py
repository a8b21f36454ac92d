"""ComfyUI latents to frames and back, with the VAE of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks, Progress
from ...errors import InputError
from ...optimizations.components import decode_dtype, execution_device, has_time_axis, weights_dtype
from ...report import OptimizationRecord
from .. import latents
from ..families import Family
from ..types import LoadedPipeline
from .exactness import BIT_IDENTICAL, FAST, RECORD, decode_bit_identical, decode_fast, not_fast, whole_is_exact_and_fits
from .mirrored_edges import decode_at_any_size
from .streaming import refuse_streaming, temporal_factor
from .tiles import decode_tiles_streaming, refuse_tiles, tile_makers

if TYPE_CHECKING:
    import torch

    from ...memory import MemoryProbe
    from ...report import OptimizationReport
    from .sharing import TileSharing


def check_decodes(family: Family, latent: torch.Tensor) -> None:
    """Raise InputError for a latent that is none of the family's, or that nothing here decodes."""
    cure = "let the sampler decode: its output images, or generate with a picture or an .mp4 as --output"
    latents.refuse_own_layout(family, "latent", "given", cure)
    latents.check_latent(latent, family)


def check_encodes(family: Family) -> None:
    """Raise InputError for a family whose latents nothing here makes of pixels."""
    latents.refuse_own_layout(family, "pixels", "given", "give the picture to the sampler's images")


def decode(
    loaded: LoadedPipeline,
    latent: torch.Tensor,
    callbacks: Callbacks = SILENT,
    *,
    exactness: str = BIT_IDENTICAL,
    memory: MemoryProbe | None = None,
    report: OptimizationReport | None = None,
    sharing: TileSharing | None = None,
) -> torch.Tensor:
    """Decode a ComfyUI latent with the pipeline's VAE.

    Args:
        loaded: of a known family.
        latent: [B, C, h, w] or [B, C, T, h, w].
        callbacks: ticked as stage "decode"; a cancel takes effect between frames and between tiles.
        exactness: one of `EXACTNESS_CHOICES`; it matters to clips alone.
        memory: how much memory a device has; torch's own figures when None.
        report: told how exactly a clip was decoded.
        sharing: other processes that make some of the tiles, where it is made of tiles.

    Returns:
        float32 [B, T, H, W, 3] in 0..1 on the CPU, T = 1 for images.

    Raises:
        InputError: the latent is not one of this family, or the pipeline's class is not known.
        torch.OutOfMemoryError: as raised; the VAE is usable afterwards.
    """
    import torch

    family, pipeline = loaded.family, loaded.pipeline
    check_decodes(family, latent)
    vae = pipeline.vae
    with torch.no_grad(), _upcast(vae):
        latent = latent.to(execution_device(vae, loaded.device), decode_dtype(vae))
        if latent.ndim == 4 and has_time_axis(vae):
            latent = latent.unsqueeze(2)
        if family.layout in latents.NORMALIZED_LAYOUTS:
            latent = latents.denormalize(latent, family, vae)
        pixels, record = _decode_pixels(vae, latent, callbacks, exactness, memory, sharing)
        if report is not None and record is not None:
            report.set(record)
        if hasattr(pipeline, "pixel_mean"):
            return _to_frames(_from_statistics(pixels, pipeline), scaled=True)
        return _to_frames(pixels)


def help_decode(loaded: LoadedPipeline, sharing: TileSharing, callbacks: Callbacks) -> None:
    """Make tiles of a decode whose result another process has."""
    import torch

    vae = loaded.pipeline.vae
    callbacks.on_progress(Progress("decode", 0, 1))
    with torch.no_grad(), _upcast(vae):
        device, dtype = execution_device(vae, loaded.device), decode_dtype(vae)
        sharing.help(vae, lambda latents: tile_makers(vae, latents.to(device, dtype), callbacks))


def _decode_pixels(
    vae: Any,
    latent: torch.Tensor,
    callbacks: Callbacks,
    exactness: str,
    memory: MemoryProbe | None,
    sharing: TileSharing | None,
) -> tuple[torch.Tensor, OptimizationRecord | None]:
    """Pixels in -1..1 by the way that suits the VAE and the latent; a record for clips, and where "fast" is not had."""
    fast = exactness == FAST
    clip = latent.ndim == 5 and latent.shape[2] > 1
    refusal = refuse_streaming(vae) if clip else "it is a single picture"
    whole_because = refuse_tiles(vae, latent)
    if whole_because and sharing is not None:
        sharing.declined(whole_because)
    if not refusal:
        whole = whole_is_exact_and_fits(vae, latent, memory)
        if fast:
            return decode_fast(vae, latent, callbacks, whole=whole)
        if not whole:
            return decode_bit_identical(vae, latent, callbacks)
    if not whole_because:
        pixels = decode_tiles_streaming(vae, latent, callbacks=callbacks, sharing=sharing)
    else:
        with _decoder_progress(vae, latent, callbacks):
            pixels = decode_at_any_size(vae, latent, *_decode_timestep(vae, latent))
    if fast:
        return pixels, not_fast(refusal)
    return pixels, OptimizationRecord(RECORD, exactness, BIT_IDENTICAL, "diffusers' own decode") if clip else None


def encode(
    loaded: LoadedPipeline,
    frames: torch.Tensor,
    callbacks: Callbacks = SILENT,
    report: OptimizationReport | None = None,
) -> torch.Tensor:
    """Encode frames with the pipeline's VAE; the mode of the distribution, so without a seed.

    Args:
        loaded: of a known family.
        frames: [B, H, W, 3] images or [B, T, H, W, 3] clips in 0..1; H and W multiples of the family's stride.
        callbacks: ticked as stage "encode".
        report: told when a clip was filled up.

    Returns:
        ComfyUI latent, float32 on the CPU. A video VAE takes clips of 1 + a multiple of its temporal factor: other
        clips are filled up with copies of their last frame, which a decode gives back behind the clip.

    Raises:
        InputError: unknown family, a size that does not divide, or pixels without three colours.
    """
    import torch

    family, vae = loaded.family, loaded.pipeline.vae
    check_encodes(family)
    clips = frames if frames.ndim == 5 else frames.unsqueeze(1)
    height, width = clips.shape[2:4]
    if height % family.latent_stride or width % family.latent_stride:
        cure = f"crop or scale to multiples of {family.latent_stride}"
        raise InputError("pixels", f"{width}x{height}", f"{family.name} encodes multiples of its stride only", cure)
    if clips.shape[-1] < 3:
        raise InputError("pixels", f"{clips.shape[-1]} channel(s)", "a pipeline's VAE encodes RGB", "convert it to RGB")
    missing = 0
    if family.frame_rest > 1:  # shorter than one step its VAE gives nothing back
        least = max(clips.shape[1], family.frame_rest + family.frame_step)
        missing = least + (family.frame_rest - least) % family.frame_step - clips.shape[1]
    elif has_time_axis(vae):
        missing = (1 - clips.shape[1]) % temporal_factor(vae)
    if missing:
        clips = torch.cat((clips, clips[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1)
    with torch.no_grad(), _upcast(vae):
        callbacks.tick("encode", 0, 1)
        if family.alpha and clips.shape[-1] == 3:
            clips = torch.cat((clips, torch.ones_like(clips[..., :1])), -1)
        pixels = clips[..., : 4 if family.alpha else 3].permute(0, 4, 1, 2, 3).float()
        if hasattr(loaded.pipeline, "pixel_mean"):
            mean, std = _pixel_statistics(pixels, loaded.pipeline)
            pixels = ((pixels - mean) / std).contiguous()
        else:
            pixels = (pixels * 2.0 - 1.0).contiguous()
        pixels = pixels.to(execution_device(vae, loaded.device), decode_dtype(vae))
        if not has_time_axis(vae):
            pixels = pixels.permute(0, 2, 1, 3, 4).flatten(0, 1)
        encoded = vae.encode(pixels)
        # AutoencoderTiny gives no distribution.
        latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        if family.layout in latents.NORMALIZED_LAYOUTS:
            latent = latents.normalize(latent, family, vae)
        callbacks.tick("encode", 1, 1)
        if missing and report is not None:
            length = clips.shape[1] - missing
            report.note(f"the clip of {length} frames was filled up with {missing} copies of its last frame")
        return latent.float().cpu()


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


def _decode_timestep(vae: Any, latent: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The noise level that VAEs which remove the last of the noise are told: none, diffusers' default for them."""
    return (latent.new_zeros(latent.shape[0]),) if vae.config.get("timestep_conditioning") else ()


def _from_statistics(pixels: torch.Tensor, pipeline: Any) -> torch.Tensor:
    """Pixels [B, 3, T, H, W] in 0..1, from a VAE that gives them with the pipeline's own mean and deviation."""
    mean, std = _pixel_statistics(pixels, pipeline)
    return pixels.float() * std + mean


def _pixel_statistics(pixels: torch.Tensor, pipeline: Any) -> list[torch.Tensor]:
    import torch

    given = (pipeline.pixel_mean, pipeline.pixel_std)
    return [torch.tensor(each, device=pixels.device).view(1, -1, 1, 1, 1) for each in given]


def _to_frames(pixels: torch.Tensor, scaled: bool = False) -> torch.Tensor:
    """[B, 3, H, W] or [B, 3, T, H, W] in -1..1 -> float32 [B, T, H, W, 3] in 0..1 on the CPU.

    Args:
        scaled: the pixels are in 0..1 already.

    Scaled in float32, as ComfyUI's own decode does. diffusers' `VaeImageProcessor` scales in the dtype of the pixels,
    which in bfloat16 moves many values by an 8-bit level; in float32 the frames are the same bit for bit.
    """
    import torch

    clips = pixels if pixels.ndim == 5 else pixels.unsqueeze(2)
    batch, channels, count, height, width = clips.shape
    frames = torch.empty(batch, count, height, width, channels)
    for clip, target in zip(clips, frames, strict=True):
        for index in range(count):  # one by one: a copy that also converts would take the whole clip once more
            target[index].copy_(clip[:, index].permute(1, 2, 0))
    return frames.clamp_(0, 1) if scaled else frames.mul_(0.5).add_(0.5).clamp_(0, 1)


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

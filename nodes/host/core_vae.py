"""ComfyUI's own VAE objects, decoded and encoded with progress, cancelling, and tiles that shrink until they fit.

A whole run gives exactly what ComfyUI's VAE Decode and VAE Encode give, with whatever other nodes have changed in the
object; the clips of Wan-family VAEs leave the card run by run on the way (`core_streaming.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import comfy.model_management as mm
import comfy.sd
import torch

from ...callbacks import Callbacks
from ...errors import InputError
from ...fallback import is_out_of_memory
from ...pipelines.decoding.exactness import BIT_IDENTICAL, FAST, RECORD
from ...report import OptimizationRecord, OptimizationReport
from ..vae_choices import VaeChoices
from . import core_tae
from .core_jobs import Decode, Encode, Job
from .core_tiles import TILE_EDGES, Tiles

SHAPE_NETWORKS = ("hunyuan3d", "trellis", "triposplat")
SOUND_NETWORKS = ("audio", "music")
"""Words in the names of the modules where ComfyUI has the networks of VAEs for shapes and for sound."""
ONE_BY_ONE = "the frames of the clips were encoded one by one: this VAE encodes pictures"


def decode(
    vae: Any, samples: torch.Tensor, choices: VaeChoices, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Decode a latent.

    Args:
        vae: `comfy.sd.VAE`.
        samples: [B, C, H, W] or [B, C, T, H, W].
        choices: whole or tiles; "exact" is "auto" here.
        callbacks: told of every batch item or tile, and asked before each whether to stop.

    Returns:
        Frames [B, H, W, 3] or [B, T, H, W, 3] in 0..1 on the CPU, and what was done.

    Raises:
        InputError: a latent that this VAE cannot take.
        torch.OutOfMemoryError: even the smallest tile does not fit.
    """
    if not isinstance(vae, comfy.sd.VAE):
        return _as_it_is(vae, "decode", samples, callbacks)
    _check_kind(vae, "decode")
    if samples.ndim not in (4, 5) or 0 in samples.shape:
        reason = "a latent of pictures or clips is [batch, channels, (frames,) height, width]"
        raise InputError("samples", list(samples.shape), reason, "connect the LATENT of a sampler or of VAE Encode")
    if samples.ndim == 4 and vae.latent_dim == 3:
        samples = as_clip(samples, vae.latent_channels)
    if samples.shape[1] != vae.latent_channels:
        reason = f"this VAE takes latents of {vae.latent_channels} channels"
        raise InputError("samples", list(samples.shape), reason, "connect the VAE that belongs to the model")
    frame_dropped = ""
    if vae.latent_dim == 2 and samples.ndim == 5:
        samples, frame_dropped = first_frame(samples, "this VAE decodes pictures")
    frames, report = _run(Decode(vae, samples, callbacks), choices)
    if frame_dropped:
        report.note(frame_dropped)
    if frames.shape[-1] not in (1, 3, 4):
        report.note(f"the frames have {frames.shape[-1]} channels, as this VAE gives them to ComfyUI's VAE Decode too")
    return frames, report


def encode(
    vae: Any, pixels: torch.Tensor, choices: VaeChoices, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Encode images, or the frames of one video where the VAE is a video VAE.

    Args:
        vae: `comfy.sd.VAE`.
        pixels: [B, H, W, C] in 0..1.
        choices: whole or tiles; "exact" is "auto" here.
        callbacks: told of every batch item or tile, and asked before each whether to stop.

    Returns:
        Latent [B, C, h, w] or [1, C, t, h, w] on the CPU, and what was done.

    Raises:
        InputError: an audio VAE.
        torch.OutOfMemoryError: even the smallest tile does not fit.
    """
    if not isinstance(vae, comfy.sd.VAE):
        return _as_it_is(vae, "encode", pixels, callbacks)
    _check_kind(vae, "encode")
    channels, taken = pixels.shape[-1], vae.output_channels
    if vae.pad_channel_value is None:
        check_channels(pixels, taken)
    job = Encode(vae, pixels, callbacks)
    cropped = "" if job.replaced else _cropped(vae, pixels)
    latent, report = _run(job, choices)
    if cropped:
        report.note(cropped)
    if channels > taken:
        report.note(alpha_left_out(channels, taken))
    elif channels < min(taken, 3):
        report.note(f"{taken - channels} of {taken} channels filled up as ComfyUI's VAE Encode does: they were missing")
    if pixels.ndim == 5 and latent.shape[0] != pixels.shape[0]:
        report.note(ONE_BY_ONE)
    return latent, report


def _cropped(vae: Any, pixels: torch.Tensor) -> str:
    """A note on what the VAE cuts off of pictures [..., H, W, C], "" for nothing. Raises InputError where it is all."""
    rows, columns = pixels.shape[-3:-1]
    kept = vae.vae_encode_crop_pixels(pixels.reshape(-1, *pixels.shape[-3:])[:1]).shape[1:3]
    edge = vae.spacial_compression_encode()
    if 0 in kept:
        reason = f"one cell of this VAE's latents is {edge} pixels wide and high"
        raise InputError("pixels", f"{columns}x{rows}", reason, "scale the picture up")
    if tuple(kept) == (rows, columns):
        return ""
    size = f"cropped from {columns}x{rows} to {kept[1]}x{kept[0]}"
    return f"{size}, as by ComfyUI's VAE Encode: this VAE encodes multiples of {edge} pixels"


def check_channels(pixels: torch.Tensor, taken: int) -> None:
    """Raise InputError for pictures [..., C] with fewer channels than are encoded."""
    channels = pixels.shape[-1]
    if channels < taken:
        reason = f"this VAE encodes pictures of {taken} channels, not {channels}"
        raise InputError("pixels", list(pixels.shape), reason, f"give the picture {taken} channels")


def alpha_left_out(channels: int, taken: int) -> str:
    """Return the note for the report."""
    return f"{channels - taken} of {channels} channels (alpha) left out: this VAE encodes {taken}"


def as_clip(samples: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a latent [B, C, h, w] as [B, C, 1, h, w], or one of T times the channels as [B, C, T, h, w].

    ComfyUI's SeedVR2 VAE takes both.
    """
    if samples.shape[1] % channels:
        return samples.unsqueeze(2)
    return samples.unflatten(1, (channels, -1))


def first_frame(samples: torch.Tensor, why: str) -> tuple[torch.Tensor, str]:
    """Return the first frame of a latent [B, C, T, h, w], as ComfyUI's VAE Decode takes it, and a note on the rest."""
    frames = samples.shape[2]
    note = f"the first of the latent's {frames} frames was used: {why}" if frames > 1 else ""
    return samples[:, :, 0], note


def frames_of(vae: Any, latent: torch.Tensor) -> int:
    """Return how many frames one of ComfyUI's video VAEs decodes a latent to; 0 where it cannot be known."""
    ratio: Any = getattr(vae, "upscale_ratio", 1)
    if latent.ndim == 5 and (frames := core_tae.frames_of(getattr(vae, "first_stage_model", None), latent.shape[2])):
        return frames
    if latent.ndim != 5 or not isinstance(ratio, tuple) or not callable(ratio[0]):
        return 0
    return int(ratio[0](latent.shape[2]))


def drops_last(vae: Any) -> bool:
    """Return whether a video VAE that decodes to fewer frames than it was given gives the first of them."""
    return not core_tae.frames_of(getattr(vae, "first_stage_model", None), 1)


def check_belongs(name: str, vae: Any, model: str, channels: int) -> None:
    """Raise InputError for a VAE that cannot decode what a model makes, before it is made.

    Args:
        name: of the input.
        vae: `comfy.sd.VAE`; of another object nothing is known.
        channels: of the model's latents, 0 where that is not known.
    """
    if not isinstance(vae, comfy.sd.VAE):
        return
    _check_kind(vae, "decode", name)
    if channels and vae.latent_channels != channels:
        reason = f"it takes latents of {vae.latent_channels} channels, and those of {model} have {channels}"
        raise InputError(name, "connected", reason, "connect the VAE that belongs to the model")


def _check_kind(vae: Any, verb: str, name: str = "vae") -> None:
    """Raise InputError for a VAE of sound or shapes, and ComfyUI's own error for an empty object."""
    vae.throw_exception_if_invalid()
    network = getattr(vae.first_stage_model, "_orig_mod", vae.first_stage_model)
    module = type(network).__module__
    reason = f"this node {verb}s images and video"
    if any(word in module for word in SHAPE_NETWORKS):
        cure = "use the decode node that belongs to it, such as VAE Decode Hunyuan 3D"
        raise InputError(name, "a VAE of 3D shapes", reason, cure)
    if vae.latent_dim == 1 or vae.extra_1d_channel is not None or any(word in module for word in SOUND_NETWORKS):
        raise InputError(name, "an audio VAE", reason, f"use VAE {verb.capitalize()} Audio")


def _as_it_is(
    vae: Any, method: str, data: torch.Tensor, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Call the method of an object that is not a `comfy.sd.VAE`, as ComfyUI's own node does."""
    callbacks.check_cancel()
    result = getattr(vae, method)(data).cpu()
    callbacks.tick(method, 1, 1)
    report = OptimizationReport()
    reason = "this is no VAE of ComfyUI's: it ran as in ComfyUI's own node"
    report.set(OptimizationRecord("vae_tiling", "whole", f"its own {method}", reason))
    report.facts["vae"] = type(vae).__name__
    return result, report


def _run(job: Job, choices: VaeChoices) -> tuple[torch.Tensor, OptimizationReport]:
    """Try the whole, then ever smaller tiles, until one fits."""
    started = time.perf_counter()
    too_large: list[str] = []
    for tiles in _attempts(job, choices):
        text = str(tiles) if tiles else f"its own {job.stage}" if job.replaced else "whole"
        try:
            result = job.tiled(tiles) if tiles else job.whole()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            break
        # Only here, outside the except block, is the failed attempt's memory given back.
        too_large.append(text)
        mm.soft_empty_cache()
    else:
        raise torch.OutOfMemoryError(f"VAE {job.stage}: out of memory with {', then '.join(too_large)}.")
    reason = f"out of memory with {', '.join(too_large)}" if too_large else ""
    if job.replaced and not tiles:
        reason = f"another node has replaced this VAE's {job.stage}: it ran as in ComfyUI's own node"
    unfit = bool(job.not_cut) and choices.tiling == "tiles"
    reason = f"not cut into tiles: {job.not_cut}" if unfit else reason
    report = OptimizationReport()
    report.set(OptimizationRecord("vae_tiling", choices.tiling, text, reason, failed=bool(too_large) or unfit))
    if job.whole_in_time and tiles and choices.temporal_slice:
        groups = "this VAE's frames come in groups, and are not cut in time"
        report.note(f"temporal_slice = {choices.temporal_slice} ignored: {groups}")
    if job.streamed_frames(job.data) and text == "whole":
        report.set(OptimizationRecord("streaming", "auto", "frames leave the card as they are made"))
    if choices.exactness == FAST:
        reason = "this is one of ComfyUI's own VAEs, which runs ComfyUI's own arithmetic"
        report.set(OptimizationRecord(RECORD, FAST, BIT_IDENTICAL, reason, failed=True))
    report.facts |= {
        "vae": f"ComfyUI {type(job.vae.first_stage_model).__name__}",
        "device": str(job.vae.device),
        "dtype": str(job.vae.vae_dtype).removeprefix("torch."),
    }
    report.timed({job.stage: round(time.perf_counter() - started, 3)})
    return result, report


def _attempts(job: Job, choices: VaeChoices) -> Iterator[Tiles | None]:
    """Yield what to try, in this order; None is the whole."""
    item = (1, *job.data.shape[1:])
    if job.not_cut:
        yield None
        return
    tiles_first = choices.tiling == "tiles"
    if choices.tiling == "whole" or (not tiles_first and (job.replaced or job.memory(item) <= job.load(item))):
        yield None
    free = job.free()
    asked = choices.tile_size
    previous: Tiles | None = None
    for edge in [asked, *(e for e in TILE_EDGES if e < asked)] if asked else TILE_EDGES:
        tiles = job.plan(edge, choices.overlap, choices.temporal_slice)
        worth_it = tiles.count > 1 and job.memory(tiles.shape(job.data)) <= free
        if tiles != previous and (worth_it or edge in (asked, TILE_EDGES[-1])):
            previous = tiles
            yield tiles

"""A LATENT as this pack's nodes read it.

Beside `samples` ComfyUI's nodes write: `noise_mask`, `batch_index`, `downscale_ratio_spacial` and `_temporal`, `type`
and `sample_rate` for sound and shapes, `coords` and the like for shapes. VAE Encode (Fast) writes `clip_length`,
`clip_latent_frames` and `clip_count` of a clip that it filled up. Each is honoured, refused, or said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..pipelines.conditions.kinds import MaskCondition
from ..pipelines.decoding.padding import PADDING_KEYS
from ..pipelines.latents import check_kind
from ..pipelines.requests import MAX_BATCH
from .host.core_vae import first_frame

if TYPE_CHECKING:
    import torch

    from ..pipelines.families import Family
    from ..pipelines.types import SampleRequest

OTHER_KINDS = {"audio": "sound", "hunyuan3dv2": "a 3D shape", "trellis2": "a 3D shape"}
"""`type` of the latents that hold neither pictures nor clips."""
FOR_SAMPLING = ("noise_mask", "batch_index", "downscale_ratio_spacial", "downscale_ratio_temporal")
"""Keys that speak to a sampler; ComfyUI's own decode has no use for them either."""
SEEDS = 1 << 64


@dataclass
class LatentInput:
    """The samples of a LATENT, and what is to be said about the rest of it.

    Attributes:
        samples: [B, C, h, w] or [B, C, T, h, w].
        notes: for the report.
        unused: keys that had no use here.
    """

    samples: torch.Tensor
    notes: list[str]
    unused: list[str]


def read(latent: Mapping[str, Any]) -> LatentInput:
    """Return the pictures or clips of a LATENT.

    Raises:
        InputError: it holds sound, a shape, whole numbers, or no latent at all.
    """
    kind = OTHER_KINDS.get(latent.get("type", ""))
    if kind is None and "coords" in latent:
        kind = "a 3D shape"
    if kind is not None:
        cure = "connect the LATENT of an image or a video model"
        raise InputError("samples", latent.get("type", "coords"), f"this latent holds {kind}", cure)
    samples: Any = latent.get("samples")
    notes = []
    if not hasattr(samples, "shape"):
        held = "no samples" if samples is None else f"samples of type {type(samples).__name__}"
        raise InputError("samples", held, "a latent holds a tensor of that name", "connect a LATENT output")
    if getattr(samples, "is_nested", False):
        parts = samples.unbind()
        samples = parts[0]
        if len(parts) > 1:
            notes.append("the latent holds sound too, which was left out: only its video was used")
    check_kind("samples", samples)
    return LatentInput(samples, notes, sorted(set(latent) - {"samples", "type", *PADDING_KEYS}))


def start_from(latent: Mapping[str, Any], family: Family, request: SampleRequest) -> tuple[SampleRequest, list[str]]:
    """Return a request that starts from a LATENT as ComfyUI's KSampler would.

    Args:
        family: as it is known before the model is loaded.
        request: what the sampler's widgets say.

    Returns:
        The request with the latent, and what the latent says about batch, seed and size; and notes for the report.

    Raises:
        InputError: it holds sound or a shape.
    """
    given = read(latent)
    samples, notes = given.samples, given.notes
    if samples.ndim in (4, 5) and 0 not in samples.shape:  # the engine says what is wrong with others
        if samples.ndim == 5 and not family.video:
            samples, note = first_frame(samples, f"{family.name} makes pictures")
            notes += [note] if note else []
        elif samples.ndim == 4 and family.video:
            samples = samples.unsqueeze(2)
        if family.known and not samples.any():
            samples, request = _fill_empty(samples, latent, family, request)
        if family.video and not request.num_frames and samples.shape[2] > 1:
            frames = family.clip_frames(samples.shape[2])
            request = replace(request, num_frames=frames)
            notes.append(f"num_frames: {frames}, as the latent has them")
        request = _count(samples.shape[0], latent.get("batch_index"), request, notes)
    request = _with_mask(latent.get("noise_mask"), request, notes)
    others = [name for name in given.unused if name not in FOR_SAMPLING]
    if others:
        notes.append(f"of the latent, {', '.join(others)} had no use here")
    return replace(request, latent=samples), notes


def _fill_empty(
    samples: torch.Tensor, latent: Mapping[str, Any], family: Family, request: SampleRequest
) -> tuple[torch.Tensor, SampleRequest]:
    """Return an empty latent of any model with the family's channels, in the size in pixels that it had."""
    shape = list(samples.shape)
    shape[1] = family.latent_channels or shape[1]
    stride = latent.get("downscale_ratio_spacial")
    if stride:
        # In pixels too: only the loaded model knows its stride for certain (Wan 2.2 has two).
        multiple = family.size_multiple
        height, width = (max(1, edge * stride // multiple) * multiple for edge in samples.shape[-2:])
        request = replace(request, width=request.width or width, height=request.height or height)
        shape[-2:] = (max(1, round(edge * stride / family.latent_stride)) for edge in shape[-2:])
    if family.video:
        frames = latent.get("downscale_ratio_temporal") or family.temporal_stride
        shape[2] = max(1, round(shape[2] * frames / family.temporal_stride))
    return samples.new_zeros(shape), request


def _count(items: int, index: Sequence[int] | None, request: SampleRequest, notes: list[str]) -> SampleRequest:
    """Return the request for a latent of so many items, whose places in their original batch are `index`."""
    if items > MAX_BATCH:
        cure = "take some of them out with Latent From Batch, and run it several times"
        raise InputError("latent", f"{items} items", f"a run makes {MAX_BATCH} at most", cure)
    if items > 1 and request.batch == 1:
        request = replace(request, batch=items)
        notes.append(f"batch_size: {items}, as many as the latent holds")
    elif request.strength < 1 and 1 < items != request.batch:
        used = f"only the first {request.batch} were used" if request.batch < items else "some were used repeatedly"
        notes.append(f"of the latent's {items} items, {used}: batch_size = {request.batch}")
    numbers = [] if index is None else [int(number) for number in index]
    if not numbers:
        return request
    first = numbers[0]
    if numbers != list(range(first, first + len(numbers))):
        notes.append(f"batch_index {numbers} ignored: item i starts from seed + i")
    elif first:
        request = replace(request, seed=(request.seed + first) % SEEDS)
        notes.append(f"batch_index: the latent begins with item {first}, which starts from seed + {first}")
    return request


def _with_mask(mask: Any, request: SampleRequest, notes: list[str]) -> SampleRequest:
    """Return the request with the noise mask of a latent; one that is 1 everywhere keeps nothing, and is no condition.

    Args:
        mask: [B, 1, H, W], or [B, 1, T, H, W] of which the first clip's is used.
    """
    if mask is None:
        return request
    part = mask.unbind()[0] if getattr(mask, "is_nested", False) else mask
    if not hasattr(part, "shape") or (part.numel() and bool((part == 1).all())):
        return request
    if part.ndim == 5 and bool((part != part[:1]).any()):
        notes.append(f"noise_mask: that of the first of its {len(part)} clips holds for all of them")
    planes = (part[0] if part.ndim == 5 else part).reshape(-1, *part.shape[-2:])
    return replace(request, conditions=(*request.conditions, MaskCondition(planes, of_latent=True)))

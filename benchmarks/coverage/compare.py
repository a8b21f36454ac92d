"""Holding a result of the pack against what a bare call returned, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...fallback import largest_difference
from ...pipelines.classes.outputs import SOUNDS
from ...pipelines.types import SampleResult

_ASIDE = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")


def leaves(value: Any) -> list[torch.Tensor]:
    """Every array in it, float32 on the CPU, whatever it is nested in."""
    import numpy
    from PIL.Image import Image

    if isinstance(value, Image):
        value = numpy.array(value)
        value = value / numpy.float32(255) if value.dtype == numpy.uint8 else value
    if isinstance(value, numpy.ndarray):
        if value.dtype == object:
            return [leaf for each in value for leaf in leaves(each)]
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        return [value.detach().float().cpu()]
    if isinstance(value, Mapping):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in leaves(each)]
    return []


def is_equal(result: SampleResult, expected: Any) -> bool:
    """Whether the pictures, and the sound where there is any, hold the same numbers in the same order."""
    return not difference(result, expected)


def difference(result: SampleResult, expected: Any) -> str:
    """What differs, in words; "" where nothing does."""
    parts = [(name, value) for name, value in _parts(expected) if leaves(value)]
    sounds = [value for name, value in parts if name in SOUNDS]
    pictures = [_as_shown(name, value) for name, value in parts if name not in SOUNDS]
    found = []
    if result.frames is not None:
        found.append(_unlike("picture", result.frames, pictures[0] if pictures else None))
    elif result.audio is not None:
        found.append(_unlike("sound", result.audio["waveform"], (sounds or pictures or [None])[0]))
    else:
        found.append("there is no result")
    if result.frames is not None and result.audio is not None:
        found.append(_unlike("sound", result.audio["waveform"], sounds[0] if sounds else None))
    return ", ".join(filter(None, found))


def _as_shown(name: str, value: Any) -> Any:
    """Maps as the pack shows them: grey as three equal channels, directions from -1 to 1 as 0 to 1."""
    if name != "prediction":
        return value
    (array,) = leaves(value)
    array = array / 2 + 0.5 if bool((array < 0).any()) else array
    return array.expand(*array.shape[:-1], 3) if array.shape[-1] == 1 else array


def _parts(expected: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(expected, Mapping):
        yield from ((name, value) for name, value in expected.items() if name not in _ASIDE and value is not None)
    elif isinstance(expected, tuple):
        yield from ((f"part {index}", value) for index, value in enumerate(expected) if value is not None)
    else:
        yield "result", expected


def _unlike(what: str, ours: torch.Tensor, theirs: Any) -> str:
    arrays = leaves(theirs)
    if not arrays:
        return f"bare diffusers gives no {what}"
    count = sum(array.numel() for array in arrays)
    if count != ours.numel():
        return f"{what}: {ours.numel()} numbers instead of {count}"
    if what == "picture" and len(arrays) == 1 and arrays[0].ndim >= 4 and arrays[0].shape[-1] in (3, 4):
        rows = arrays[0].reshape(ours.shape) if arrays[0].shape[-3:] == ours.shape[-3:] else None
        if rows is None:
            return f"{what}: shape {list(ours.shape)} instead of {list(arrays[0].shape)}"
        return _largest(what, ours, rows)
    # In another order of axes, channels first say: the same numbers are the same picture.
    flat = torch.cat([array.reshape(-1) for array in arrays])
    return _largest(what, ours.reshape(-1).sort().values, flat.sort().values)


def _largest(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> str:
    ours, theirs = ours.float().nan_to_num(0, 1, 0), theirs.float().nan_to_num(0, 1, 0)
    if torch.equal(ours, theirs):
        return ""
    return f"{what} differs by up to {largest_difference(ours, theirs):.3g}"

"""The check a fused operation must pass before it is used: run on a small input, and agree with its eager twin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...fallback import describe
from . import eager
from .eager import Moments
from .padded import Border, Padded

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest difference allowed, relative to the largest value: a few units in the last place."""


SIZES = ((3, 5, 7), (1, 61, 71))
"""Frames, rows and columns of the inputs, no multiple of any block size. The second, for cards alone, has more cells
than a block: kernels are compiled anew for small and for large planes."""


def probe(
    operation: str,
    function: Callable[..., Any],
    device: str,
    dtype: torch.dtype,
    channels: int,
    channels_last: bool,
    *,
    pads: bool = False,
) -> str:
    """Return why `function` must not be used for this kind of input, or "".

    Args:
        pads: it fills padded buffers whole, and has to prove it.
    """
    try:
        on_card = torch.device(device).type == "cuda"
        kinds = (
            (number, *case)
            for number, size in enumerate(SIZES if on_card else SIZES[:1])
            for case in _cases(operation, size, device, dtype, channels, channels_last)
        )
        for number, arguments, options in kinds:
            there = 1.0 if options.get("add") else float("nan")
            place = {"out": torch.full_like(arguments[0], there)} if operation == "put" else {}
            expected = getattr(eager, operation)(*arguments, **options, **place)
            places = list(_places(expected, channels_last, there, pads=pads and "add" not in options))
            if on_card:  # each size and place is compiled for: small inside, large whole
                places = places[number : number + 1] or places[:1]
            for out, right in places:
                made = function(*arguments, **options, **({} if out is None else {"out": out}))
                made = out.buffer if isinstance(out, Padded) else made
                difference = _difference(made, right)
                if not difference <= TOLERANCE.get(dtype, 0.0):  # NaN fails too
                    return f"it differs from the eager operation by {difference:.1e} of the largest value"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a kernel may fail in any way; the eager twin takes over
        log.info("%s is switched off for %s on %s: %s", operation, dtype, device, error)
        return describe(error)
    return ""


def _cases(
    operation: str, size: tuple[int, ...], device: str, dtype: torch.dtype, channels: int, channels_last: bool
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs of that kind and size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, *size, generator=generator).to(device, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    groups = 32 if channels % 32 == 0 else 1
    weight = torch.randn(channels, generator=generator).to(device, dtype)
    if operation == "group_norm_statistics":
        yield (x, groups), {}
        yield (x, groups), {"input_bias": weight}
    elif operation == "put":
        yield (x,), {}
        yield (x,), {"bias": weight}
        yield (x,), {"bias": weight, "add": True}
    elif operation == "pixel_shuffle_3d":
        for z in (z for z in (1, 2) if channels % (4 * z) == 0):
            bias = torch.randn(channels, generator=generator).to(device, dtype)
            if z == 1:
                yield (x, z), {"residual": eager.pixel_shuffle_3d(x, z).flip(2)}
            yield (x, z), {"drop_head": True, "bias": bias}
    elif operation == "rms_norm_silu":
        yield (x, weight), {}
        yield (x, weight, weight.flip(0)), {"activation": False}
    else:
        arguments = (x, weight, weight.flip(0), groups, 1e-6)
        given = eager.group_norm_statistics(x, groups).statistics(1e-6)
        yield arguments, {}
        yield arguments, {"activation": False}
        yield arguments, {"statistics": given}
        yield arguments, {"input_bias": weight}


def _places(
    expected: torch.Tensor | Moments, channels_last: bool, there: float, *, pads: bool
) -> Iterator[tuple[torch.Tensor | Padded | None, torch.Tensor | Moments]]:
    """The places where an operation writes, each with what has to be there: the inside of a padded buffer, and, where
    it fills such a buffer whole, all of it. Buffers begin full of `there`: NaN, unless it is added to."""
    if not isinstance(expected, torch.Tensor):
        yield None, expected
        return
    batch, channels, frames, height, width = expected.shape
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    shape = (batch, channels, frames + 2, height + 2, width + 2)

    def blank() -> Padded:
        buffer = torch.empty(shape, dtype=expected.dtype, device=expected.device, memory_format=layout)
        return Padded(buffer.fill_(there), Border(1, 1, 1, 1), 2)

    yield blank().inside, expected
    if pads:
        right = blank()
        right.inside.copy_(expected)
        right.surround()
        yield blank(), right.buffer


def _difference(actual: torch.Tensor | Moments, expected: torch.Tensor | Moments) -> float:
    """Largest difference relative to the largest expected value."""
    if isinstance(expected, Moments):
        return sum(_difference(a, e) for a, e in zip(actual[1:], expected[1:], strict=True))  # keeps a NaN; max may not
    if isinstance(actual, Moments) or actual.shape != expected.shape:
        return float("inf")
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))

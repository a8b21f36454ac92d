"""The repeated units of the networks as compiled code: each kind once, for all sizes.

Whole blocks are dear to compile, and most of a block is convolutions, which no compiler makes faster. What a compiler
does well is what lies between them: statistics, norm and activation. It is the same everywhere, so it is compiled once,
with the number of channels and all sizes open, and serves every layer, slice, tile and strip.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch

from .kernels import Kernels, Moments, Padded, eager

UNITS = ("group_norm_silu", "group_norm_statistics")
"""Those operations of `Kernels` that are compiled. The rest are copies, for which nothing can be gained."""
NAME = "torch.compile"

Run = Callable[[Callable[[], Any]], Any]
"""Calls a function that may compile."""

_units: dict[str, Callable[..., Any]] = {}
_lock = threading.Lock()


class CompiledKernels(Kernels):
    """The operations, those of `UNITS` as compiled code.

    Args:
        plain: as the job has them; it runs the others, and is told what ran.
        options: keyword arguments of torch.compile.
        run: through which compiled code is called.
    """

    def __init__(self, plain: Kernels, options: Mapping[str, Any], run: Run) -> None:
        super().__init__(plain.choice)
        self.used = plain.used
        self._options = options
        self._run_compiled = run

    def _run(self, operation: str, x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if operation not in UNITS or x.device.type == "meta":
            return super()._run(operation, x, *arguments, **options)
        self.used[operation] = NAME
        if operation == "group_norm_statistics":
            return self._statistics(x, *arguments)
        return self._norm(x, *arguments, **options)

    def _norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, **options: Any
    ) -> torch.Tensor:
        out = options["out"]
        inside = out.inside if isinstance(out, Padded) else torch.empty_like(x) if out is None else out
        statistics = options["statistics"]
        unit = _unit(_norm_frame, self._options)
        # Parameters would tie the code to their number of channels.
        affine = weight.detach(), bias.detach()

        def frames() -> None:
            for item, frame in product(range(x.shape[0]), range(x.shape[2])):
                given = (None, None) if statistics is None else (s[item, frame] for s in statistics)
                one = x[item, :, frame], inside[item, :, frame]
                unit(*one, *affine, *given, groups, eps, options["activation"])

        with _any_sizes():
            self._run_compiled(frames)
        if isinstance(out, Padded):
            out.surround()
        return inside

    def _statistics(self, x: torch.Tensor, groups: int) -> Moments:
        unit = _unit(_frame_moments, self._options)
        mean = x.new_empty((x.shape[0], x.shape[2], groups), dtype=torch.float32)
        deviations = torch.empty_like(mean)

        def frames() -> None:
            for item, frame in product(range(x.shape[0]), range(x.shape[2])):
                mean[item, frame], deviations[item, frame] = unit(x[item, :, frame], groups)

        with _any_sizes():
            self._run_compiled(frames)
        return Moments(x.shape[1] // groups * x.shape[3] * x.shape[4], mean, deviations)


def _norm_frame(
    x: torch.Tensor,
    out: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    groups: int,
    eps: float,
    activation: bool,
) -> None:
    """Norm and activation of one frame [C, H, W] into another, with statistics [groups] if they are given.

    One frame, because the memory layout of a clip of one item and few frames has accidents that code would rely on.
    """
    given = None if mean is None or rstd is None else eager.Statistics(mean[None, None], rstd[None, None])
    clip, target = x[None, :, None], out[None, :, None]
    eager.group_norm_silu(clip, weight, bias, groups, eps, statistics=given, activation=activation, out=target)


def _frame_moments(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sum of squared deviations, each [groups], of a frame [C, H, W]."""
    moments = eager.group_norm_statistics(x[None, :, None], groups)
    return moments.mean[0, 0], moments.deviations[0, 0]


def _unit(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """`function`, compiled once in this process for each choice of options; for any size unless they say otherwise."""
    key = json.dumps([function.__name__, sorted(options.items())], default=repr)
    with _lock:
        if key not in _units:
            chosen = {"fullgraph": True, **options}
            if chosen.get("dynamic") is None:
                chosen["dynamic"] = True
            _units[key] = torch.compile(function, **chosen)
        return _units[key]


@contextlib.contextmanager
def _any_sizes() -> Iterator[None]:
    """Sizes that happen to be equal stay independent: code that is made for a square serves any rectangle."""
    from torch.fx.experimental import _config

    with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        yield

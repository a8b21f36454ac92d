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

from .kernels import Kernels, Moments, Padded, Statistics, eager

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
            return self._statistics(x, *arguments, **options)
        return self._norm(x, *arguments, **options)

    def _norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        groups: int,
        eps: float,
        *,
        input_bias: torch.Tensor | None,
        statistics: Statistics | None,
        activation: bool,
        out: torch.Tensor | Padded | None,
    ) -> torch.Tensor:
        inside = out.inside if isinstance(out, Padded) else torch.empty_like(x) if out is None else out
        known = statistics or self._statistics(x, groups, input_bias=input_bias).statistics(eps)
        affine = eager.scale_and_shift(known, weight, bias, input_bias)
        scale, shift = (t[..., 0, 0].transpose(1, 2) for t in affine)
        # Of whole memory, where a view of a view would tie the code to how many frames there are.
        scale, shift = scale.detach().contiguous(), shift.detach().contiguous()
        unit = _unit(_affine_frame, self._options)

        def frames() -> None:
            for item, frame in product(range(x.shape[0]), range(x.shape[2])):
                one = x[item, :, frame], inside[item, :, frame]
                unit(*one, scale[item, frame], shift[item, frame], activation)

        with _any_sizes():
            self._run_compiled(frames)
        if isinstance(out, Padded):
            out.surround()
        return inside

    def _statistics(self, x: torch.Tensor, groups: int, *, input_bias: torch.Tensor | None) -> Moments:
        batch, channels, count = x.shape[:3]
        unit = _unit(_channel_moments, self._options)
        mean = x.new_empty((batch, count, channels), dtype=torch.float32)
        deviations = torch.empty_like(mean)

        def frames() -> None:
            for item, frame in product(range(batch), range(count)):
                mean[item, frame], deviations[item, frame] = unit(x[item, :, frame])

        with _any_sizes():
            self._run_compiled(frames)
        if input_bias is not None:  # it moves the means, and no deviation from them
            mean += input_bias.float()
        return _of_groups(mean, deviations, groups, x.shape[3] * x.shape[4])


def _affine_frame(
    x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, activation: bool
) -> None:
    """`x * scale + shift`, then SiLU, of one frame [C, H, W] into another; scale and shift are float32 [C].

    One frame, because the memory layout of a clip of one item and few frames has accidents that code would rely on.
    """
    y = torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None])
    out.copy_(torch.nn.functional.silu(y) if activation else y)


def _channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sum of squared deviations, each float32 [C], of every channel of a frame [C, H, W].

    Of channels and not of groups: with their number open, a compiler would find the group of each value by a division,
    which makes code ten times slower where channels are innermost in memory. In two passes: see `eager`.
    """
    values = x.float()
    mean = values.mean((1, 2))
    return mean, (values - mean[:, None, None]).square().sum((1, 2))


def _of_groups(mean: torch.Tensor, deviations: torch.Tensor, groups: int, cells: int) -> Moments:
    """Moments of each group from those of its channels, both [B, T, C], of `cells` values each."""
    means = mean.unflatten(-1, (groups, -1))
    middle = means.mean(-1)
    between = (means - middle.unsqueeze(-1)).square().sum(-1) * cells
    size = mean.shape[-1] // groups * cells
    return Moments(size, middle, deviations.unflatten(-1, (groups, -1)).sum(-1) + between)


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

"""Measures once for each shape which convolution runs fastest, and saves the choice.

Every candidate is first checked against PyTorch's own conv3d on the very input at hand; one that fails, or whose result
differs by more than rounding, is out for that shape, with the reason kept. What was chosen can be saved in a file
for the same card and the same versions of everything that decides the speed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...fallback import describe
from . import comfy_kitchen
from .probe import TOLERANCE
from .saved_choices import SavedChoices

__all__ = ["CANDIDATES", "Candidate", "ConvChoice", "ConvKey", "cuda_seconds", "rules"]

log = logging.getLogger(__name__)

Stride = tuple[int, ...]
Convolution = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None", Stride], torch.Tensor]
Timer = Callable[[Callable[[], torch.Tensor]], float]
"""Seconds that a function takes."""

MARGIN = 0.03
"""Another convolution than PyTorch's own must be faster by this fraction to be chosen."""
HALF_SUM_TOLERANCE = 0.1
"""Allowed to float16 sums, relative to the largest value: whoever asks for them asks for that."""


class Rules(NamedTuple):
    """What may be chosen. Attributes: alternatives: others than conv3d at all; half_sums: sums in float16."""

    alternatives: bool = False
    half_sums: bool = False


NOTHING_ELSE = Rules()
_rules: ContextVar[Rules] = ContextVar("convolution_rules", default=NOTHING_ELSE)


class ConvKey(NamedTuple):
    """The kind of convolution that a choice holds for.

    Attributes:
        device, dtype: as text.
        input, weight, stride: shapes and strides of the convolution; the input holds its padding already.
        channels_last: memory layout of the input.
        half_sums: whether float16 sums are allowed.
    """

    device: str
    dtype: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: Stride
    channels_last: bool
    half_sums: bool


@dataclass(frozen=True)
class Candidate:
    """One way to convolve.

    Attributes:
        run: (x, weight, bias, stride) -> result, without padding.
        suits: whether it may be tried for a key at all.
        tolerance: largest difference from conv3d relative to the largest value; None = rounding of the dtype.
    """

    run: Convolution
    suits: Callable[[ConvKey], bool]
    tolerance: float | None = None


def conv2d_sum(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Stride) -> torch.Tensor:
    """conv3d as one 2-D convolution per tap in time, summed. Frames go into the batch; in channels-last as a view."""
    batch, _, frames, _, _ = x.shape
    taps, (step, *plane) = weight.shape[2], stride
    made = (frames - taps) // step + 1
    total: torch.Tensor | None = None
    for tap in range(taps):
        folded = x[:, :, tap : tap + step * (made - 1) + 1 : step].transpose(1, 2).flatten(0, 1)
        part = F.conv2d(folded, weight[:, :, tap], None if tap else bias, tuple(plane))
        total = part if total is None else total.add_(part)
    assert total is not None, "a kernel has at least one tap"  # noqa: S101 - for the type checker
    return total.unflatten(0, (batch, made)).transpose(1, 2)


CANDIDATES: Mapping[str, Candidate] = {
    # Several taps are summed in the dtype of the result: in half precision that would round more often than conv3d.
    "conv2d_sum": Candidate(conv2d_sum, lambda key: key.weight[2] == 1 or key.dtype == "float32"),
    "comfy_kitchen_fp16": Candidate(
        comfy_kitchen.fp16_conv3d, lambda key: key.half_sums and key.dtype == "float16", HALF_SUM_TOLERANCE
    ),
}
"""The alternatives to PyTorch's conv3d."""


@contextmanager
def rules(*, alternatives: bool, half_sums: bool = False) -> Iterator[None]:
    """Inside the `with` block, and in this thread, allow what is said; outside of any, conv3d runs.

    Args:
        alternatives: convolutions that give what conv3d gives, but for rounding.
        half_sums: those that sum in float16 as well.
    """
    token = _rules.set(Rules(alternatives, half_sums))
    try:
        yield
    finally:
        _rules.reset(token)


class ConvChoice:
    """Convolves by the fastest candidate of each shape.

    Args:
        conv3d: PyTorch's own convolution: what runs unless another is faster, and what others are checked against.
        timer: measures seconds; None measures on the card.
        candidates: the alternatives by name.
        saved: where choices outlive the process; None measures anew in each.
    """

    CONV3D = "conv3d"

    def __init__(
        self,
        conv3d: Convolution,
        timer: Timer | None = None,
        candidates: Mapping[str, Candidate] = CANDIDATES,
        saved: SavedChoices | None = None,
    ) -> None:
        self._conv3d = conv3d
        self._timer = timer or cuda_seconds
        self._candidates = candidates
        self._saved = saved
        self._chosen: dict[ConvKey, str] = {}
        self._guard = threading.RLock()
        self.seconds: dict[ConvKey, dict[str, float]] = {}
        """Seconds measured in this process, by key and name."""
        self.refusals: dict[tuple[str, str], str] = {}
        """Why a candidate was refused, by (name, dtype and weight shape)."""

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Stride = (1, 1, 1)
    ) -> torch.Tensor:
        """Convolve [B, I, T, H, W] to [B, O, T', H', W'] without padding."""
        allowed = _rules.get()
        if not allowed.alternatives:
            return self._conv3d(x, weight, bias, stride)
        key = ConvKey(
            str(x.device), str(x.dtype).removeprefix("torch."), tuple(x.shape), tuple(weight.shape), stride,
            x.stride(1) == 1, allowed.half_sums,
        )  # fmt: skip
        name = self._chosen.get(key)
        if name is None:
            if _may_not_measure():
                return self._conv3d(x, weight, bias, stride)
            with self._guard:
                try:
                    with torch.cuda.device_of(x):  # time is taken on the current card
                        name = self._chosen.get(key) or self._choose(key, x, weight, bias)
                except torch.OutOfMemoryError as error:  # a comparison needs two results at once
                    self._refuse("a comparison", key, error)
                    name = self.CONV3D
                self._chosen[key] = name
        if name == self.CONV3D:
            return self._conv3d(x, weight, bias, stride)
        try:
            return self._candidates[name].run(x, weight, bias, stride)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # it worked when it was chosen; a card's libraries fail with RuntimeError
            self._refuse(name, key, error)
            self._chosen[key] = self.CONV3D
        return self._conv3d(x, weight, bias, stride)

    def used(self) -> dict[str, int]:
        """Return the number of shapes that each convolution was chosen for."""
        names = list(self._chosen.values())
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def _choose(self, key: ConvKey, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str:
        suitable = {name: c for name, c in self._candidates.items() if c.suits(key)}
        if not suitable:
            return self.CONV3D
        former = self._saved.get(key) if self._saved else None
        if former == self.CONV3D:
            return former
        if former in suitable:
            suitable = {former: suitable[former]}
        expected = self._conv3d(x, weight, bias, key.stride)
        working = {
            name: candidate
            for name, candidate in suitable.items()
            if self._agrees(name, candidate, key, expected, x, weight, bias)
        }
        del expected
        if former in working:
            return former
        seconds = {self.CONV3D: self._timer(lambda: self._conv3d(x, weight, bias, key.stride))} if working else {}
        for name, candidate in working.items():
            seconds[name] = self._timer(lambda run=candidate.run: run(x, weight, bias, key.stride))  # type: ignore[misc]
        self.seconds[key] = seconds
        best = min(working, key=lambda name: seconds[name], default=self.CONV3D)
        if best != self.CONV3D and seconds[best] >= seconds[self.CONV3D] * (1 - MARGIN):
            best = self.CONV3D
        if self._saved and seconds:
            self._saved.put(key, best)
        return best

    def _agrees(
        self,
        name: str,
        candidate: Candidate,
        key: ConvKey,
        expected: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> bool:
        """Return whether the candidate runs and gives what conv3d gives."""
        try:
            actual = candidate.run(x, weight, bias, key.stride)
            if actual.shape != expected.shape:
                raise ValueError(f"it gives {tuple(actual.shape)} instead of {tuple(expected.shape)}")
            low, high = torch.aminmax(expected)
            largest = float(torch.maximum(-low, high))
            difference = float(actual.sub_(expected).abs_().max()) / max(largest, 1e-30)
            if not difference <= (candidate.tolerance or TOLERANCE.get(x.dtype, 0.0)):  # NaN fails too
                raise ValueError(f"it differs by {difference:.1e} of the largest value")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a library may fail in any way; conv3d remains
            self._refuse(name, key, error)
            return False
        return True

    def _refuse(self, name: str, key: ConvKey, error: Exception) -> None:
        reason = describe(error)
        log.info("%s is not used for %s: %s", name, key, reason)
        self.refusals[name, f"{key.dtype} {'x'.join(map(str, key.weight))}"] = reason


def cuda_seconds(function: Callable[[], torch.Tensor], runs: int = 5) -> float:
    """Median seconds of `function` on the current card, after one run that is not counted.

    It has the card for itself: other streams, which may work on another tile, come to an end first.
    """
    function()
    torch.cuda.synchronize()
    times = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return median(times)


def _may_not_measure() -> bool:
    """While a CUDA graph is captured, nothing can be timed."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

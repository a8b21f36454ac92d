"""The trial of a split call, the gates around denoisers, and what "auto" makes of the time that steps take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from fastdiffusers.cluster.parallel.probation import Probation
from fastdiffusers.cluster.parallel.trial import SAME, bound_for, difference, kind_of_call, tried
from fastdiffusers.optimizations.tuning.compile_trial import AT_MOST, ENOUGH


class Alone:
    """A group of one."""

    def __init__(self, elsewhere: float = 0.0) -> None:
        self.elsewhere = elsewhere

    def most(self, value: float) -> float:
        return max(value, self.elsewhere)


class Scale(nn.Module):
    """Gives its argument times `by`; split calls are off by `off`."""

    def __init__(self) -> None:
        super().__init__()
        self.off = 0.0

    def forward(self, x: torch.Tensor, fail: bool = False) -> tuple[torch.Tensor]:
        if self.off and fail:
            raise ValueError("Tensor size must be divisible")
        return (x + self.off,)

    @contextmanager
    def split_by(self, off: float) -> Iterator[None]:
        self.off = off
        try:
            yield
        finally:
            self.off = 0.0


@pytest.mark.parametrize(("off", "good"), [(0.0, True), (5e-6, True), (1e-3, False), (math.nan, False)])
def test_a_split_call_is_taken_within_the_bound(off: float, good: bool) -> None:
    model = Scale()
    verdict = tried(model, (torch.ones(4),), {}, lambda: model.split_by(off), Alone())
    assert (verdict.reason == "") is good
    assert model.off == 0.0


def test_one_process_that_is_off_is_enough_for_all() -> None:
    verdict = tried(Scale(), (torch.ones(4),), {}, nullcontext, Alone(elsewhere=0.5))
    assert verdict.reason == "a split call was 0.5 off, where 1e-05 is taken"


def test_a_failure_is_a_reason_and_out_of_memory_travels() -> None:
    model = Scale()
    verdict = tried(model, (torch.ones(4),), {"fail": True}, lambda: model.split_by(1.0), Alone())
    assert verdict.reason == "a split call failed: ValueError: Tensor size must be divisible"

    @contextmanager
    def full() -> Iterator[None]:
        raise torch.OutOfMemoryError("full")
        yield

    with pytest.raises(torch.OutOfMemoryError):
        tried(model, (torch.ones(4),), {}, full, Alone())


def test_differences_are_relative_and_shapes_count() -> None:
    ones = torch.ones(8)
    assert difference((ones * 100,), (ones * 100 + 1e-3,)) == pytest.approx(1e-5, rel=0.05)
    assert difference({"sample": ones}, {"sample": ones[:4]}) == math.inf
    assert difference((ones, ones), (ones,)) == math.inf
    assert difference((), ()) == math.inf
    half = ones.bfloat16()
    assert difference((half * 256,), (half * 258,)) == pytest.approx(2 / 256)


def test_the_bound_for_16_bits_holds_for_sums_that_are_rounded_otherwise() -> None:
    """A residual stream of as many sums, rounded each time, in two orders of the parts of every sum."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        for layers in (4, 57):
            parts = torch.randn(2 * layers, 3, 4096, generator=generator).to(dtype)
            one = two = torch.randn(4096, generator=generator).to(dtype)
            for a, b, c in parts:
                one, two = one + (a + (b + c)), ((two + a) + b) + c
            apart = difference((one,), (two,))
            assert 0 < apart < bound_for(dtype, layers)
            assert bound_for(dtype, layers) < 0.1  # another plan than the right one is further off
    assert bound_for(torch.float32, 57) == SAME


def test_calls_are_of_a_kind_by_shape_type_and_place() -> None:
    x = torch.ones(2, 3)
    assert kind_of_call((x,), {"t": [x]}) == kind_of_call((x + 1,), {"t": [x * 2]})
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x.half(),), {"t": [x]}),
        ((x[:1],), {"t": [x]}),
        ((x,), {"t": [x, x]}),
        ((x,), {"s": [x]}),
        ((x, x), {}),
    ]
    kinds = {kind_of_call((x,), {"t": [x]}), *(kind_of_call(*each) for each in others)}
    assert len(kinds) == 6


def steps(probation: Probation, count: int, whole: float, split: float) -> list[bool]:
    """How so many steps of a run were made."""
    probation.begin()
    made = []
    for _ in range(count):
        made.append(probation.wants_split)
        probation.on_step(split if made[-1] else whole, made[-1])
    return made


def test_auto_keeps_split_steps_where_they_are_faster() -> None:
    probation = Probation()
    made = steps(probation, 12, 1.0, 0.6)
    assert made == [False] * (1 + ENOUGH) + [True] * (12 - 1 - ENOUGH)
    assert probation.verdict == "faster"
    assert probation.reason == "faster: 1 s a step on one card, 0.6 s on all"
    assert all(steps(probation, 4, 1.0, 0.6))


@pytest.mark.parametrize(("split", "verdict"), [(1.4, "slower"), (1.0, "noise")])
def test_auto_goes_back_where_they_are_not(split: float, verdict: str) -> None:
    probation = Probation()
    made = steps(probation, 30, 1.0, split)
    assert not made[-1]
    assert probation.verdict == verdict
    assert sum(made) == 1 + (ENOUGH if verdict == "slower" else AT_MOST)
    assert not any(steps(probation, 4, 1.0, split))


def test_auto_goes_on_in_the_next_run() -> None:
    probation = Probation()
    assert not any(steps(probation, 3, 1.0, 0.5))
    assert steps(probation, 3, 1.0, 0.5) == [False, False, True]
    assert probation.verdict == ""
    steps(probation, 4, 1.0, 0.5)
    assert probation.verdict == "faster"


def test_a_step_with_a_trial_in_it_does_not_count() -> None:
    probation = Probation()
    probation.begin()
    probation.on_step(1.0, split=False)
    probation.on_step(9.0, split=False, counts=False)
    probation.on_step(1.0, split=False)
    assert probation.whole == [1.0]
    probation.failed()
    assert not probation.wants_split


def test_auto_does_what_was_found_before_it_began_until_calls_cannot_be_split() -> None:
    for verdict, split in (("faster", True), ("slower", False), ("noise", False)):
        probation = Probation()
        probation.recall(verdict, "as on another day")
        assert set(steps(probation, 4, 1.0, 2.0)) == {split}
        assert (probation.verdict, probation.reason, probation.kept) == (verdict, "as on another day", True)
    probation.failed()
    assert probation.reason == "it cannot be had"
    assert not probation.wants_split

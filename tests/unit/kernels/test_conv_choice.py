"""The choice among convolutions: what is fastest and right is taken, once per shape, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.vae.kernels import conv_choice
from fastdiffusers.vae.kernels.conv_choice import CANDIDATES, Candidate, ConvChoice, conv2d_sum, rules
from fastdiffusers.vae.kernels.saved_choices import SavedChoices

Run = Callable[..., torch.Tensor]
KEY = ("cpu", "float32", (1, 4, 3, 5, 5))


def always(key: object) -> bool:
    return True


def plain(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, int, int]
) -> torch.Tensor:
    return F.conv3d(x, weight, bias, stride)


class Clock:
    """Gives out the seconds it was told, in the order of the measurements, and counts them."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def __call__(self, function: Callable[[], torch.Tensor]) -> float:
        function()
        return self.seconds.pop(0)


class Counted:
    """A convolution that counts its calls, and may be wrong or break."""

    def __init__(self, wrong_by: float = 0.0, breaks: type[Exception] | None = None, after: int = 0) -> None:
        self.calls = 0
        self.wrong_by, self.breaks, self.after = wrong_by, breaks, after

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: object
    ) -> torch.Tensor:
        self.calls += 1
        if self.breaks and self.calls > self.after:
            raise self.breaks("no such kernel image")
        return F.conv3d(x, weight, bias, stride) + self.wrong_by


@pytest.fixture(autouse=True)
def _alternatives() -> Iterator[None]:
    with rules(alternatives=True):
        yield


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(s, generator=generator) for s in ((1, 4, 4, 5, 5), (6, 4, 3, 3, 3), (6,)))


def choice(other: Run, *seconds: float, saved: SavedChoices | None = None) -> ConvChoice:
    return ConvChoice(plain, Clock(*seconds), {"other": Candidate(other, always)}, saved)


def test_the_faster_one_is_chosen_once(case: tuple[torch.Tensor, ...]) -> None:
    other = Counted()
    choose = choice(other, 2.0, 1.0)
    for _ in range(3):
        assert torch.equal(choose(*case), plain(*case, (1, 1, 1)))
    assert choose.used() == {"other": 1}
    assert other.calls == 2 + 3  # checked, timed, then used
    assert next(iter(choose.seconds.values())) == {"conv3d": 2.0, "other": 1.0}


def test_hardly_faster_is_not_enough(case: tuple[torch.Tensor, ...]) -> None:
    choose = choice(Counted(), 1.0, 0.98)
    choose(*case)
    assert choose.used() == {"conv3d": 1}


def test_every_shape_is_measured_for_itself(case: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias = case
    choose = choice(Counted(), 2.0, 1.0, 1.0, 2.0)
    choose(x, weight, bias)
    choose(x[..., :4], weight, bias)
    assert choose.used() == {"other": 1, "conv3d": 1}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Counted(wrong_by=0.5), "differs by"),
        (Counted(wrong_by=float("nan")), "differs by nan"),
        (Counted(breaks=RuntimeError), "no such kernel image"),
        (Counted(breaks=NotImplementedError), "no such kernel image"),
        (lambda x, weight, bias, stride: x, "instead of"),
    ],
)
def test_what_is_wrong_or_breaks_is_never_used(case: tuple[torch.Tensor, ...], other: Run, reason: str) -> None:
    choose = choice(other)
    for _ in range(2):
        assert torch.equal(choose(*case), plain(*case, (1, 1, 1)))
    assert choose.used() == {"conv3d": 1}
    assert list(choose.refusals) == [("other", "float32 6x4x3x3x3")]
    assert reason in choose.refusals["other", "float32 6x4x3x3x3"]


def test_a_failure_after_the_choice_falls_back_for_good(case: tuple[torch.Tensor, ...]) -> None:
    other = Counted(breaks=RuntimeError, after=2)
    choose = choice(other, 2.0, 1.0)
    for _ in range(2):
        assert torch.equal(choose(*case), plain(*case, (1, 1, 1)))
    assert other.calls == 3
    assert choose.used() == {"conv3d": 1}
    assert "no such kernel image" in choose.refusals["other", "float32 6x4x3x3x3"]


def test_no_memory_for_a_comparison_means_conv3d(case: tuple[torch.Tensor, ...]) -> None:
    choose = choice(Counted(breaks=torch.OutOfMemoryError))
    assert torch.equal(choose(*case), plain(*case, (1, 1, 1)))
    assert choose.used() == {"conv3d": 1}


def test_out_of_memory_in_use_is_not_hidden(case: tuple[torch.Tensor, ...]) -> None:
    choose = choice(Counted(breaks=torch.OutOfMemoryError, after=2), 2.0, 1.0)
    with pytest.raises(torch.OutOfMemoryError):
        choose(*case)


def test_nothing_is_timed_while_a_graph_is_captured(
    case: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_choice, "_may_not_measure", lambda: True)
    other = Counted()
    choose = choice(other)
    choose(*case)
    assert other.calls == 0
    assert choose.used() == {}


def test_the_choice_outlives_the_process_for_the_same_versions(case: tuple[torch.Tensor, ...], tmp_path: Path) -> None:
    file = tmp_path / "below" / "convolutions.json"
    here, elsewhere = {"torch": "2.13"}, {"torch": "2.14"}
    choice(Counted(), 2.0, 1.0, saved=SavedChoices(file, here))(*case)
    again = choice(Counted(), saved=SavedChoices(file, here))
    again(*case)
    assert again.used() == {"other": 1}
    other_versions = choice(Counted(), 1.0, 2.0, saved=SavedChoices(file, elsewhere))
    other_versions(*case)
    assert other_versions.used() == {"conv3d": 1}


def test_what_was_remembered_is_still_checked(case: tuple[torch.Tensor, ...], tmp_path: Path) -> None:
    memory = SavedChoices(tmp_path / "convolutions.json", {})
    choice(Counted(), 2.0, 1.0, saved=memory)(*case)
    broken = choice(Counted(wrong_by=1.0), saved=memory)
    assert torch.equal(broken(*case), plain(*case, (1, 1, 1)))
    assert broken.used() == {"conv3d": 1}


@pytest.mark.parametrize("content", ["", "{", '{"format": 99, "entries": {"x": "y"}}', '["nonsense"]'])
def test_a_broken_file_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    file = tmp_path / "convolutions.json"
    file.write_text(content)
    memory = SavedChoices(file, {})
    assert memory.get(KEY) is None
    memory.put(KEY, "other")
    assert SavedChoices(file, {}).get(KEY) == "other"


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    memory = SavedChoices(tmp_path / "file" / "convolutions.json", {})
    memory.put(KEY, "other")
    assert memory.get(KEY) == "other"


@pytest.mark.parametrize("taps", [1, 2, 3])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_conv2d_sums_are_conv3d(taps: int, stride: tuple[int, int, int], last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 6, 7, 8, generator=generator)
    weight, bias = torch.randn(4, 5, taps, 3, 3, generator=generator), torch.randn(4, generator=generator)
    if last:
        x, weight = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, weight))
    for b in (bias, None):
        y, expected = (
            conv2d_sum(x, weight, b, stride),
            F.conv3d(x.double(), weight.double(), b if b is None else b.double(), stride),
        )
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    if last:
        assert y.transpose(1, 2).flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def tried(dtype: torch.dtype, taps: int) -> set[str]:
    """The candidates of the pack that may be tried for a convolution, by what `suits` says."""
    asked: set[str] = set()

    def refuse(name: str) -> Run:
        def run(*arguments: object) -> torch.Tensor:
            asked.add(name)
            raise RuntimeError("only asked")

        return run

    candidates = {name: Candidate(refuse(name), c.suits, c.tolerance) for name, c in CANDIDATES.items()}
    choose = ConvChoice(plain, Clock(), candidates)
    choose(torch.zeros(1, 8, 4, 4, 4, dtype=dtype), torch.zeros(8, 8, taps, 1, 1, dtype=dtype), None)
    return asked


def test_rounding_more_often_needs_to_be_asked_for() -> None:
    assert tried(torch.float32, 3) == {"conv2d_sum"}
    assert tried(torch.bfloat16, 3) == set()
    assert tried(torch.bfloat16, 1) == {"conv2d_sum"}
    assert tried(torch.float16, 3) == set()
    with rules(alternatives=True, half_sums=True):
        assert tried(torch.float16, 3) == {"comfy_kitchen_fp16"}
        assert tried(torch.bfloat16, 3) == set()
    assert tried(torch.float16, 3) == set()


def test_unless_allowed_nothing_but_conv3d_runs(case: tuple[torch.Tensor, ...]) -> None:
    other = Counted()
    choose = choice(other, 2.0, 1.0)
    with rules(alternatives=False):
        choose(*case)
    assert other.calls == 0
    choose(*case)
    assert choose.used() == {"other": 1}

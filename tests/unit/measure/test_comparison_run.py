"""A comparison from names to rows, around an engine of which only the clock is real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.comparison import run as comparing
from fastdiffusers.comparison.run import ComparisonRun, drawn_picture, with_picture, working
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.optimizations.tuning.candidates import Plan
from fastdiffusers.optimizations.tuning.meters import PeakMemory
from fastdiffusers.optimizations.tuning.store import Store
from fastdiffusers.pipelines.recognize import family_of, small
from fastdiffusers.pipelines.types import LoadKey, PipelineHandle, SampleRequest, SampleResult
from fastdiffusers.report import OptimizationRecord, OptimizationReport

HANDLE = PipelineHandle(LoadKey("tiny:flux", identity="seed 0", dtype="float32", device="cpu"), memory_mode="gpu")
FAMILY = small(family_of("FluxPipeline"))


class Engine:
    """`generate` and the cache, on a clock of their own: seconds per step by setting."""

    ahead = False

    def __init__(self, **steps: float) -> None:
        self.now, self.calls = 0.0, list[str]()
        self.steps = {"plain": 1.0, **steps}
        self.fails: dict[str, Exception] = {}
        self.falls_back: set[str] = set()
        self.offloaded: dict[str, int] = {}

    def mark(self) -> float:
        return self.now

    def between(self, start: float, end: float) -> float:
        return end - start

    def empty(self) -> None: ...

    def reset(self) -> None: ...

    def sample(self) -> None: ...

    def peak(self) -> PeakMemory:
        return PeakMemory(100, 200, 300)

    @contextmanager
    def borrow(self, key: LoadKey, callbacks: Callbacks) -> Iterator[Any]:
        yield SimpleNamespace(family=FAMILY, facts={"load_seconds": 2.5}, key=key)

    def name(self, settings: OptimizationSettings) -> str:
        parts = ["compile"] if settings.torch_compile == "on" else []
        parts += [settings.attention] if settings.attention != "sdpa" else []
        return "+".join(parts) or "plain"

    def generate(
        self, handle: PipelineHandle, request: SampleRequest, settings: OptimizationSettings, callbacks: Callbacks
    ) -> SampleResult:
        name = self.name(settings)
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]
        report = OptimizationReport()
        applied = "sdpa" if name in self.falls_back else settings.attention
        report.set(OptimizationRecord("attention", settings.attention, applied, "no such kernel here"))
        if name in self.offloaded:
            report.facts["offloaded_bytes"] = self.offloaded[name]
        steps = request.steps or 4
        for step in range(steps):
            self.now += self.steps[name]
            callbacks.tick("denoise", step + 1, steps)
        self.now += 1.0
        frames = torch.full((1, 1, 64, 64, 3), 0.5)
        stages = {"denoise": steps * self.steps[name], "decode": 1.0}
        return SampleResult(frames, torch.zeros(1), None, (0,), [self.steps[name]] * steps, stages, report)

    def comparison(self, names: list[str], store: Store | None = None, **options: Any) -> ComparisonRun:
        plan = Plan(precision=0.0, **{k: options.pop(k) for k in ("runs", "time_limit") if k in options})
        made = ComparisonRun(
            HANDLE,
            SampleRequest("a fox", steps=4),
            names,
            plan,
            store=store,
            generate=self.generate,
            borrow=self.borrow,
            watch=self,
            memory=self,
            **options,
        )
        return made


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring loop takes its time limits from the engine's clock."""
    original = comparing.PairedMeasurement
    monkeypatch.setattr(comparing, "PairedMeasurement", lambda c, p, w, m: original(c, p, w, m, clock=w.mark))


def test_rows_facts_and_verdict(tmp_path: Path) -> None:
    engine, store = Engine(compile=0.6, xformers=1.3), Store(tmp_path / "m.jsonl")
    run = engine.comparison(["plain", "compile", "xformers"], store)
    run.run()
    found = run.result()
    assert [(row.name, row.verdict) for row in found.rows] == [
        ("plain", "plain"),
        ("compile", "faster"),
        ("xformers", "slower"),
    ]
    assert found.recommended.settings.torch_compile == "on"
    assert found.facts["work"] == "64x64, 4 steps"
    assert found.facts["model"].startswith("tiny:flux@")
    assert "torch 2" in found.facts["software"]
    assert found.facts["load"] == "2.5 s"
    assert "5 runs each, interleaved" in found.facts["measured"]
    rows = {row.settings: row for row in store.rows()}
    assert {row.verdict for row in rows.values()} == {"plain", "faster", "slower"}
    assert rows[()].run_seconds == pytest.approx(5.0)
    assert rows[(("attention", "xformers"),)].gain == pytest.approx(1 - 6.2 / 5)


def test_the_winners_of_different_kinds_are_tried_together() -> None:
    engine = Engine(**{"compile": 0.6, "flash": 0.8, "xformers": 0.9, "compile+flash": 0.5})
    run = engine.comparison(["plain", "compile", "flash", "xformers"], combine_winners=True)
    run.run()
    found = run.result()
    assert [row.name for row in found.rows] == ["plain", "compile", "flash", "xformers", "compile+flash"]
    assert found.recommended.name == "compile+flash"


def test_nothing_is_combined_where_one_kind_wins() -> None:
    engine = Engine(compile=1.6, flash=0.8)
    run = engine.comparison(["plain", "compile", "flash"], combine_winners=True)
    run.run()
    assert len(run.result().rows) == 3


def test_a_choice_that_fell_back_is_not_measured_as_if_it_were_one() -> None:
    engine = Engine(xformers=1.0)
    engine.falls_back = {"xformers"}
    run = engine.comparison(["plain", "xformers"])
    run.run()
    row = run.result().rows[1]
    assert row.verdict == "failed"
    assert "attention fell back to sdpa: no such kernel here" in row.problem
    assert engine.calls.count("xformers") == 1


def test_out_of_memory_is_a_row_and_is_remembered(tmp_path: Path) -> None:
    engine, store = Engine(compile=0.5), Store(tmp_path / "m.jsonl")
    engine.fails = {"compile": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")}
    run = engine.comparison(["plain", "compile"], store)
    run.run()
    assert "out of memory" in run.result().rows[1].problem
    assert {row.verdict for row in store.rows()} == {"plain", "failed"}


def test_offloaded_bytes_reach_the_row() -> None:
    engine = Engine(compile=1.9)
    engine.offloaded = {"compile": int(2.3 * 2**30)}
    run = engine.comparison(["plain", "compile"])
    run.run()
    assert run.result().rows[1].offloaded_bytes == int(2.3 * 2**30)


class Cancelled(Exception):
    pass


def test_a_cancel_keeps_and_remembers_what_is_certain(tmp_path: Path) -> None:
    engine, store = Engine(compile=0.5), Store(tmp_path / "m.jsonl")
    run = engine.comparison(["plain", "compile"], store, runs=50)
    left = iter(range(120))

    def check() -> None:
        if next(left, None) is None:
            raise Cancelled

    assert not run.started
    with pytest.raises(Cancelled):
        run.run(Callbacks(check_cancel=check))
    found = run.result()
    assert run.started
    assert found.plain.run is not None
    assert 2 <= found.plain.run.runs < 50
    assert "cancelled" in found.notes
    assert {row.verdict for row in store.rows()} == {"plain", "faster"}


def test_too_few_runs_are_not_remembered_as_no_difference(tmp_path: Path) -> None:
    engine, store = Engine(compile=0.5), Store(tmp_path / "m.jsonl")
    run = engine.comparison(["plain", "compile"], store, runs=1)
    run.run()
    assert run.result().rows[1].verdict == "noise"
    assert {row.verdict for row in store.rows()} == {"plain"}


def test_the_time_limit_holds_for_both_parts() -> None:
    engine = Engine(**{"compile": 0.6, "flash": 0.8, "compile+flash": 0.5})
    run = engine.comparison(["plain", "compile", "flash"], combine_winners=True, time_limit=90.0)
    run.run()
    assert engine.now <= 90
    assert run.result().recommended.name in ("compile", "compile+flash")


def test_bad_plans_are_refused() -> None:
    engine = Engine(compile=0.5)
    with pytest.raises(InputError, match="runs"):
        engine.comparison(["plain", "compile"], runs=0)
    with pytest.raises(InputError, match="time_limit"):
        engine.comparison(["plain", "compile"], time_limit=2.0).run()
    with pytest.raises(InputError, match="nothing to compare"):
        engine.comparison(["plain"]).run()


def test_a_plain_run_that_does_not_repeat_itself_is_said() -> None:
    engine = Engine(compile=0.5)
    run = engine.comparison(["plain", "compile"])
    original, count = engine.generate, iter(range(100))

    def restless(*args: Any) -> SampleResult:
        result = original(*args)
        assert result.frames is not None
        return replace(result, frames=result.frames + 0.001 * next(count))

    run._generate = restless
    run.run()
    assert any("does not repeat itself" in note for note in run.result().notes)


def test_a_model_that_needs_a_picture_gets_one() -> None:
    needy = SimpleNamespace(images="required", width=48, height=32)
    (picture,) = with_picture(SampleRequest("a fox"), needy).images  # type: ignore[arg-type]
    assert picture.shape == (32, 48, 3)
    assert 0 <= float(picture.min()) < 0.1
    assert 0.9 < float(picture.max()) <= 1
    assert torch.equal(picture, drawn_picture(48, 32))
    own = SampleRequest("a fox", images=(torch.zeros(8, 8, 3),))
    assert with_picture(own, needy) is own  # type: ignore[arg-type]


def test_all_leaves_out_what_does_not_work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing.attention, "available", lambda device, dtype: {"flash": "not installed", "cudnn": ""})
    names = ("compile", "flash", "cudnn", "channels-last")
    assert working(names, torch.device("cpu"), torch.float32) == ["compile", "cudnn"]

"""A comparison from names to rows, around an engine of which only the clock is real."""

from __future__ import annotations

import csv
import io
import json
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
from fastdiffusers.comparison.table import as_markdown, as_table
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.optimizations.tuning.candidates import Plan
from fastdiffusers.optimizations.tuning.meters import PeakMemory
from fastdiffusers.optimizations.tuning.store import Store
from fastdiffusers.pipelines.recognize import family_of, small
from fastdiffusers.pipelines.types import LoadKey, LoraSpec, PipelineHandle, SampleRequest, SampleResult
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
        self.first_extra: dict[str, float] = {}
        self.experts: tuple[str, ...] = ()
        self.switching = 0.0
        self.moved: dict[str, int] | None = None

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
        if self.moved is not None:
            report.facts["moved_bytes"] = self.moved
        steps = request.steps or 4
        taken = [self.steps[name]] * steps
        taken[0] += self.first_extra.pop(name, 0.0)
        if self.experts:
            taken[self.experts.index("low noise")] += self.switching
        for step, seconds in enumerate(taken):
            self.now += seconds
            callbacks.tick("denoise", step + 1, steps)
        self.now += 1.0
        frames = torch.full((1, 1, 64, 64, 3), 0.5)
        stages = {"denoise": sum(taken), "decode": 1.0}
        found = SampleResult(frames, torch.zeros(1), None, (0,), taken, stages, report)
        return replace(found, step_experts=self.experts)

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


def test_a_picture_for_a_model_of_text_alone_is_refused_with_a_cure_that_there_is() -> None:
    """A run may start from it with a strength below 1; a comparison has none to set."""
    texts = SimpleNamespace(images="none", name="sdxl", width=48, height=32)
    with pytest.raises(InputError, match=r"^image = .*a comparison starts from noise\. Leave it out\.$"):
        with_picture(SampleRequest("a fox", images=(torch.zeros(8, 8, 3),)), texts)  # type: ignore[arg-type]


def test_all_leaves_out_what_does_not_work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing.attention, "available", lambda device, dtype: {"flash": "not installed", "cudnn": ""})
    names = ("compile", "flash", "cudnn", "channels-last")
    assert working(names, torch.device("cpu"), torch.float32) == ["compile", "cudnn"]


def two_experts(**steps: float) -> Engine:
    """Two steps of each expert, and a compile whose first run takes 41 s more."""
    engine = Engine(**steps)
    engine.experts = ("high noise", "high noise", "low noise", "low noise")
    engine.first_extra = {"compile": 41.0}
    return engine


def test_where_compile_is_slower_the_words_say_why_plain_is_the_fastest() -> None:
    engine = two_experts(compile=1.9)
    engine.offloaded = {"compile": int(2.3 * 2**30)}
    run = engine.comparison(["plain", "compile"])
    run.run()
    assert run.result().headline == "The plain run is the fastest here."
    assert run.result().verdict == (
        "The plain run is the fastest here: few steps (4 steps, 80% of the run, the VAE 20%); compile would not pay "
        "back (every run takes 72% more time, and its first run 41 s more); memory would not hold it: with compile, "
        "2.3 GiB of the weights left the device."
    )


def test_where_compile_is_faster_the_words_say_when_it_pays_back() -> None:
    engine = two_experts(compile=0.6)
    run = engine.comparison(["plain", "compile"])
    run.run()
    assert run.result().recommended.break_even_runs == 26  # 41 s, at 1.6 s a run
    assert run.result().verdict == (
        "Use compile for 26 runs or more: 32% less time (5 -> 3.4 s). Its first run takes 41 s more, which is paid "
        "back after 26 runs; for fewer, the plain run is the fastest."
    )


def test_where_compile_makes_no_difference_it_does_not_pay_back() -> None:
    engine = two_experts(compile=1.0)
    run = engine.comparison(["plain", "compile"])
    run.run()
    verdict = run.result().verdict
    assert verdict.startswith(
        "Keep it plain: nothing of compile was faster beyond the noise with the same picture. Few"
    )
    assert "compile would not pay back (no difference beyond the noise, and its first run 41 s more)." in verdict


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory would not hold compile (CUDA out of memory"),
        (RuntimeError("no C compiler"), "compile was given up (no C compiler)"),
        (
            comparing.FellBackError(
                "torch_compile fell back to off: it needs 2 GiB, and 1.00 GiB of 32.00 GiB are free"
            ),
            "memory would not hold compile (torch_compile fell back to off: it needs 2 GiB",
        ),
    ],
    ids=["out of memory", "another error", "the guard"],
)
def test_what_was_given_up_is_part_of_the_verdict(error: Exception, words: str) -> None:
    engine = two_experts(compile=0.5)
    engine.fails = {"compile": error}
    run = engine.comparison(["plain", "compile"])
    run.run()
    verdict = run.result().verdict
    assert verdict.startswith("Only plain was measured: few steps (4 steps")
    assert words in verdict


def test_many_steps_are_not_called_few() -> None:
    engine = Engine(compile=1.9)
    run = engine.comparison(["plain", "compile"])
    run._request = replace(run._request, steps=20)
    run.run()
    assert run.result().verdict.startswith("The plain run is the fastest here: compile would not pay back (every run")


def test_the_experts_are_told_apart() -> None:
    engine = two_experts(compile=1.9)
    engine.switching, engine.moved = 7.5, {"on": 28 * 2**30, "off": 14 * 2**30}
    run = engine.comparison(["plain", "compile"])
    run.run()
    found = run.result()
    for row, seconds in zip(found.rows, (1.0, 1.9), strict=True):
        high, low = row.experts
        assert (high.name, high.steps, high.seconds) == ("high noise", 2, pytest.approx(seconds))
        assert (low.name, low.steps, low.seconds) == ("low noise", 2, pytest.approx(seconds))
        assert row.switching == pytest.approx(7.5)
        assert row.moved == (28 * 2**30, 14 * 2**30)
    lines = [" ".join(line.split()) for line in as_table(found).splitlines()]
    assert "setting high noise step low noise step switching VAE moved on / off peak result" in lines
    assert "plain 1 s (x 2) 1 s (x 2) 7.5 s 1 s, 8% 28.0 GiB / 14.0 GiB 0 MiB fastest" in lines
    assert "compile 1.9 s (x 2) 1.9 s (x 2) 7.5 s 1 s, 6% 28.0 GiB / 14.0 GiB 0 MiB 29% more time" in lines
    assert "| plain | 1 s (x 2) | 1 s (x 2) | 7.5 s |" in as_markdown(found)
    table = list(csv.DictReader(io.StringIO(found.as_csv())))
    assert [line["low noise step s"] for line in table] == ["1", "1.9"]
    assert {line["switching s"] for line in table} == {"7.5"}
    assert json.loads(found.as_json())["rows"][0]["moved_bytes"] == {"on": 28 * 2**30, "off": 14 * 2**30}


def test_one_step_of_an_expert_cannot_tell_the_switch_from_the_step() -> None:
    engine = two_experts(compile=1.9)
    engine.experts = ("high noise", "high noise", "high noise", "low noise")
    run = engine.comparison(["plain", "compile"])
    run.run()
    assert [expert.steps for expert in run.result().plain.experts] == [3, 1]
    assert run.result().plain.switching is None
    assert "not told apart" in as_table(run.result())


def test_one_denoiser_on_the_cpu_has_no_second_table() -> None:
    run = Engine(compile=1.9).comparison(["plain", "compile"])
    run.run()
    assert run.result().plain.moved == (0, 0)
    assert "moved on / off" not in as_table(run.result())
    assert "high noise" not in as_table(run.result())


def test_the_loras_of_the_pipeline_and_notes_are_told() -> None:
    handle = replace(HANDLE, loras=(LoraSpec("tiny:wan-high-noise", 0.8, "high"),))
    run = Engine(compile=1.9).comparison(["plain", "compile"], notes=("a note",))
    run._handle = handle
    run.run()
    assert run.result().facts["LoRA"] == "tiny:wan-high-noise 0.8 (high noise)"
    assert "a note" in run.result().notes

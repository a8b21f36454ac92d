"""`auto` in whole runs of real tiny pipelines; the time that they take is made up.

The clock moves when the denoiser is called: by one figure while its blocks are plain, by
another when they are compiled.
"""

from __future__ import annotations

import gc
import itertools
import random
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations import compile, compiled_region
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.optimizations.tuning import auto, meters
from fastdiffusers.optimizations.tuning.auto import RUN_HISTORY
from fastdiffusers.optimizations.tuning.store import Row, default_store
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.generate import run_loaded, workload_of
from fastdiffusers.pipelines.recognize import family_of, small
from fastdiffusers.pipelines.tuning_key import tuning_key
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, PipelineHandle, SampleRequest, SampleResult

STEPS = 12
PLENTY = MemoryState(free=64 * GIB, total=80 * GIB)


@dataclass
class Bench:
    """One tiny pipeline whose steps take as long as a test says."""

    loaded: LoadedPipeline
    plain: float | list[float] = 100.0
    compiled: float | list[float] = 100.0
    memory: MemoryState = PLENTY
    now: float = 0.0
    backend: str = "eager"
    ahead: bool = False
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    steps_seen: list[bool] = field(default_factory=list)

    def mark(self) -> float:
        return self.now

    def between(self, start: float, end: float) -> float:
        return end - start

    def called(self, module: torch.nn.Module, args: Any) -> None:
        is_compiled = compile.is_compiled(self.loaded.pipeline)
        self.steps_seen.append(is_compiled)
        seconds = self.compiled if is_compiled else self.plain
        self.now += self.chance.choice(seconds) if isinstance(seconds, list) else seconds

    @property
    def handle(self) -> PipelineHandle:
        return PipelineHandle(self.loaded.key, memory_mode="gpu")

    def settings(self, torch_compile: str = "auto") -> OptimizationSettings:
        how = CompileSettings(backend=self.backend, keep_artifacts=False)
        return OptimizationSettings(torch_compile=torch_compile, compile=how)

    def request(self, steps: int = STEPS, guidance: float | None = None) -> SampleRequest:
        return SampleRequest("a fox", steps=steps, width=32, height=32, guidance=guidance, num_frames=1)

    def run(
        self, steps: int = STEPS, torch_compile: str = "auto", callbacks: Callbacks | None = None, **options: Any
    ) -> SampleResult:
        self.steps_seen.clear()
        return run_loaded(
            self.loaded,
            self.handle,
            self.request(steps, **options),
            self.settings(torch_compile),
            callbacks or Callbacks(),
            memory=lambda device: self.memory,
        )

    def rows(self) -> dict[tuple[tuple[str, str], ...], Row]:
        return {row.settings: row for row in default_store().rows()}

    def is_let_go(self) -> bool:
        """Whether nobody but this bench holds the pipeline; it is gone then."""
        living = weakref.ref(self.loaded.pipeline)
        self.loaded.pipeline = None
        gc.collect()
        return living() is None

    @property
    def compiled_row(self) -> Row:
        return self.rows()[(("torch_compile", f"blocks {self.backend} default"),)]


def bench_of(family: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    pipeline = tiny.build(family)
    key = LoadKey(f"tiny:{family}", identity="seed 0", dtype="float32", device="cpu")
    loaded = LoadedPipeline(key, pipeline, small(family_of(pipeline)), torch.device("cpu"), torch.float32)
    bench = Bench(loaded)
    for name in ("transformer", "transformer_2"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).register_forward_pre_hook(bench.called)
    monkeypatch.setattr(meters, "stopwatch", lambda device: bench)
    return bench


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Compiled code is plain code here, in the place where compiled code would be: tracing takes seconds."""
    RUN_HISTORY.forget()
    monkeypatch.setattr(compiled_region.Recipe, "compile", lambda recipe, call: call)
    return bench_of("flux", monkeypatch)


@pytest.fixture
def compiling_bench(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> Bench:
    """Like `bench`, really compiled."""
    RUN_HISTORY.forget()
    return bench_of("flux", monkeypatch)


def test_slower_on_purpose_is_turned_off_said_remembered_and_not_tried_again(bench: Bench) -> None:
    bench.compiled = 150.0
    record = bench.run().report["torch_compile"]
    assert (record.requested, record.applied) == ("auto", "off")
    assert "compiled steps were slower: 100 -> 150 s per step (+50%)" in record.reason
    assert not record.failed
    assert not compile.is_compiled(bench.loaded.pipeline)
    assert bench.steps_seen.count(True) == 3
    assert bench.steps_seen[-1] is False  # undone in place, and the run went on plainly
    assert (bench.compiled_row.verdict, bench.compiled_row.source) == ("slower", "probation")
    assert bench.compiled_row.gain == pytest.approx(-0.5)

    again = bench.run().report["torch_compile"]
    assert bench.steps_seen == [False] * STEPS
    assert again.applied == "off"
    assert "cost 50% here" in again.reason
    RUN_HISTORY.forget()  # another process: only the store knows
    bench.run()
    assert bench.steps_seen == [False] * STEPS


def test_faster_is_kept_and_used_from_the_first_step_next_time(bench: Bench) -> None:
    bench.compiled = 60.0
    record = bench.run().report["torch_compile"]
    assert record.applied == "transformer (4 blocks), eager"
    assert "faster: 100 -> 60 s per step (-40%)" in record.reason
    assert bench.steps_seen == [False] * 4 + [True] * 8
    assert bench.compiled_row.verdict == "faster"
    assert bench.compiled_row.gain == pytest.approx(0.4)
    assert bench.rows()[()].step_seconds == pytest.approx(100.0)

    again = bench.run().report["torch_compile"]
    assert bench.steps_seen == [True] * STEPS
    assert "saved 40% here" in again.reason


def test_with_noise_only_plain_stays(bench: Bench) -> None:
    bench.plain = bench.compiled = [90.0, 95.0, 100.0, 105.0, 110.0]
    record = bench.run(steps=24).report["torch_compile"]
    assert record.applied == "off"
    assert "no difference beyond the noise" in record.reason
    assert bench.compiled_row.verdict == "noise"
    bench.run()
    assert bench.steps_seen == [False] * STEPS


def test_the_picture_is_plains(compiling_bench: Bench) -> None:
    bench = compiling_bench
    plain = bench.run(torch_compile="off").frames
    bench.compiled = 60.0
    mixed, whole = bench.run().frames, bench.run().frames
    assert plain is not None
    assert mixed is not None
    assert whole is not None
    assert float((mixed - plain).abs().max()) < 1e-3
    assert float((whole - plain).abs().max()) < 1e-3


def test_a_run_that_cannot_pay_back_is_declined_with_the_sum(bench: Bench) -> None:
    bench.plain, bench.compiled = 0.5, 0.1
    record = bench.run().report["torch_compile"]
    assert record.applied == "off"
    assert bench.steps_seen == [False] * STEPS
    assert "compiling takes 60 s and saves 0.075 s of each 0.5 s step (assumed)" in record.reason
    assert "pays back after 800 steps; 8 are left in this run" in record.reason
    assert bench.rows() == {}


def test_without_memory_compile_is_declined_with_the_figures_and_with_it_it_runs(bench: Bench) -> None:
    bench.compiled = 60.0
    bench.memory = MemoryState(free=int(1.5 * GIB), total=32 * GIB)
    record = bench.run().report["torch_compile"]
    assert bench.steps_seen == [False] * STEPS
    assert record.applied == "off"
    assert "2.00 GiB assumed for compiled code" in record.reason
    assert "1.50 GiB of 32.00 GiB are free" in record.reason
    assert bench.rows() == {}  # lack of memory today says nothing about speed
    bench.memory = PLENTY
    bench.run()
    assert True in bench.steps_seen


def test_the_overhead_that_a_benchmark_measured_replaces_the_assumption(bench: Bench) -> None:
    here = tuning_key(bench.handle, workload_of(bench.loaded, bench.request()), bench.settings())
    label = (("torch_compile", "blocks eager default"),)
    common = {"run_seconds": 1200.0, "step_seconds": 100.0, "compile_seconds": 1.0}
    default_store().add(Row(here, (), "plain", peak_bytes=10 * GIB, **common))
    default_store().add(Row(here, label, "faster", gain=0.4, lossless=True, peak_bytes=15 * GIB, **common))
    bench.memory = MemoryState(free=3 * GIB + GIB // 2, total=32 * GIB)
    record = bench.run().report["torch_compile"]
    assert record.applied == "off"
    assert "5.00 GiB measured for compiled code" in record.reason
    bench.memory = MemoryState(free=7 * GIB, total=32 * GIB)
    bench.run()
    assert bench.steps_seen == [True] * STEPS


_names = itertools.count()


def failing_backend(error: Exception) -> str:
    """Name of a new dynamo backend whose code fails. It stays registered, under a name that nothing else uses."""

    def fail(*args: Any) -> Any:
        raise error

    def backend(graph: Any, inputs: Any) -> Any:
        return fail

    name = f"fails_on_purpose_{next(_names)}"
    torch._dynamo.register_backend(backend, name)
    return name


def test_compiling_that_fails_costs_nothing_but_the_try(compiling_bench: Bench) -> None:
    bench = compiling_bench
    bench.backend = failing_backend(RuntimeError("no kernel for this card"))
    result = bench.run()
    assert result.frames is not None
    record = result.report["torch_compile"]
    assert record.applied == "off"
    assert "no kernel for this card" in record.reason
    assert bench.compiled_row.verdict == "failed"
    again = bench.run().report["torch_compile"]
    assert "it failed here" in again.reason
    assert not compile.is_compiled(bench.loaded.pipeline)


def test_out_of_memory_in_compiled_code_travels_and_is_remembered(compiling_bench: Bench) -> None:
    bench = compiling_bench
    bench.backend = failing_backend(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        bench.run()
    assert bench.compiled_row.verdict == "failed"
    assert "ran out of memory" in bench.compiled_row.reason
    assert bench.run().frames is not None
    assert bench.steps_seen == [False] * STEPS


class Cancelled(Exception):
    pass


def test_a_cancel_during_the_trial_travels_and_the_next_run_goes_on(bench: Bench) -> None:
    bench.compiled = 60.0
    seen: list[Progress] = []

    def stop_in_trial() -> None:
        if seen and seen[-1].stage == "denoise" and seen[-1].done == 6:
            raise Cancelled

    with pytest.raises(Cancelled):
        bench.run(callbacks=Callbacks(seen.append, stop_in_trial))
    assert bench.rows() == {}
    bench.run()
    assert bench.compiled_row.verdict == "faster"


def test_two_experts_of_two_steps_are_judged_over_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    RUN_HISTORY.forget()
    monkeypatch.setattr(compiled_region.Recipe, "compile", lambda recipe, call: call)
    bench = bench_of("wan22-t2v", monkeypatch)
    bench.compiled = 60.0
    for _ in range(8):
        result = bench.run(steps=4, guidance=1.0)
    assert bench.compiled_row.verdict == "faster"
    assert bench.compiled_row.gain == pytest.approx(0.4)
    assert "transformer_2" in result.report["torch_compile"].applied


class DeviceReads(TorchDispatchMode):
    """Counts the numbers that are read from tensors: on a card, each one waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_telling_two_experts_apart_reads_nothing_from_the_device_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("wan22-t2v", monkeypatch)
    bench.plain = 0.001  # nothing to gain: no step is compiled, and none is looked at for NaN
    reads = {}
    for torch_compile in ("off", "auto"):
        with DeviceReads() as mode:
            bench.run(steps=6, guidance=1.0, torch_compile=torch_compile)
        reads[torch_compile] = mode.count
    assert reads["auto"] == reads["off"]


def test_attention_follows_the_benchmark(bench: Bench) -> None:
    settings = bench.settings("off")
    here = tuning_key(bench.handle, workload_of(bench.loaded, bench.request()), settings)
    default_store().add(Row(here, (), "plain", run_seconds=10.0))
    default_store().add(Row(here, (("attention", "math"),), "faster", gain=0.2, run_seconds=8.0, lossless=True, runs=5))
    record = bench.run(torch_compile="off").report["attention"]
    assert (record.requested, record.applied) == ("auto", "math")
    assert "saved 20% here" in record.reason


def offloading(bench: Bench, monkeypatch: pytest.MonkeyPatch, gone: int) -> None:
    """As on a card whose model is pushed off while compiled code runs."""
    whole = 13 * GIB

    def sizes(self: auto.AutoRun) -> tuple[int, int]:
        return (whole - gone if compile.is_compiled(bench.loaded.pipeline) else whole), whole

    monkeypatch.setattr(auto.AutoRun, "_sizes", sizes)


def test_weights_that_compiled_code_pushes_off_are_noticed_and_the_cause_turned_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.compiled = 60.0
    offloading(bench, monkeypatch, int(2.3 * GIB))
    report = bench.run().report
    assert report["torch_compile"].applied == "off"
    assert "2.30 GiB of the model left the device" in report["torch_compile"].reason
    assert bench.steps_seen.count(True) == 1
    assert report.facts["offloaded_bytes"] == 0
    assert bench.compiled_row.verdict == "slower"
    bench.run()
    assert bench.steps_seen == [False] * STEPS


def test_forced_on_stays_on_and_the_offloading_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    offloading(bench, monkeypatch, int(2.3 * GIB))
    report = bench.run(torch_compile="on").report
    assert report["torch_compile"].applied != "off"
    assert bench.steps_seen == [True] * STEPS
    assert report.facts["offloaded_bytes"] == int(2.3 * GIB)
    assert any("2.30 GiB of the model left the device: turn torch_compile off" in note for note in report.notes)
    assert bench.rows() == {}


@pytest.mark.parametrize("compiled", [50.0, 200.0], ids=["kept", "reverted"])
@pytest.mark.parametrize("steps", [2, STEPS], ids=["watched only", "tried"])
def test_what_is_remembered_keeps_no_pipeline_alive(bench: Bench, compiled: float, steps: int) -> None:
    bench.compiled = compiled
    bench.run(steps=steps)
    assert bench.is_let_go()


def test_a_run_that_fails_keeps_no_pipeline_alive(bench: Bench) -> None:
    def cancel(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(callbacks=Callbacks(on_progress=cancel))
    assert bench.is_let_go()

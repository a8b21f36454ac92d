"""Measuring, and auto, on a real card."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from fastdiffusers.cache_folder import device_name, software
from fastdiffusers.comparison.run import ComparisonRun
from fastdiffusers.optimizations.apply import revert
from fastdiffusers.optimizations.components import resident_bytes
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.optimizations.tuning import auto
from fastdiffusers.optimizations.tuning.auto import RUN_HISTORY
from fastdiffusers.optimizations.tuning.candidates import Plan
from fastdiffusers.optimizations.tuning.meters import CudaStopwatch, DeviceMemoryMeter, stopwatch, synchronize
from fastdiffusers.optimizations.tuning.store import default_store
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CARD = torch.device("cuda:0")
REQUEST = SampleRequest("a fox", steps=12, width=128, height=128)


@pytest.fixture
def handle() -> Iterator[PipelineHandle]:
    """A tiny pipeline on the card."""
    RUN_HISTORY.forget()
    handle = PipelineHandle(resolve("tiny:flux", device="cuda:0"), memory_mode="gpu")
    yield handle
    with CACHE.use(handle.key) as loaded:
        revert(loaded.pipeline)
    CACHE.clear()


def test_events_agree_with_the_clock_on_the_wall() -> None:
    watch = stopwatch(CARD)
    assert isinstance(watch, CudaStopwatch)
    matrix = torch.randn(4096, 4096, device=CARD)
    matrix @ matrix
    synchronize(CARD)
    start, began = watch.mark(), time.perf_counter()
    for _ in range(100):
        matrix @ matrix
    end = watch.mark()
    synchronize(CARD)
    assert watch.between(start, end) == pytest.approx(time.perf_counter() - began, rel=0.2)


def test_the_peak_of_the_card_is_seen_and_begins_anew() -> None:
    meter = DeviceMemoryMeter(CARD)
    meter.empty()
    meter.reset()
    before = meter.peak()
    block = torch.empty(2**28, dtype=torch.uint8, device=CARD)
    after = meter.peak()
    assert after.allocated is not None
    assert before.allocated is not None
    assert after.reserved is not None
    assert after.allocated - before.allocated == 2**28
    assert after.reserved >= after.allocated
    del block
    meter.empty()
    meter.reset()
    assert meter.peak().allocated == before.allocated


def test_resident_bytes_follow_the_weights() -> None:
    model = torch.nn.Linear(1024, 1024, bias=False)
    assert resident_bytes([model], CARD) == (0, 4 * 2**20)
    assert resident_bytes([model.to(CARD)], CARD) == (4 * 2**20, 4 * 2**20)


def test_the_card_is_named_with_its_memory_and_driver() -> None:
    assert device_name(CARD).startswith(torch.cuda.get_device_name(CARD))
    assert "GiB" in device_name(CARD)
    assert "driver" in software()


def test_a_comparison_on_the_card(handle: PipelineHandle) -> None:
    run = ComparisonRun(handle, REQUEST, ["plain", "math"], Plan(runs=3), store=default_store())
    run.run()
    plain, math = run.result().rows
    assert plain.run is not None
    assert plain.step is not None
    assert plain.memory.reserved
    assert plain.offloaded_bytes == 0
    assert math.verdict != "not measured"
    assert () in {row.settings for row in default_store().rows()}


def test_forced_compile_leaves_the_weights_where_they_fit(handle: PipelineHandle) -> None:
    settings = OptimizationSettings(torch_compile="on", compile=CompileSettings(backend="aot_eager"))
    report = generate(handle, REQUEST, settings).report
    assert report["torch_compile"].applied != "off"
    assert report.facts["offloaded_bytes"] == 0


def test_auto_tries_compiled_steps_on_the_card_and_remembers(
    handle: PipelineHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it finds is the card's business; that it asks, compares, keeps one of both and remembers is tested."""
    monkeypatch.setattr(auto, "decide", _eager_to_compile(auto.decide))
    settings = OptimizationSettings(torch_compile="auto", compile=CompileSettings(backend="aot_eager"))
    for _ in range(3):
        record = generate(handle, REQUEST, settings).report["torch_compile"]
    verdicts = {row.verdict for row in default_store().rows() if row.settings}
    assert verdicts <= {"faster", "slower", "noise"}
    assert len(verdicts) == 1
    assert (record.applied != "off") == (verdicts == {"faster"})


def _eager_to_compile(decide):
    """`decide`, with a cost so small that the trial begins as soon as there is something to compare with."""
    from dataclasses import replace

    from fastdiffusers.optimizations.compile_cost import Expectation

    def with_small_cost(*args, **kwargs):
        decision = decide(*args, **kwargs)
        return decision if decision.trial is None else replace(decision, expected=Expectation(1e-6, 0.5, "assumed"))

    return with_small_cost


@pytest.mark.parametrize("mode", ["gpu", "model_offload", "group_offload_block", "group_offload_leaf"])
def test_bytes_that_a_run_moves_are_counted(mode: str) -> None:
    """Of a pipeline that stays on the card none; of an offloaded one all weights at least once, both experts' too."""
    handle = PipelineHandle(resolve("tiny:wan22-t2v", device="cuda:0"), memory_mode=mode)
    request = SampleRequest("a fox", steps=4, width=64, height=64, num_frames=5)
    moved = {}
    for _ in range(2):  # the first one loads
        moved = generate(handle, request, OptimizationSettings.plain()).report.facts["moved_bytes"]
    with CACHE.use(handle.key) as loaded:
        experts = resident_bytes([loaded.pipeline.transformer, loaded.pipeline.transformer_2], CARD)[1]
        revert(loaded.pipeline)
    CACHE.clear()
    if mode == "gpu":
        assert moved == {"on": 0, "off": 0}
    else:
        assert moved["on"] >= experts
        assert moved["off"] <= moved["on"]

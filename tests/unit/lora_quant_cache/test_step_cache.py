"""Step caching on every family: it skips, it starts every run afresh, and it comes off without a trace."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdiffusers.optimizations.apply import active, apply, revert
from fastdiffusers.optimizations.caching import step_cache
from fastdiffusers.optimizations.caching.cachedit import CacheDitEngine
from fastdiffusers.optimizations.caching.diffusers_hooks import TECHNIQUES, DiffusersHooksEngine
from fastdiffusers.optimizations.caching.engine import LEVELS, MIN_STEPS
from fastdiffusers.optimizations.components import denoisers
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings, Workload
from fastdiffusers.pipelines.tiny import PIPELINE_CLASSES, TINY_FAMILIES
from fastdiffusers.report import OptimizationReport

needs_cache_dit = pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed")
STEPS = 10
ENGINES = [pytest.param(CacheDitEngine, marks=needs_cache_dit), DiffusersHooksEngine]


@pytest.fixture(autouse=True)
def _easily_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights change more from step to step than trained ones: let more count as alike."""
    for name, level in LEVELS.items():
        monkeypatch.setitem(LEVELS, name, dataclasses.replace(level, threshold=0.6))


def only(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cache, "ENGINES", (engine,))


def serves(engine: Any, family: str) -> bool:
    return family != "sdxl" if engine is CacheDitEngine else PIPELINE_CLASSES[family] in TECHNIQUES


def cached_run(run: Callable, pipeline: Any, choice: str = "balanced", steps: int = STEPS, **options: Any) -> Any:
    """(latents, record) of a run with step caching on."""
    report = OptimizationReport()
    report.set(step_cache.enable(pipeline, choice, steps))
    with step_cache.running(pipeline, report):
        result = run(pipeline, steps, **options)
    return result, report["step_cache"]


def attributes(pipeline: Any) -> list[tuple[str, list[str]]]:
    """Every module of the denoisers, in order, with its instance attributes: hooks and replaced methods would show."""
    models = denoisers(pipeline).values()
    return [(name, sorted(vars(module))) for model in models for name, module in model.named_modules()]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_on_off_on(
    engine: Any, family: str, tiny_pipeline: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(engine, monkeypatch)
    pipeline = tiny_pipeline(family)
    plain = run(pipeline, STEPS)
    before, call = attributes(pipeline), type(pipeline).__call__
    for choice in ("balanced", "fast"):
        first, record = cached_run(run, pipeline, choice)
        assert type(pipeline).__call__ is call
        if not serves(engine, family):
            assert record.failed
            assert record.reason
            assert torch.equal(first, plain)
            continue
        assert not record.failed
        assert f"of {STEPS} steps skipped" in record.applied
        assert "saved" in record.cost
        assert not torch.equal(first, plain)
        assert first.isfinite().all()
        second, _ = cached_run(run, pipeline, choice)
        assert torch.equal(second, first)
        step_cache.disable(pipeline)
        assert torch.equal(run(pipeline, STEPS), plain)
        assert attributes(pipeline) == before
        again, _ = cached_run(run, pipeline, choice)
        assert torch.equal(again, first)
        step_cache.disable(pipeline)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_fails_leaves_nothing_to_the_next(
    engine: Any, tiny_pipeline: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(engine, monkeypatch)
    pipeline = tiny_pipeline("qwenimage")
    expected, _ = cached_run(run, pipeline)

    class Interrupt(Exception):
        pass

    def stop(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 6:
            raise Interrupt
        return kwargs

    with pytest.raises(Interrupt):
        cached_run(run, pipeline, callback_on_step_end=stop, seed=5)
    result, _ = cached_run(run, pipeline)
    assert torch.equal(result, expected)


@needs_cache_dit
def test_one_call_or_two_per_step_is_found_out(tiny_pipeline: Callable, run: Callable) -> None:
    """Guidance makes two calls of one step: they must not be compared with each other."""
    pipeline = tiny_pipeline("qwenimage")
    _, guided = cached_run(run, pipeline, true_cfg_scale=3.0)
    _, alone = cached_run(run, pipeline, true_cfg_scale=1.0)
    for record in (guided, alone):
        assert f"of {STEPS} steps skipped" in record.applied
        assert record.reason == ""


@needs_cache_dit
def test_two_pipelines_of_one_class_do_not_meet(tiny_pipeline: Callable, run: Callable) -> None:
    first, second = tiny_pipeline("flux"), tiny_pipeline("flux", seed=1)
    plain = run(second, STEPS)
    expected, _ = cached_run(run, first)
    assert torch.equal(run(second, STEPS), plain)
    both, _ = cached_run(run, second)
    assert not torch.equal(both, plain)
    assert torch.equal(cached_run(run, first)[0], expected)
    step_cache.disable(first)
    assert torch.equal(cached_run(run, second)[0], both)


@needs_cache_dit
def test_a_pipeline_that_is_dropped_is_freed(tiny_pipeline: Callable, run: Callable) -> None:
    pipeline = tiny_pipeline("flux")
    cached_run(run, pipeline)
    model = weakref.ref(pipeline.transformer)
    del pipeline
    gc.collect()
    assert model() is None


@needs_cache_dit
def test_between_runs_no_tensor_is_kept(tiny_pipeline: Callable, run: Callable) -> None:
    pipeline = tiny_pipeline("flux")
    cached_run(run, pipeline, "fast")
    manager = pipeline.transformer._context_manager
    contexts = [manager.get_context(name) for name in pipeline.transformer._context_names]
    assert contexts
    assert all(not context.buffers for context in contexts)
    assert all(not context.calibrator.states for context in contexts)


@pytest.mark.parametrize(
    ("engine", "family"),
    [
        pytest.param(engine, family, marks=needs_cache_dit if engine is CacheDitEngine else ())
        for engine in (CacheDitEngine, DiffusersHooksEngine)
        for family in TINY_FAMILIES
        if serves(engine, family)
    ],
)
def test_too_few_steps_are_computed_in_full(
    family: str, engine: Any, tiny_pipeline: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(engine, monkeypatch)
    pipeline = tiny_pipeline(family)
    few = MIN_STEPS - 1
    plain = run(pipeline, few)
    result, record = cached_run(run, pipeline, steps=few)
    assert torch.equal(result, plain)
    assert f"0 of {few} steps" in record.applied
    assert "too few" in record.reason


def test_without_cache_dit_diffusers_serves_what_it_can(
    tiny_pipeline: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    hidden = lambda name, *args: None if name == "cache_dit" else find_spec(name, *args)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    assert "diffusers FirstBlockCache" in step_cache.enable(tiny_pipeline("flux"), "balanced").applied
    record = step_cache.enable(tiny_pipeline("zimage"), "balanced")
    assert record.failed
    assert record.applied == "off"
    assert "pip install cache-dit" in record.reason


@needs_cache_dit
def test_the_process_is_as_before(tiny_pipeline: Callable, run: Callable, capfd: pytest.CaptureFixture[str]) -> None:
    environment = dict(os.environ)
    pipeline = tiny_pipeline("flux")
    capfd.readouterr()
    cached_run(run, pipeline)
    step_cache.disable(pipeline)
    assert "ache-DiT" not in capfd.readouterr().out
    assert dict(os.environ) == environment


@needs_cache_dit
def test_it_runs_with_compiled_blocks(tiny_pipeline: Callable, run: Callable, fresh_dynamo: None) -> None:
    pipeline = tiny_pipeline("flux")
    expected, _ = cached_run(run, pipeline)
    step_cache.disable(pipeline)
    settings = OptimizationSettings.plain(
        step_cache="balanced", torch_compile="on", compile=CompileSettings(backend="eager", headroom_gib=0.0)
    )
    results = []
    for _ in range(2):
        report = apply(pipeline, settings, device="cpu", workload=Workload(64, 64, steps=STEPS))
        with torch._dynamo.config.patch(error_on_recompile=bool(results)), active(pipeline, settings, report):
            results.append(run(pipeline, STEPS))
    assert not report["torch_compile"].failed
    assert "steps skipped" in report["step_cache"].applied
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], expected, rtol=1e-3, atol=1e-4)
    revert(pipeline)


def test_a_model_compiled_as_a_whole_is_said_not_crashed(tiny_pipeline: Callable) -> None:
    settings = OptimizationSettings.plain(
        step_cache="fast", torch_compile="on", compile=CompileSettings(backend="eager", scope="model")
    )
    record = step_cache.enable(tiny_pipeline("flux"), "fast", STEPS, settings)
    assert record.failed
    assert "scope" in record.reason
    assert record.applied == "off"


@needs_cache_dit
@pytest.mark.parametrize("memory_mode", ["gpu", "group_offload_block", "group_offload_leaf"])
@pytest.mark.parametrize("family", ["flux", "wan22-t2v"])
def test_it_goes_on_and_off_under_a_memory_mode(
    family: str, memory_mode: str, tiny_pipeline: Callable, run: Callable
) -> None:
    pipeline = tiny_pipeline(family)
    before = attributes(pipeline)
    plain = run(pipeline, STEPS)
    expected, _ = cached_run(run, pipeline)
    step_cache.disable(pipeline)

    def run_with(choice: str) -> torch.Tensor:
        settings = OptimizationSettings.plain(step_cache=choice, memory_mode=memory_mode)
        report = apply(pipeline, settings, device="cpu", workload=Workload(64, 64, steps=STEPS))
        with active(pipeline, settings, report):
            return run(pipeline, STEPS)

    for choice, result in (("off", plain), ("balanced", expected), ("off", plain), ("balanced", expected)):
        assert torch.equal(run_with(choice), result), choice
    revert(pipeline)
    assert torch.equal(run(pipeline, STEPS), plain)
    assert [name for name, _ in attributes(pipeline)] == [name for name, _ in before]


@needs_cache_dit
def test_it_stays_on_when_the_memory_mode_changes(tiny_pipeline: Callable, run: Callable) -> None:
    pipeline = tiny_pipeline("flux")
    plain = run(pipeline, STEPS)
    expected, _ = cached_run(run, pipeline)
    for memory_mode in ("group_offload_leaf", "gpu", "group_offload_block", "group_offload_leaf", "gpu"):
        settings = OptimizationSettings.plain(step_cache="balanced", memory_mode=memory_mode)
        report = apply(pipeline, settings, device="cpu", workload=Workload(64, 64, steps=STEPS))
        with active(pipeline, settings, report):
            result = run(pipeline, STEPS)
        assert torch.equal(result, expected), memory_mode
        assert "steps skipped" in report["step_cache"].applied
    revert(pipeline)
    assert torch.equal(run(pipeline, STEPS), plain)


def test_the_figures_say_what_was_tried() -> None:
    """The table comes from the last trial, and the trial found what the tests of this file find."""
    from fastdiffusers.benchmarks.step_cache_support import FIGURES, TARGET, as_markdown, with_table

    families = json.loads(TARGET.read_text(encoding="utf-8"))["families"]
    assert tuple(families) == TINY_FAMILIES
    for family, found in families.items():
        for engine in (CacheDitEngine, DiffusersHooksEngine):
            assert found[engine.__name__]["works"] == serves(engine, family), family
    text = FIGURES.read_text(encoding="utf-8")
    assert with_table(text, as_markdown(families)) == text, "run: python . benchmarks.step_cache_support"

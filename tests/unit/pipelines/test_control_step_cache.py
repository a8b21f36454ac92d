"""Step caching beside what a model adds between its blocks: it keeps all of it, or it is off and says why."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from test_controlnets import EDGES

from fastdiffusers.optimizations.caching import step_cache
from fastdiffusers.optimizations.caching.cachedit import CacheDitEngine
from fastdiffusers.optimizations.caching.diffusers_hooks import DiffusersHooksEngine
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, ControlCondition
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

needs_cache_dit = pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed")
PLAIN = OptimizationSettings.plain(memory_mode="gpu")
CACHED = replace(PLAIN, step_cache="balanced")
STEPS = 4
"""Too few to skip any: with step caching the result is that without."""


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    CACHE.clear()
    yield
    CACHE.clear()


def run(family: str, settings: OptimizationSettings, *conditions: Any, **changes: Any) -> SampleResult:
    handle = PipelineHandle(resolve(f"tiny:{family}", dtype="float32", device="cpu"))
    values = {"steps": STEPS, "width": 96, "height": 64, "seed": 3, "decode": False, "conditions": conditions}
    return generate(handle, SampleRequest("a ship", **{**values, **changes}), settings)


def control(family: str) -> ControlCondition:
    return ControlCondition(image=EDGES, model=resolve_controlnet(f"tiny:{family}"), strength=0.8)


def same(one: SampleResult, other: SampleResult) -> bool:
    assert one.latent is not None
    assert other.latent is not None
    return torch.equal(one.latent, other.latent)


@pytest.mark.parametrize("family", tiny.CONTROLNET_CLASSES)
def test_a_control_model_acts_in_full(family: str) -> None:
    plain = run(family, PLAIN, control(family))
    assert not same(plain, run(family, PLAIN)), "it acts at all"
    cached = run(family, CACHED, control(family))
    assert same(cached, plain)
    record = cached.report["step_cache"]
    assert (record.applied == "off") is (family != "qwenimage"), "diffusers' TaylorSeer keeps what is added"
    assert record.applied != "off" or record.reason
    free = run(family, CACHED)
    assert same(free, run(family, PLAIN)), "the next run has none"
    if family != "sdxl" and importlib.util.find_spec("cache_dit"):
        assert "cache-dit: 0 of 4 steps" in free.report["step_cache"].applied
    assert same(run(family, CACHED, control(family)), plain)


@needs_cache_dit
@pytest.mark.parametrize("family", ["flux", "sd3", "qwenimage", "zimage"])
def test_what_cache_dit_leaves_out_is_found_out_by_computing_both_ways(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CacheDitEngine, "against_control", "")
    plain, cached = run(family, PLAIN, control(family)), run(family, CACHED, control(family))
    assert same(cached, plain)
    record = cached.report["step_cache"]
    assert (record.applied, record.failed) == ("off", True)
    found = "does not fit this run" if family == "sd3" else "leaves out something that this run gives"
    assert found in record.reason
    assert "cache-dit: 0 of 4 steps" in run(family, CACHED).report["step_cache"].applied, "of this kind of run alone"


@needs_cache_dit
def test_a_class_that_cache_dit_would_rewrite_stays_as_it_is() -> None:
    """Of QwenImageControlNetPipeline it rewrites the model even where it is asked not to."""
    pipeline = tiny.build("qwenimage")
    controlled = diffusers.QwenImageControlNetPipeline(
        **pipeline.components, controlnet=tiny.build_controlnet("qwenimage")
    )
    before = {**vars(controlled.transformer)}
    record = step_cache.enable(controlled, "balanced")
    assert "would rewrite this model for good" in record.reason
    step_cache.disable(controlled)
    assert vars(controlled.transformer).keys() == before.keys()
    assert type(controlled.transformer).forward is diffusers.QwenImageTransformer2DModel.forward


@needs_cache_dit
def test_left_out_layers_of_sd3_are_kept() -> None:
    skip = (
        ArgumentCondition("skip_guidance_layers", [0]),
        ArgumentCondition("skip_layer_guidance_start", 0.0),
        ArgumentCondition("skip_layer_guidance_stop", 1.0),
    )
    plain, cached = (run("sd3", settings, *skip, guidance=4.0) for settings in (PLAIN, CACHED))
    assert same(cached, plain)
    assert not same(plain, run("sd3", PLAIN, guidance=4.0))


def test_first_block_cache_waits_for_its_warm_up_and_skips_no_more_in_a_row_than_its_level_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a threshold below which every step is."""
    monkeypatch.setattr(step_cache, "ENGINES", (DiffusersHooksEngine,))
    level = replace(step_cache.LEVELS["balanced"], threshold=1e9)
    monkeypatch.setitem(step_cache.LEVELS, "balanced", level)
    record = run("flux", CACHED, steps=10).report["step_cache"]
    assert (level.warmup_steps(10), level.in_a_row) == (2, 2)
    assert "6 of 10 steps skipped" in record.applied, "two of three after the warm-up"
    assert "0 of 4 steps" in run("flux", CACHED).report["step_cache"].applied

"""A pipeline that the cache lets go is gone, whatever was switched on: on a card it would hold its weights there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fastdiffusers.optimizations.components import modules
from fastdiffusers.optimizations.settings import (
    CompileSettings,
    OptimizationSettings,
    PrecisionSettings,
    TilingSettings,
)
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

# dynamo runs the code by its own interpreter, twice as long where every line is counted.
pytestmark = pytest.mark.no_cover

GPU = OptimizationSettings.plain(memory_mode="gpu")
TRACED = CompileSettings(backend="eager", headroom_gib=0.0)
CASES = {
    "as the nodes come": OptimizationSettings(),
    "blocks compiled": replace(
        GPU,
        attention="math",
        torch_compile="on",
        compile=TRACED,
        vae_tiling=TilingSettings(mode="on"),
        precision=PrecisionSettings(tf32="on", cudnn_benchmark="on", channels_last="on"),
        fused_projections="on",
        step_cache="balanced",
    ),
    "all compiled": replace(GPU, torch_compile="on", compile=replace(TRACED, scope="model", compile_vae=True)),
    "offloaded by model": replace(GPU, memory_mode="model_offload"),
    "offloaded by leaf": replace(GPU, memory_mode="group_offload_leaf"),
    "offloaded in sequence": replace(GPU, memory_mode="sequential"),
}


@pytest.fixture(autouse=True)
def _clean(fresh_dynamo: None) -> Iterator[None]:
    CACHE.clear()
    yield
    CACHE.clear()


@pytest.mark.parametrize(("family", "case"), [*(("flux", case) for case in CASES), ("wan22-t2v", "as the nodes come")])
def test_nothing_of_it_stays(family: str, case: str) -> None:
    key = resolve(f"tiny:{family}", device="cpu", dtype="float32")
    generate(PipelineHandle(key), SampleRequest("a fox", steps=3, width=32, height=32, num_frames=1), CASES[case])
    with CACHE.use(key) as loaded:
        living = {name: weakref.ref(model) for name, model in modules(loaded.pipeline).items()}
        living["pipeline"] = weakref.ref(loaded.pipeline)
    assert {"pipeline", "transformer", "vae", "text_encoder"} <= living.keys()
    del loaded
    CACHE.clear()
    gc.collect()
    assert [name for name, reference in living.items() if reference() is not None] == []

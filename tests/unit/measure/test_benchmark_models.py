"""The architectures that the benchmarks build: the published sizes, counted without memory, and a small run."""

from __future__ import annotations

import pytest
import torch

from fastdiffusers.comparison.architectures import FLUX_DEV, QWEN_IMAGE, WAN22_I2V, Z_IMAGE, Architecture, build
from fastdiffusers.comparison.run import with_picture
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.generate import run_loaded
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest


@pytest.mark.parametrize(
    ("architecture", "billions"),
    [
        (FLUX_DEV, {"transformer": 11.9, "vae": 0.084}),
        (QWEN_IMAGE, {"transformer": 20.4, "vae": 0.127}),
        (Z_IMAGE, {"transformer": 6.15, "vae": 0.084}),
        (WAN22_I2V, {"transformer": 14.3, "transformer_2": 14.3, "vae": 0.127}),
    ],
    ids=["flux", "qwen", "z-image", "wan"],
)
def test_the_full_size_is_the_published_one(architecture: Architecture, billions: dict[str, float]) -> None:
    with torch.device("meta"):
        modules = architecture.build(True)
    counted = {name: sum(p.numel() for p in module.parameters()) / 1e9 for name, module in modules.items()}
    assert counted == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    "architecture", [FLUX_DEV, QWEN_IMAGE, Z_IMAGE, WAN22_I2V], ids=["flux", "qwen", "z-image", "wan"]
)
@pytest.mark.usefixtures("trained_weights")  # an embedded model of other widths must not get in between
def test_the_small_size_runs_through_the_whole_engine(architecture: Architecture) -> None:
    loaded = build(architecture, "cpu", "float32", full=False)
    request = with_picture(SampleRequest("a fox", steps=2, width=64, height=64, num_frames=None), loaded.family)
    if loaded.family.video:
        request = SampleRequest("a fox", steps=2, width=64, height=64, num_frames=5, images=request.images)
    result = run_loaded(loaded, PipelineHandle(loaded.key), request, OptimizationSettings.plain())
    assert result.frames is not None
    assert result.frames.isfinite().all()
    assert result.frames.shape[2:] == (64, 64, 3)

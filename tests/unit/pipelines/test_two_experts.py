"""Which of Wan 2.2's two experts does a step, and what the shift of the noise levels has to do with it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.components import step_experts
from fastdiffusers.pipelines import sampling
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, SampleRequest

CPU = torch.device("cpu")


def loaded(pipeline: Any) -> LoadedPipeline:
    return LoadedPipeline(LoadKey("tiny:test", device="cpu"), pipeline, family_of(pipeline), CPU, torch.float32)


def work(**changes: Any) -> SampleRequest:
    small = {"steps": 4, "guidance": 1.0, "width": 32, "height": 32, "num_frames": 1, "decode": False}
    return SampleRequest("a fox", **{**small, "images": (torch.full((32, 32, 3), 0.4),), **changes})


@pytest.mark.parametrize(
    "changes",
    [{}, {"flow_shift": 5.0}, {"flow_shift": 1.0}, {"scheduler": "euler"}, {"scheduler": "euler", "flow_shift": 5.0}],
    ids=str,
)
def test_the_experts_that_are_told_are_those_that_ran(changes: dict[str, Any], tiny_pipeline: Callable) -> None:
    pipeline, ran = tiny_pipeline("wan22-i2v"), []
    for name, expert in (("high noise", pipeline.transformer), ("low noise", pipeline.transformer_2)):
        expert.register_forward_pre_hook(lambda *_args, name=name: ran.append(name))
    result = sampling.run(loaded(pipeline), work(**changes))
    assert list(result.step_experts) == ran
    counts = {name: ran.count(name) for name in dict.fromkeys(ran)}
    assert result.report.facts["steps by expert"] == ", ".join(f"{name} {count}" for name, count in counts.items())
    assert result.stage_seconds["encode"] > 0
    if changes.get("flow_shift") == 5.0:
        assert counts == {"high noise": 2, "low noise": 2}


def test_one_denoiser_has_no_experts(tiny_pipeline: Callable) -> None:
    result = sampling.run(loaded(tiny_pipeline("flux")), work(images=(), num_frames=None))
    assert result.step_experts == ()
    assert "steps by expert" not in result.report.facts
    assert "encode" not in result.stage_seconds


def test_the_shift_is_what_a_scheduler_configured_so_does(tiny_pipeline: Callable) -> None:
    pipeline, reference = tiny_pipeline("wan22-i2v"), tiny_pipeline("wan22-i2v")
    reference.scheduler = type(reference.scheduler).from_config(reference.scheduler.config, flow_shift=5.0)
    shifted = sampling.run(loaded(pipeline), work(flow_shift=5.0))
    assert torch.equal(shifted.latent, sampling.run(loaded(reference), work()).latent)
    assert not torch.equal(shifted.latent, sampling.run(loaded(pipeline), work()).latent)
    assert pipeline.scheduler.config.flow_shift == 3.0, "it held for one run"
    assert shifted.report.facts["flow_shift"] == 5.0


@pytest.mark.parametrize(
    ("family", "reason"),
    [("sdxl", "EulerDiscreteScheduler has no such setting"), ("flux", "takes its shift from the size of the picture")],
)
def test_a_shift_that_cannot_be_set_is_refused(family: str, reason: str, tiny_pipeline: Callable) -> None:
    with pytest.raises(InputError, match=reason):
        sampling.run(loaded(tiny_pipeline(family)), work(images=(), num_frames=None, flow_shift=5.0))


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), 101.0])
def test_a_shift_out_of_range_is_refused(shift: float, tiny_pipeline: Callable) -> None:
    with pytest.raises(InputError, match="flow_shift"):
        sampling.run(loaded(tiny_pipeline("wan22-i2v")), work(flow_shift=shift))


def test_a_pipeline_without_a_scheduler_of_that_name_has_no_experts() -> None:
    pipeline = SimpleNamespace(config={"boundary_ratio": 0.9})
    assert step_experts(pipeline) == ()

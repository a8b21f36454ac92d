"""Schedulers that draw noise without the run's generators: it follows the seed, for each item of a batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.requested.random_numbers import StepNoise
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

PLAIN = OptimizationSettings.plain(memory_mode="gpu")
REQUEST = SampleRequest("a fox", steps=3, width=64, height=64, seed=7, num_frames=5, decode=False)
WITHOUT_GENERATOR = [("flux-random", "lcm"), ("sd3", "lcm"), ("sdxl", "dpm++ sde"), ("wan22-t2v", "lcm")]


def latent(name: str, request: SampleRequest) -> torch.Tensor:
    made = generate(PipelineHandle(resolve(f"tiny:{name}", dtype="float32", device="cpu")), request, PLAIN).latent
    assert made is not None
    return made


@pytest.mark.parametrize(("name", "scheduler"), WITHOUT_GENERATOR)
def test_the_seed_decides(name: str, scheduler: str) -> None:
    request = replace(REQUEST, scheduler=scheduler)
    before = torch.get_rng_state()
    first = latent(name, request)
    assert torch.equal(torch.get_rng_state(), before)  # nothing outside notices
    torch.rand(5)
    assert torch.equal(latent(name, request), first)
    other = latent(name, replace(request, seed=8))
    assert not torch.allclose(other, first, atol=0.1)
    batch = latent(name, replace(request, batch=2))
    scale = first.std()
    for index, single in enumerate((first, other)):
        assert (batch[index] - single[0]).abs().max() < 1e-2 * scale, index


def test_it_is_what_diffusers_makes_after_manual_seed() -> None:
    """As its documentation tells users to make a run repeatable."""
    import diffusers

    from fastdiffusers.pipelines import tiny

    made = latent("sdxl", replace(REQUEST, scheduler="dpm++ sde", guidance=1.0))
    pipeline = tiny.build("sdxl")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DPMSolverSDEScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(7)
    torch.manual_seed(7)
    call = {"num_inference_steps": 3, "width": 64, "height": 64, "guidance_scale": 1.0, "output_type": "latent"}
    expected = pipeline("a fox", generator=[generator], **call)[0]
    assert torch.allclose(made * pipeline.vae.config.scaling_factor, expected, rtol=1e-6)


def step(
    model_output: object, timestep: object, sample: object, s_churn: float = 0.0, generator: object = None
) -> None:
    """As schedulers have it."""


def test_a_generator_that_is_given_stays() -> None:
    noise = StepNoise((7, 8), torch.device("cpu"), [])
    sample, own = torch.zeros(2, 4), torch.Generator()
    assert len(noise.for_step(step, sample, (), {})["generator"]) == 2
    assert noise.for_step(step, sample, (), {"generator": own})["generator"] is own
    assert noise.for_step(step, sample, (0.0, own), {}) == {}
    assert noise.for_step(step, torch.zeros(3, 4), (), {}) == {}  # rows that are no items
    assert noise.for_step(lambda output, time, sample: None, sample, (), {}) == {}
    assert StepNoise((7,), torch.device("cpu"), []).for_step(step, torch.zeros(1, 4), (), {}) == {}


def test_a_scheduler_with_a_seed_of_its_own() -> None:
    import diffusers

    scheduler = diffusers.DPMSolverSDEScheduler()
    StepNoise((7, 8), torch.device("cpu"), [scheduler])
    seeds = copy.copy(scheduler.noise_sampler_seed)
    assert len(set(seeds)) == 2
    StepNoise((8, 9), torch.device("cpu"), [scheduler])
    assert scheduler.noise_sampler_seed[0] == seeds[1]
    StepNoise((7,), torch.device("cpu"), [scheduler])
    assert scheduler.noise_sampler_seed is None
    fixed = diffusers.DPMSolverSDEScheduler(noise_sampler_seed=3)
    StepNoise((7, 8), torch.device("cpu"), [fixed])
    assert fixed.noise_sampler_seed == 3

"""Schedulers outside the table of families: what is advised runs, what is refused fails in bare diffusers too, and both
are known from the class and the configuration of its own scheduler, before any weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import around, build, generator, loaded

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import sampling
from fastdiffusers.pipelines.classes.scheduling import scheduler_use
from fastdiffusers.pipelines.families import FAMILIES
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.schedulers import SCHEDULERS, _candidate, compatible_schedulers
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

CALLS: dict[str, dict[str, Any]] = {
    "aura_flow": {"width": 32, "height": 32},
    "chroma": {"width": 32, "height": 32},
    "cogvideox": {"width": 16, "height": 16, "num_frames": 5, "max_sequence_length": 16},
    "ltx": {"width": 32, "height": 32, "num_frames": 9},
    "lumina": {"width": 64, "height": 64},
    "lumina2": {"width": 64, "height": 64},
    "pixart": {"width": 32, "height": 32, "use_resolution_binning": False, "clean_caption": False},
    "stable_diffusion": {"width": 32, "height": 32},
}


def runs(pipeline: Any, scheduler: Any, **call: Any) -> bool:
    """Whether bare diffusers ends two steps with finite numbers."""
    pipeline.scheduler = scheduler
    try:
        made = pipeline(prompt="a fox", num_inference_steps=2, generator=generator(), output_type="latent", **call)[0]
    except (ValueError, TypeError, AttributeError, AssertionError, IndexError, NotImplementedError, RuntimeError):
        return False
    return bool(made.isfinite().all())


@pytest.mark.parametrize("name", sorted(CALLS))
def test_what_is_advised_runs_and_what_is_refused_does_not(name: str) -> None:
    pipeline = build(name)
    original = pipeline.scheduler
    advised = compatible_schedulers(original, family_of(pipeline), steps=2)
    assert advised[0] == type(original).__name__
    for scheduler in SCHEDULERS:
        candidate = _candidate(original, scheduler)
        if scheduler != advised[0] and not isinstance(candidate, str):  # in words: for another kind of process
            assert runs(pipeline, candidate, **CALLS[name]) == (scheduler in advised), scheduler


def test_the_forms_for_pictures_are_asked_too() -> None:
    """A class that mixes noise into a picture wants more of its scheduler than one that starts from noise."""
    pipeline = build(lambda: around("flux", "FluxImg2ImgPipeline"))
    text = family_of(diffusers.FluxPipeline)
    original = pipeline.scheduler
    for_text = compatible_schedulers(original, text, steps=2)
    for_pictures = compatible_schedulers(original, text, steps=2, pipeline_class=type(pipeline))
    assert set(for_pictures) < set(for_text)
    picture = torch.rand(64, 64, 3)
    for name in for_text[1:]:
        request = SampleRequest("a fox", steps=4, strength=0.5, images=(picture,), width=64, height=64, scheduler=name)
        pipeline = loaded(build(lambda: around("flux", "FluxPipeline")))
        if name in for_pictures:
            assert sampling.run(pipeline, request).latent.isfinite().all(), name
            continue
        with pytest.raises(InputError, match="does not fit FluxImg2ImgPipeline"):
            sampling.run(pipeline, request)


def test_the_sources_say_what_the_table_says() -> None:
    """The same reading of the classes in the table gives what the table holds, found out by running them."""
    for family in FAMILIES:
        use = scheduler_use(getattr(diffusers, family.classes[0]))
        assert set(use.timestep_arguments) == set(family.timestep_arguments), family.name
        assert use.own_flow_sigmas == family.own_flow_sigmas, family.name


def test_a_scheduler_that_does_not_fit_is_refused_before_the_load(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build("chroma").save_pretrained(folder)
    handle = PipelineHandle(resolve(str(folder), device="cpu"))
    seen: list[str] = []
    watching = Callbacks(lambda progress: seen.append(progress.stage))
    for name in ("EulerDiscreteScheduler", "heun", "FlowMatchHeunDiscreteScheduler"):
        with pytest.raises(InputError, match="does not fit ChromaPipeline"):
            generate(handle, SampleRequest("a fox", steps=2, scheduler=name), OptimizationSettings(), watching)
    assert seen == []


def test_a_model_with_a_scheduler_of_its_own_keeps_it() -> None:
    sprint, forcing = (family_of(f"{name}Pipeline") for name in ("SanaSprint", "SkyReelsV2DiffusionForcing"))
    assert compatible_schedulers(diffusers.SCMScheduler(), sprint) == ("SCMScheduler",)
    unipc = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    assert compatible_schedulers(unipc, forcing) == ("UniPCMultistepScheduler",)
    consistency = family_of("LatentConsistencyModelPipeline")
    assert compatible_schedulers(diffusers.LCMScheduler(), consistency) == ("LCMScheduler",)

"""Pipelines outside the table of families: what their call's signature says, and None left to the pipeline itself."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import diffusers
import pytest
import torch

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.components import denoisers
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import call_arguments
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, SampleRequest

ASIDE = {"num_inference_steps", "generator", "output_type", "prompt", "num_images_per_prompt", "num_videos_per_prompt"}


def unknown_classes() -> list[type]:
    names = [name for name in dir(diffusers) if name.endswith("Pipeline") and name != "DiffusionPipeline"]
    found = []
    for name in names:
        pipeline_class = getattr(diffusers, name)
        takes_text = "prompt" in inspect.signature(pipeline_class.__call__).parameters
        if takes_text and not family_of(pipeline_class).known:
            found.append(pipeline_class)
    return found


def test_what_nobody_asked_for_is_what_the_signature_says() -> None:
    """Every argument of a call that is made without wishes has the value that the signature gives it.

    But for the negative prompt without which a `true_cfg_scale` does nothing: it is the " " of diffusers' examples.
    """
    classes = unknown_classes()
    assert len(classes) > 150
    for pipeline_class in classes:
        parameters = inspect.signature(pipeline_class.__call__).parameters
        family = replace(family_of(pipeline_class), required=(), makes="", images="optional")

        class Stand:
            config = MappingProxyType({})
            __call__ = pipeline_class.__call__

        for name, value in call_arguments(Stand(), family, ready(family, SampleRequest("a fox"))).items():
            default = parameters[name].default
            if name == "negative_prompt" and family.guidance_argument == "true_cfg_scale":
                default = " "
            if name == "negative_prompt" and pipeline_class.__name__.startswith("EasyAnimate"):
                default = ""  # it fails with its own None
            if name not in ASIDE and default is not inspect.Parameter.empty:
                assert value == default, f"{pipeline_class.__name__}: {name} = {value}, the signature has {default}"


def test_the_defaults_that_used_to_be_wrong() -> None:
    for name in ("CogVideoXPipeline", "AllegroPipeline", "StableVideoDiffusionPipeline"):
        family = family_of(getattr(diffusers, name))
        own = inspect.signature(getattr(diffusers, name).__call__).parameters["num_frames"].default
        assert family.num_frames == (own or 0)
        assert ready(replace(family, images="optional"), SampleRequest("a fox")).num_frames == own
    assert family_of(diffusers.SanaVideoPipeline).frames_argument == "frames"
    assert ready(family_of(diffusers.StableDiffusionPipeline), SampleRequest("a fox")).width is None


def test_inputs_that_there_are_none_for_are_named_before_anything_loads() -> None:
    with pytest.raises(InputError, match="pose_video, face_video"):
        check_request(family_of("WanAnimatePipeline"), SampleRequest("a fox", images=(torch.rand(8, 8, 3),)))
    with pytest.raises(InputError, match="image_embeds"):
        check_request(family_of("KandinskyV22Pipeline"), SampleRequest("a fox"))


def test_sizes_left_to_the_pipeline_are_reported_as_they_came() -> None:
    class OwnSizePipeline(diffusers.StableDiffusionXLPipeline):
        pass

    pipeline = tiny.build("sdxl")
    pipeline.default_sample_size = 24  # its own would be 1024 pixels
    expected = pipeline("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
    pipeline.__class__ = OwnSizePipeline
    loaded = LoadedPipeline(LoadKey("tiny:sdxl"), pipeline, family_of(pipeline), torch.device("cpu"), torch.float32)
    result = sampling.run(loaded, SampleRequest("a cat", steps=2))
    height, width = expected.images.shape[-2:]
    assert width == 24 * pipeline.vae_scale_factor
    assert result.report.facts["size"] == f"{width}x{height}"
    assert torch.equal(result.frames[:, 0].permute(0, 3, 1, 2), expected.images)


def test_every_model_of_a_step_is_a_denoiser() -> None:
    parts = {name: torch.nn.Linear(1, 1) for name in ("vae", "transformer", "unconditional_transformer", "unet")}
    assert set(denoisers(SimpleNamespace(components=parts))) == set(parts) - {"vae"}

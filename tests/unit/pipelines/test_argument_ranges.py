"""Values of arguments that are of the right kind and mean nothing are refused before loading, those that do are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import SampleRequest


def check(form: str, name: str, value: Any) -> None:
    check_request(family_of(form), SampleRequest(prompt="a fox", conditions=(ArgumentCondition(name, value),)))


@pytest.mark.parametrize(
    ("form", "name", "value", "said"),
    [
        ("StableDiffusionPipeline", "eta", -7, "it is a share from 0 to 1. Write eta=0.5, or leave it out."),
        ("StableDiffusionPipeline", "eta", 1.5, "it is a share from 0 to 1."),
        ("StableDiffusionPipeline", "guidance_rescale", 2, "it is a share from 0 to 1."),
        ("StableDiffusionXLPipeline", "denoising_end", 5, "it is a share between 0 and 1. Write denoising_end=0.5"),
        ("StableDiffusionXLPipeline", "denoising_end", 1.0, "it is a share between 0 and 1."),
        ("StableDiffusionXLPipeline", "denoising_end", 0.0, "it is a share between 0 and 1."),
        ("FluxPipeline", "sigmas", [0, 0], "less noise than the one before it. Write them from the largest"),
        ("FluxPipeline", "sigmas", [0.2, 1.0], "to the smallest: sigmas=[1.0, 0.2]."),
        ("FluxPipeline", "sigmas", [0.0], "a run that starts without noise makes nothing. Leave it out."),
        ("FluxPipeline", "sigmas", [1.0, -0.5], "noise is never less than none. Give values from 0 upwards."),
        ("StableDiffusionXLPipeline", "sigmas", torch.tensor([1.0, 2.0]), "sigmas=[2.0, 1.0]."),
        ("StableDiffusionXLPipeline", "timesteps", [1, 400, 801], "timesteps=[801, 400, 1]."),
        ("StableDiffusionXLPipeline", "timesteps", [801, -1], "the last timestep is 0."),
    ],
)
def test_what_means_nothing_is_refused(form: str, name: str, value: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        check(form, name, value)
    assert str(caught.value).startswith(f"argument {name} = ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "name", "value"),
    [
        ("StableDiffusionPipeline", "eta", 0),
        ("StableDiffusionPipeline", "eta", 1.0),
        ("StableDiffusionPipeline", "guidance_rescale", 0.7),
        ("StableDiffusionXLPipeline", "denoising_end", 0.8),
        ("StableDiffusionXLPipeline", "denoising_end", None),
        ("StableDiffusionXLPipeline", "timesteps", [999, 500, 0]),
        ("FluxPipeline", "sigmas", [1.0, 0.5, 0.0]),
        ("FluxPipeline", "sigmas", None),
    ],
)
def test_what_has_a_meaning_is_taken(form: str, name: str, value: Any) -> None:
    check(form, name, value)

"""Masks with modular pipelines: their own inpaint blocks, equal to bare Modular Diffusers, or blended latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from modular_twins import MODULAR_CLASSES, bare
from PIL import Image
from test_modular_runs import PICTURE, handle, request_for

from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import generate
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.conditions.blend import resized_to_latent
from fastdiffusers.pipelines.conditions.kinds import MaskCondition
from fastdiffusers.pipelines.conditions.masks import inpaint_form
from fastdiffusers.pipelines.loading import loader

PLAIN = OptimizationSettings()
MASK = torch.zeros(1, 64, 64)
MASK[:, 16:48, 24:] = 1.0


def masked(family: Any, mask: torch.Tensor = MASK, **changes: Any) -> Any:
    return replace(request_for(family), images=(PICTURE,), conditions=(MaskCondition(mask),), **changes)


@pytest.mark.parametrize("name", MODULAR_CLASSES)
def test_a_mask_is_kept_to(name: str, modular_folder: Callable[[str], Path]) -> None:
    folder = modular_folder(name)
    family = loader.family_of_key(loader.resolve(str(folder)))
    if family.video or not family.known:
        pytest.skip("it makes clips, or is known by its blocks alone")
    result = generate.generate(handle(folder), masked(family), PLAIN)
    again = generate.generate(handle(folder), masked(family), PLAIN)
    assert torch.equal(result.frames, again.frames)
    if not inpaint_form(family):
        kept, _ = generate.encode(handle(folder), PICTURE[None], PLAIN)
        cells = resized_to_latent(MASK, tuple(kept.shape))
        torch.testing.assert_close(result.latent[cells == 0], kept[cells == 0], atol=1e-4, rtol=1e-4)
        return
    pipeline = bare(folder)
    inputs = {
        "prompt": "a cat on a mat",
        "image": to_pil(PICTURE),
        "mask_image": Image.fromarray((MASK[0] * 255).byte().numpy(), mode="L"),
        "strength": 1.0,
        "num_inference_steps": 2,
        "width": 64,
        "height": 64,
        "generator": torch.Generator().manual_seed(5),
        "output_type": "pil",  # Qwen-Image's blocks know no other with a mask
    }
    if family.guidance_argument == "guidance_scale":
        inputs["guidance_scale"] = family.guidance
    if family.guidance_argument == "guider":
        guider = pipeline.guider.new(guidance_scale=family.guidance, enabled=family.guidance > 1)
        pipeline.update_components(guider=guider)
    state = pipeline(**{key: value for key, value in inputs.items() if key in pipeline.blocks.input_names})
    theirs = torch.as_tensor(numpy.asarray(state.values["images"][0]))
    assert torch.equal((result.frames[0, 0] * 255).round().byte(), theirs)


@pytest.mark.parametrize("name", MODULAR_CLASSES)
def test_a_mask_of_ones_is_none(name: str, modular_folder: Callable[[str], Path]) -> None:
    folder = modular_folder(name)
    family = loader.family_of_key(loader.resolve(str(folder)))
    if family.video or not family.known:
        pytest.skip("it makes clips, or is known by its blocks alone")
    ones = generate.generate(handle(folder), masked(family, torch.ones_like(MASK)), PLAIN)
    images = () if family.images == "none" else (PICTURE,)
    plain = generate.generate(handle(folder), replace(request_for(family), images=images), PLAIN)
    assert torch.equal(ones.frames, plain.frames)

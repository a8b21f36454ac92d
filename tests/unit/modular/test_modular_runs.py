"""Modular pipelines through the engine against bare Modular Diffusers, in one process: the same bits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from modular_twins import MODULAR_CLASSES, ROUNDING, bare

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import generate
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.families import Family
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

Folder = Callable[[str], Path]
PLAIN = OptimizationSettings()
REQUEST = SampleRequest("a cat on a mat", steps=2, width=64, height=64, num_frames=5, seed=5)
PICTURE = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))


def handle(folder: Path) -> PipelineHandle:
    return PipelineHandle(loader.resolve(str(folder)))


def request_for(family: Family, **changes: Any) -> SampleRequest:
    request = replace(REQUEST, **changes)
    if not family.video:
        request = replace(request, num_frames=None)
    return replace(request, images=(PICTURE,)) if family.images == "required" else request


def bare_result(pipeline: Any, family: Family, request: SampleRequest) -> torch.Tensor:
    """What Modular Diffusers itself makes of a request, [B, T, H, W, 3]."""
    generator = [torch.Generator().manual_seed(request.seed + index) for index in range(request.batch)]
    inputs = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.steps,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        "num_images_per_prompt": request.batch,
        "num_videos_per_prompt": request.batch,
        "generator": generator if request.batch > 1 else generator[0],
        "output_type": "np",
    }
    if request.images:
        picture = to_pil(request.images[0])
        inputs["image"] = [picture] if family.max_images > 1 else picture
    if request.strength < 1:
        inputs["strength"] = request.strength
    guidance = family.guidance if request.guidance is None else request.guidance
    if family.guidance_argument == "guidance_scale":
        inputs["guidance_scale"] = guidance
    if family.guidance_argument == "guider":
        pipeline.update_components(guider=pipeline.guider.new(guidance_scale=guidance, enabled=guidance > 1))
    if family.second_guidance:
        second = family.guidance_2 if request.guidance is None and family.guidance_2 else guidance
        pipeline.update_components(guider_2=pipeline.guider_2.new(guidance_scale=second))
    taken = pipeline.blocks.input_names
    state = pipeline(**{name: value for name, value in inputs.items() if name in taken and value is not None})
    made = state.values.get("videos")
    pixels = torch.as_tensor(numpy.asarray(state.values["images"] if made is None else made))
    return pixels if pixels.ndim == 5 else pixels.unsqueeze(1)


@pytest.mark.parametrize("name", MODULAR_CLASSES)
def test_a_run_equals_bare_modular_diffusers(name: str, modular_folder: Folder) -> None:
    folder = modular_folder(name)
    family = loader.family_of_key(loader.resolve(str(folder)))
    request = request_for(family)
    result = generate.generate(handle(folder), request, PLAIN)
    assert result.frames is not None
    assert torch.equal(result.frames, bare_result(bare(folder), family, request))
    assert len(result.step_seconds) == 2
    latent = result.latent
    assert latent is not None
    frames, _ = generate.decode(handle(folder), latent, PLAIN)
    assert torch.equal(frames, result.frames)
    undecoded = generate.generate(handle(folder), replace(request, decode=False), PLAIN)
    assert undecoded.frames is None
    assert torch.equal(undecoded.latent, latent)


@pytest.mark.parametrize("name", ["flux", "sdxl", "zimage"])
def test_what_a_request_can_ask_for_equals_bare_modular_diffusers(name: str, modular_folder: Folder) -> None:
    folder = modular_folder(name)
    family = loader.family_of_key(loader.resolve(str(folder)))
    pipeline = bare(folder)
    for changes in (
        {"batch": 2, "guidance": 3.0, "negative_prompt": "rain"},
        {"images": (PICTURE,), "strength": 0.6},
        {"guidance": 1.0},
    ):
        request = request_for(family, **changes)
        result = generate.generate(handle(folder), request, PLAIN)
        difference = (result.frames - bare_result(pipeline, family, request)).abs().max()
        assert difference <= (1e-5 if request.batch > 1 else 0), changes  # a batch is decoded one by one here


@pytest.mark.parametrize("name", ["sdxl", "wan22-i2v"])
def test_a_batch_that_is_made_one_by_one_has_every_item(name: str, modular_folder: Folder) -> None:
    """Their blocks refuse a list of generators with a picture to start from."""
    folder = modular_folder(name)
    family = loader.family_of_key(loader.resolve(str(folder)))
    strength = {} if family.video else {"strength": 0.6}
    request = request_for(family, images=(PICTURE,), **strength)
    both = generate.generate(handle(folder), replace(request, batch=2), PLAIN)
    assert both.latent is not None
    assert len(both.frames) == len(both.latent) == len(both.seeds) == 2
    for index in range(2):
        single = generate.generate(handle(folder), replace(request, seed=REQUEST.seed + index), PLAIN)
        torch.testing.assert_close(both.frames[index], single.frames[0], atol=1e-5, rtol=0)


def test_wan_without_guidance_equals_its_classical_form(modular_folder: Folder) -> None:
    """Its own blocks ask for a negative prompt's embeddings, and then read none."""
    request = replace(REQUEST, guidance=1.0)
    modular = generate.generate(handle(modular_folder("wan22-t2v")), request, PLAIN)
    classical = generate.generate(PipelineHandle(loader.resolve("tiny:wan22-t2v")), request, PLAIN)
    torch.testing.assert_close(modular.latent, classical.latent, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("name", ["flux", "sdxl", "sd3", "qwenimage"])
def test_a_latent_to_start_from_gives_what_the_classical_form_makes_of_it(name: str, modular_folder: Folder) -> None:
    classical = PipelineHandle(loader.resolve(f"tiny:{name}"))
    latent, _ = generate.encode(classical, PICTURE[None], PLAIN)
    request = replace(REQUEST, num_frames=None, steps=4, guidance=1.0, latent=latent, strength=0.5)
    expected = generate.generate(classical, request, PLAIN).latent
    made = generate.generate(handle(modular_folder(name)), request, PLAIN).latent
    torch.testing.assert_close(made, expected, atol=ROUNDING, rtol=0)


def test_guiders_and_schedulers_come_back_as_they_were(modular_folder: Folder) -> None:
    folder = modular_folder("wan22-t2v")
    generate.generate(handle(folder), REQUEST, PLAIN)
    loaded = CACHE.peek(loader.resolve(str(folder)))
    assert loaded is not None
    names = ("guider", "guider_2", "scheduler")
    before = [getattr(loaded.pipeline, name) for name in names]
    states = [dict(vars(part)) for part in before]
    generate.generate(handle(folder), replace(REQUEST, guidance=2.5, flow_shift=3.0), PLAIN)
    after = [getattr(loaded.pipeline, name) for name in names]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert [vars(part) for part in after] == states


class Cancelled(BaseException):
    """As ComfyUI's own, no Exception."""


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", [Cancelled, Stopped])
@pytest.mark.parametrize("name", ["qwenimage", "wan22-t2v"])
def test_cancel_then_rerun_is_bit_equal_and_silent(
    name: str, kind: type[BaseException], modular_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = modular_folder(name)
    first = generate.generate(handle(folder), replace(REQUEST, steps=3), PLAIN)
    loaded = CACHE.peek(loader.resolve(str(folder)))
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.stage == "denoise" and progress.done == 2:
            raise kind

    with caplog.at_level(logging.WARNING), pytest.raises(kind):
        generate.generate(handle(folder), replace(REQUEST, steps=3), PLAIN, Callbacks(on_progress=watch))
    assert "Traceback" not in caplog.text
    assert [each.total for each in seen if each.stage == "denoise"] == [3, 3]
    assert any(each.preview_latent is not None for each in seen)
    again = generate.generate(handle(folder), replace(REQUEST, steps=3), PLAIN)
    assert CACHE.peek(loader.resolve(str(folder))) is loaded
    assert torch.equal(again.frames, first.frames)

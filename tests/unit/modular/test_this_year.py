"""Models that diffusers has as blocks alone, or first: the same bits as bare, their rules, their sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from modular_twins import bare
from this_year import ANIMATED, NAMES, save_model

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.classes.guidance import OWN_SCHEDULES
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, MaskCondition, VideoCondition
from fastdiffusers.pipelines.generate import decode, encode, generate
from fastdiffusers.pipelines.loading.loader import family_of_key, resolve
from fastdiffusers.pipelines.modular.models import MODELS
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import ready
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

GPU = OptimizationSettings.plain(memory_mode="gpu")
REQUEST = SampleRequest("a cat on a mat", steps=3, width=64, height=64, seed=5)
SIZES = {"minimax-h3": {"width": 32, "height": 32}}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, built = tmp_path_factory.mktemp("this_year"), {}

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = save_model(name, root / name)
        return built[name]

    return folder


def run(folder: Path, request: SampleRequest, settings: OptimizationSettings = GPU, **options: Any) -> SampleResult:
    return generate(PipelineHandle(resolve(str(folder))), request, settings, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_equals_bare_modular_diffusers(name: str, folder_of: Callable[[str], Path]) -> None:
    folder, request = folder_of(name), replace(REQUEST, **SIZES.get(name, {}))
    result = run(folder, request)
    pipeline = bare(folder)
    pipeline._blocks.sub_blocks.pop("prompt_upsampler", None)  # of FLUX.3, whose model for that is not there
    inputs = {"width": request.width, "height": request.height, "num_frames": 124, "output_type": "np"}
    taken = {key: value for key, value in inputs.items() if key in pipeline.blocks.input_names}
    generator = torch.Generator().manual_seed(5)
    state = pipeline(prompt=request.prompt, num_inference_steps=3, generator=generator, **taken).values
    made = state["videos"] if "videos" in state else state["images"]
    frames = torch.as_tensor(numpy.asarray(made))
    assert torch.equal(result.frames, frames if frames.ndim == 5 else frames.unsqueeze(1))
    again, _ = decode(PipelineHandle(resolve(str(folder))), result.latent, GPU)
    assert torch.equal(again, result.frames)
    assert run(folder, replace(request, decode=False)).frames is None
    if name == "minimax-h3":
        assert torch.equal(result.audio["waveform"], state["audio"])
        assert result.audio["sample_rate"] == state["sampling_rate"] == 32_000
        assert (result.frame_rate, result.frames.shape[1]) == (24.0, 124)


@pytest.mark.parametrize("name", NAMES)
def test_switches_and_a_cancel_leave_no_trace(name: str, folder_of: Callable[[str], Path], fresh_dynamo: None) -> None:
    folder, request = folder_of(name), replace(REQUEST, **SIZES.get(name, {}))
    plain = run(folder, request)
    loaded = CACHE.peek(resolve(str(folder)))
    eager = CompileSettings(backend="eager", headroom_gib=0.0)
    for changes in (
        {"attention": "math"},
        {"torch_compile": "on", "compile": eager},
        {"memory_mode": "group_offload_block"},
    ):
        result = run(folder, request, replace(GPU, **changes))
        assert not any(record.failed for record in result.report.records), changes
        assert changes.get("attention", "sdpa") in result.report["attention"].applied
        assert torch.allclose(result.frames, plain.frames, atol=2e-3), changes

    class Cancelled(BaseException):
        pass

    steps: list[Progress] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "denoise":
            steps.append(progress)
            raise Cancelled

    with pytest.raises(Cancelled):
        run(folder, request, callbacks=Callbacks(on_progress=watch))
    assert len(steps) == 1
    assert torch.equal(run(folder, request).frames, plain.frames)
    assert CACHE.peek(resolve(str(folder))) is loaded


def test_the_rules_of_minimax_h3(folder_of: Callable[[str], Path]) -> None:
    family = family_of_key(resolve(str(folder_of("minimax-h3"))))
    request = ready(family, SampleRequest("a cat"))
    assert (request.width, request.height, request.num_frames, request.frame_rate) == (1344, 768, 124, 24.0)
    fitted = ready(family, SampleRequest("a cat", num_frames=130))
    assert fitted.num_frames == 124
    assert fitted.notes == (
        "num_frames: 124 instead of 130; minimax-h3 makes 17n + 5 frames.",
        f"steps: minimax-h3 makes {family.steps - 1} evaluations of {family.steps} steps.",
    )
    for changes, said in (
        ({"num_frames": 100}, "17n + 5 frames, at least 124 and at most 345"),
        ({"num_frames": 346}, "The nearest: 345"),
        ({"steps": 1}, "between 2 and"),
        ({"width": 1600, "height": 320}, "from 1:4 to 4:1"),
    ):
        with pytest.raises(InputError) as error:
            ready(family, SampleRequest("a cat", **changes))
        assert said in str(error.value)


def test_minimax_h3_makes_one_evaluation_less_than_steps(folder_of: Callable[[str], Path]) -> None:
    result = run(folder_of("minimax-h3"), replace(REQUEST, steps=4, width=32, height=32))
    assert len(result.step_seconds) == 3
    assert "steps: minimax-h3 makes 3 evaluations of 4 steps." in result.report.notes


def test_a_modular_class_outside_the_tests_has_a_family_too() -> None:
    """Every entry of the table names fields that there are."""
    for name in MODELS:
        assert family_of(getattr(diffusers, name)).classes == (name,)
    family = family_of("Ideogram4ModularPipeline")
    assert family.guidance_argument == OWN_SCHEDULES[family.name].argument


def test_latents_of_minimax_h3_have_the_length_of_its_clips() -> None:
    handle = PipelineHandle(resolve("tiny:minimax-h3"))
    latent, report = encode(handle, torch.rand(1, 30, 32, 32, 3), GPU)
    assert latent.shape == (1, 24, 12, 2, 2)
    assert report.notes == ["the clip of 30 frames was filled up with 9 copies of its last frame"]
    frames, _ = decode(handle, latent, GPU)
    assert frames.shape == (1, 39, 32, 32, 3)
    with pytest.raises(InputError, match=r"13 latent frames, and minimax-h3's VAE decodes 5n \+ 2"):
        decode(handle, torch.zeros(1, 24, 13, 2, 2), GPU)


def test_a_mask_keeps_a_part_of_a_minimax_h3_latent() -> None:
    handle, mask = PipelineHandle(resolve("tiny:minimax-h3")), torch.ones(1, 64, 64)
    request = replace(REQUEST, latent=torch.randn(1, 24, 37, 4, 4))
    mask[..., :32] = 0
    kept = generate(handle, replace(request, conditions=(MaskCondition(mask),)), GPU)
    torch.testing.assert_close(kept.latent[..., :2], request.latent[..., :2])
    assert not torch.allclose(kept.latent[..., 2:], request.latent[..., 2:], atol=0.1)
    plain = generate(handle, request, GPU)
    ones = generate(handle, replace(request, conditions=(MaskCondition(torch.ones_like(mask)),)), GPU)
    assert torch.equal(ones.latent, plain.latent)


def test_wan_animate_2_moves_a_picture_as_a_clip_does(folder_of: Callable[[str], Path]) -> None:
    """Two segments, each continued from the one before, equal to the bare pipeline."""
    if not hasattr(diffusers, "WanAnimate2ModularPipeline"):
        pytest.skip("this release of diffusers has no Wan-Animate-2")
    folder = folder_of(ANIMATED)
    clip = torch.rand(17, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    picture = torch.rand(96, 64, 3, generator=torch.Generator().manual_seed(2))
    moved = (VideoCondition(clip), ArgumentCondition("segment_frame_length", 9))
    request = replace(REQUEST, steps=2, images=(picture,), max_sequence_length=16, conditions=moved)
    result = run(folder, request)
    state = bare(folder)(
        prompt=request.prompt,
        image=to_pil(picture),
        driving_video=[to_pil(frame) for frame in clip],
        height=64,
        width=64,
        num_inference_steps=2,
        segment_frame_length=9,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).values
    assert torch.equal(result.frames, torch.as_tensor(numpy.asarray(state["videos"])))
    for missing, words in (({"images": ()}, "image"), ({"conditions": ()}, "driving_video")):
        with pytest.raises(InputError, match=words):
            run(folder, replace(request, **missing))

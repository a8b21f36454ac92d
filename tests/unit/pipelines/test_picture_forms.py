"""Text-to-video folders that take a first frame, and text-to-image ones outside the table that start from a picture:
the class for it around the same models, equal to bare diffusers."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import around, build, generator, loaded

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import form_for, to_pil
from fastdiffusers.pipelines.loading.loader import family_of_key, resolve
from fastdiffusers.pipelines.recognize import family_of, small
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, SampleRequest

PICTURE = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))


def frames_of(result: Any) -> torch.Tensor:
    """[B, T, 3, H, W], as diffusers' "pt" output."""
    return result.frames.permute(0, 1, 4, 2, 3)


def test_wan_5b_takes_a_first_frame_as_its_image_to_video_class_does() -> None:
    pipeline = build("wan_5b")
    request = SampleRequest("a fox", steps=2, width=64, height=64, num_frames=5, images=(PICTURE,))
    ours = sampling.run(loaded(pipeline), request)
    bare = diffusers.WanImageToVideoPipeline(
        **pipeline.components, image_encoder=None, image_processor=None, expand_timesteps=True
    )
    size = {"width": 64, "height": 64, "num_frames": 5}
    call = {"num_inference_steps": 2, "generator": [generator()], "output_type": "pt", "guidance_scale": 5.0}
    theirs = bare(prompt="a fox", image=to_pil(PICTURE), **size, **call).frames
    assert torch.allclose(frames_of(ours), theirs.float(), atol=1e-5)
    without = sampling.run(loaded(pipeline), SampleRequest("a fox", steps=2, width=64, height=64, num_frames=5))
    assert not torch.allclose(frames_of(without), theirs.float(), atol=1e-2)


def test_ltx_video_takes_a_first_frame_as_its_image_to_video_class_does() -> None:
    pipeline = build("ltx")
    request = SampleRequest("a fox", steps=2, width=64, height=64, num_frames=9, images=(PICTURE,))
    ours = sampling.run(loaded(pipeline), request)
    bare = diffusers.LTXImageToVideoPipeline(**pipeline.components)
    call = {"num_inference_steps": 2, "generator": generator(), "output_type": "pt"}
    theirs = bare(image=to_pil(PICTURE), prompt="a fox", width=64, height=64, num_frames=9, **call).frames
    assert torch.equal(frames_of(ours), theirs.float())


def test_ltx2_takes_a_first_frame_as_its_image_to_video_class_does() -> None:
    text, picture = tiny.build("ltx2-t2v"), tiny.build("ltx2-i2v")
    for name, part in text.components.items():
        if isinstance(part, torch.nn.Module):
            picture.components[name].load_state_dict(part.state_dict())
    request = SampleRequest("a fox", steps=2, width=64, height=64, num_frames=9, images=(PICTURE,))
    results = []
    for pipeline in (text, picture):
        family = small(family_of(pipeline))
        held = LoadedPipeline(LoadKey("test"), pipeline, family, torch.device("cpu"), torch.float32)
        results.append(sampling.run(held, request))
    assert torch.equal(results[0].latent, results[1].latent)
    assert type(form_for(text, family_of(text), request)) is type(picture)


@pytest.mark.parametrize(
    ("name", "form"),
    [("stable_diffusion", "StableDiffusionImg2ImgPipeline"), ("chroma", "ChromaImg2ImgPipeline")],
)
def test_a_picture_to_start_from_outside_the_table(name: str, form: str) -> None:
    pipeline = build(name)
    request = SampleRequest("a fox", steps=4, strength=0.5, images=(PICTURE,))
    ours = sampling.run(loaded(pipeline), request)
    extra = {"requires_safety_checker": False} if name == "stable_diffusion" else {}
    bare = getattr(diffusers, form)(**pipeline.components, **extra)
    call = {"num_inference_steps": 4, "generator": generator(), "output_type": "pt"}
    theirs = bare(prompt="a fox", image=to_pil(PICTURE), strength=0.5, **call).images
    assert torch.equal(frames_of(ours)[:, 0], theirs.float())


def test_the_models_are_not_copied() -> None:
    pipeline = build("wan_5b")
    form = form_for(pipeline, family_of(pipeline), SampleRequest("a fox", images=(PICTURE,)))
    assert type(form) is diffusers.WanImageToVideoPipeline
    assert form.config.expand_timesteps
    for name in ("transformer", "vae", "text_encoder"):
        assert getattr(form, name) is getattr(pipeline, name)


def test_it_is_known_before_the_load(tmp_path: Any) -> None:
    build("wan_5b").save_pretrained(tmp_path / "small")
    family = family_of_key(resolve(str(tmp_path / "small"), device="cpu"))
    assert (family.images, family.image_to_video, family.frame_rate) == ("optional", "WanImageToVideoPipeline", 24.0)
    check_request(family, SampleRequest("a fox", images=(PICTURE,)))
    with pytest.raises(InputError, match="no last frame"):
        check_request(family, SampleRequest("a fox", images=(PICTURE,), last_image=PICTURE))


def test_a_model_whose_form_needs_other_weights_stays_text_only() -> None:
    for name in ("WanPipeline", "HunyuanVideo15Pipeline", "CogVideoXPipeline", "Kandinsky5T2VPipeline"):
        family = family_of(name)
        assert family.image_to_video == ""
        with pytest.raises(InputError, match="text-only"):
            check_request(family, SampleRequest("a fox", images=(PICTURE,)))


def test_an_image_to_image_class_keeps_its_own_strength_and_says_so() -> None:
    pipeline = build(lambda: around("qwenimage", "QwenImageImg2ImgPipeline"))
    request = SampleRequest("a fox", steps=2, width=64, height=64, images=(PICTURE,))
    notes = check_request(family_of(pipeline), request)
    assert any("strength" in note and "0.6" in note for note in notes)

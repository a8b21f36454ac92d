"""Masks: the inpaint form around the same models, and latents blended where there is none."""

from __future__ import annotations

import inspect
from dataclasses import replace
from math import ceil
from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import build, generator, loaded
from PIL import Image

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import form_for, to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.blend import resized_to_latent
from fastdiffusers.pipelines.conditions.kinds import MaskCondition
from fastdiffusers.pipelines.conditions.masks import inpaint_form
from fastdiffusers.pipelines.decoding import pipeline_vae
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of, small
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, PipelineHandle, SampleRequest

PICTURE = torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(1, 64, 96)
MASK[:, 16:48, 24:] = 1.0
SEED = 3

FORMS = {
    "flux": "FluxInpaintPipeline",
    "sdxl": "StableDiffusionXLInpaintPipeline",
    "sd3": "StableDiffusion3InpaintPipeline",
    "qwenimage": "QwenImageInpaintPipeline",
    "zimage": "ZImageInpaintPipeline",
    "flux-kontext": "FluxKontextInpaintPipeline",
    "flux2-klein": "Flux2KleinInpaintPipeline",
}
BLENDED = ["flux", "flux2-klein", "sdxl", "sd3", "qwenimage", "zimage", "wan22-t2v"]


def held(pipeline: Any) -> LoadedPipeline:
    return LoadedPipeline(LoadKey("test"), pipeline, small(family_of(pipeline)), torch.device("cpu"), torch.float32)


def request(mask: torch.Tensor = MASK, **changes: Any) -> SampleRequest:
    values = {"steps": 3, "width": 96, "height": 64, "seed": SEED, "guidance": 2.5, "images": (PICTURE,)}
    return SampleRequest("a ship", **{**values, "conditions": (MaskCondition(mask),), **changes})


def bare(pipeline: Any, form: str, **changes: Any) -> torch.Tensor:
    """Frames [B, T, H, W, 3] of diffusers' own inpaint class around the same models."""
    wanted = inspect.signature(getattr(diffusers, form).__init__).parameters
    parts = {name: part for name, part in pipeline.components.items() if name in wanted}
    made = getattr(diffusers, form)(**parts)
    takes = inspect.signature(made.__call__).parameters
    arguments = {
        "prompt": "a ship",
        "image": to_pil(PICTURE),
        "mask_image": Image.fromarray((MASK[0] * 255).byte().numpy(), mode="L"),
        "num_inference_steps": 3,
        "width": 96,
        "height": 64,
        "strength": 1.0,
        "generator": [torch.Generator().manual_seed(SEED)],
        "output_type": "pt",
        "max_area": 96 * 64,
        "_auto_resize": False,
        "true_cfg_scale" if "Qwen" in form else "guidance_scale": 2.5,
        "negative_prompt": " " if "Qwen" in form else None,
    }
    arguments = {name: value for name, value in arguments.items() if name in takes}
    if form == "StableDiffusion3InpaintPipeline":  # its own decode leaves the VAE's shift out, up to diffusers 0.42
        latent = made(**{**arguments, **changes, "output_type": "latent"})[0]
        pixels = made.vae.decode(latent / made.vae.config.scaling_factor + made.vae.config.shift_factor)[0]
        output = made.image_processor.postprocess(pixels, output_type="pt")
    else:
        output = made(**{**arguments, **changes})[0]
    return output.unsqueeze(1).permute(0, 1, 3, 4, 2)


def needs(form: str) -> None:
    if not hasattr(diffusers, form):
        pytest.skip(f"this diffusers has no {form}")


# --- inpaint forms ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_edit_pictures")
@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("family", FORMS)
def test_a_mask_runs_the_inpaint_class_as_in_bare_diffusers(family: str, strength: float) -> None:
    needs(FORMS[family])
    pipeline = tiny.build(family)
    ours = sampling.run(held(pipeline), request(strength=strength))
    theirs = bare(pipeline, FORMS[family], strength=strength)
    assert theirs.std() > 0.05
    assert torch.equal(ours.frames, theirs)


def test_the_form_has_the_same_models() -> None:
    pipeline = tiny.build("flux")
    form = form_for(pipeline, family_of(pipeline), request())
    assert type(form) is diffusers.FluxInpaintPipeline
    for name, part in pipeline.components.items():
        assert getattr(form, name) is part


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_a_batch_repaints_with_a_seed_for_each_item(family: str) -> None:
    both = sampling.run(held(tiny.build(family)), request(batch=2))
    one = sampling.run(held(tiny.build(family)), request(seed=SEED + 1))
    torch.testing.assert_close(both.frames[1], one.frames[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["flux", "flux2-klein", "sdxl", "sd3", "qwenimage", "zimage", "flux-kontext"])
def test_a_mask_of_zeros_keeps_the_picture(family: str) -> None:
    """What the VAE makes of it: its first latents are drawn with the run's own seed."""
    needs(FORMS[family])
    pipeline = tiny.build(family)
    result = sampling.run(held(pipeline), request(torch.zeros_like(MASK)))
    other = sampling.run(held(pipeline), replace(request(torch.zeros_like(MASK)), prompt="another prompt"))
    assert torch.equal(result.latent, other.latent), "nothing of the prompt is in it"
    if family not in ("flux", "sdxl", "sd3"):  # the others encode in a function of another name
        return
    form = getattr(diffusers, FORMS[family])(**pipeline.components)
    pixels = form.image_processor.preprocess(to_pil(PICTURE), 64, 96).float()
    native = form._encode_vae_image(pixels, generator=[torch.Generator().manual_seed(SEED)])
    kept = native / pipeline.vae.config.scaling_factor + (pipeline.vae.config.shift_factor or 0.0)
    torch.testing.assert_close(result.latent, kept, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("family", ["flux", "sdxl", "sd3", "qwenimage", "zimage"])
def test_a_mask_of_ones_is_none(family: str, strength: float) -> None:
    pipeline = tiny.build(family)
    masked = sampling.run(held(pipeline), request(torch.ones_like(MASK), strength=strength))
    images = (PICTURE,) if strength < 1 else ()
    plain = sampling.run(held(pipeline), request(strength=strength, images=images, conditions=()))
    assert torch.equal(masked.frames, plain.frames)
    assert any("1 everywhere" in note for note in masked.report.notes)


@pytest.mark.parametrize("family", ["flux", "sdxl", "sd3", "qwenimage", "zimage"])
def test_what_is_made_anew_does_not_depend_on_the_class(family: str) -> None:
    """With all but a corner made anew, the inpaint class's picture is image-to-image's, away from that corner."""
    pipeline = tiny.build(family)
    almost = torch.ones_like(MASK)
    almost[:, :8, :8] = 0.0
    masked = sampling.run(held(pipeline), request(almost, strength=0.7, steps=2))
    plain = sampling.run(held(pipeline), request(strength=0.7, steps=2, conditions=()))
    assert (masked.latent - plain.latent)[..., 4:, 6:].abs().mean() < 0.1 * plain.latent.std()


# --- classes that take a mask themselves ------------------------------------------------------------------------------


def _fill() -> Any:
    from fastdiffusers.pipelines.tiny.images import flux

    pipeline = flux("FluxFillPipeline")
    pipeline.transformer = diffusers.FluxTransformer2DModel.from_config(
        pipeline.transformer.config, in_channels=384, out_channels=64
    )
    return pipeline


def test_flux_fill_takes_the_mask_as_in_bare_diffusers() -> None:
    pipeline = build(_fill)
    ours = sampling.run(loaded(pipeline), request())
    call = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 2.5, "output_type": "pt"}
    mask = Image.fromarray((MASK[0] * 255).byte().numpy(), mode="L")
    seed = torch.Generator().manual_seed(SEED)
    theirs = pipeline(prompt="a ship", image=to_pil(PICTURE), mask_image=mask, generator=seed, **call).images
    assert torch.equal(ours.frames[:, 0].permute(0, 3, 1, 2), theirs.float())


def test_an_inpaint_class_without_a_mask_names_the_socket() -> None:
    for name in ("FluxFillPipeline", "StableDiffusionXLInpaintPipeline", "QwenImageInpaintPipeline"):
        with pytest.raises(InputError, match=r"mask_image.*a mask\. Use Mask Condition"):
            check_request(family_of(name), SampleRequest("a ship", images=(PICTURE,)))
        check_request(family_of(name), request(guidance=None))


# --- blended latents --------------------------------------------------------------------------------------------------


def latent_for(family: str) -> torch.Tensor:
    pipeline = held(tiny.build(family))
    clip = PICTURE.expand(5, -1, -1, -1)[None] if pipeline.family.video else PICTURE[None]
    return pipeline_vae.encode(pipeline, clip)


def masked_latent(family: str, mask: torch.Tensor, **changes: Any) -> SampleRequest:
    frames = {"num_frames": 5} if family.startswith("wan") else {}
    conditions = (MaskCondition(mask, of_latent=True),)
    return request(images=(), latent=latent_for(family), conditions=conditions, **frames, **changes)


@pytest.mark.parametrize("family", BLENDED)
def test_a_latents_mask_of_zeros_keeps_the_latent(family: str) -> None:
    asked = masked_latent(family, torch.zeros_like(MASK))
    result = sampling.run(held(tiny.build(family)), asked)
    torch.testing.assert_close(result.latent, asked.latent.reshape(result.latent.shape), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("family", BLENDED)
def test_a_latents_mask_of_ones_is_none(family: str, strength: float) -> None:
    if strength < 1 and not family_of(tiny.PIPELINE_CLASSES[family]).image_to_image:
        pytest.skip("it has no image-to-image form")
    asked = masked_latent(family, torch.ones_like(MASK), strength=strength)
    pipeline = held(tiny.build(family))
    with_mask = sampling.run(pipeline, asked)
    without = sampling.run(pipeline, replace(asked, conditions=()))
    assert torch.equal(with_mask.frames, without.frames)


@pytest.mark.parametrize("family", BLENDED)
def test_what_is_blended_is_kept_outside_of_the_mask_and_new_inside(family: str) -> None:
    asked = masked_latent(family, MASK)
    result = sampling.run(held(tiny.build(family)), asked)
    cells = resized_to_latent(MASK, tuple(result.latent.shape))
    kept = asked.latent.reshape(result.latent.shape)
    torch.testing.assert_close(result.latent[cells == 0], kept[cells == 0], atol=1e-5, rtol=1e-5)
    assert (result.latent[cells == 1] - kept[cells == 1]).abs().mean() > 0.01


@pytest.mark.parametrize("skip", [True, False], ids=["as SD 1.5 has it", "with all evaluations"])
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.8), (5, 0.6), (10, 0.4), (4, 1.0)])
def test_a_start_between_two_equal_timesteps_keeps_the_latent(steps: int, strength: float, skip: bool) -> None:
    """PNDM has some of them twice; the last step's result is to be the latent, not the latent with some noise."""
    pipeline = tiny.build("sdxl")
    pipeline.scheduler = diffusers.PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=skip)
    asked = masked_latent("sdxl", torch.zeros_like(MASK), steps=steps, strength=strength)
    result = sampling.run(held(pipeline), asked)
    torch.testing.assert_close(result.latent, asked.latent.reshape(result.latent.shape), atol=1e-4, rtol=1e-4)
    notes = [note for note in result.report.notes if note.startswith("steps:")]
    assert bool(notes) == (len(result.step_seconds) > ceil(steps * strength)), notes


def test_blending_is_what_an_inpaint_class_does() -> None:
    """The same kept latent, the same noise: equal to diffusers' own loop of `ZImageInpaintPipeline` to rounding."""
    pipeline = tiny.build("zimage")
    mask = torch.nn.functional.interpolate(MASK[None], size=(8, 12), mode="nearest")[0]
    noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(SEED))
    kept = latent_for("zimage")
    ours = sampling.run(held(pipeline), masked_latent("zimage", mask, guidance=0.0))
    form = diffusers.ZImageInpaintPipeline(**pipeline.components)
    native = (kept - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    form.prepare_latents = lambda *args, **kwargs: (noise, noise, native)
    call = {"image": to_pil(PICTURE), "mask_image": mask[None], "width": 96, "height": 64, "strength": 1.0}
    theirs = form(
        "a ship", num_inference_steps=3, guidance_scale=0.0, generator=generator(), output_type="latent", **call
    )[0]
    native_ours = (ours.latent - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(native_ours, theirs.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheduler", ["heun", "dpm++ 2m", "euler a", "DDIMScheduler", "PNDMScheduler", "unipc"])
def test_every_kind_of_scheduler_keeps_it(scheduler: str) -> None:
    asked = masked_latent("sdxl", MASK, scheduler=scheduler, steps=5)
    result = sampling.run(held(tiny.build("sdxl")), asked)
    cells = resized_to_latent(MASK, tuple(result.latent.shape))
    torch.testing.assert_close(result.latent[cells == 0], asked.latent[cells == 0], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("small_edit_pictures")
def test_a_model_without_an_inpaint_form_blends_its_first_picture() -> None:
    pipeline = held(tiny.build("qwenimage-edit"))
    result = sampling.run(pipeline, request())
    kept = pipeline_vae.encode(pipeline, PICTURE[None])
    cells = resized_to_latent(MASK, tuple(kept.shape))
    torch.testing.assert_close(result.latent[cells == 0], kept[cells == 0], atol=1e-5, rtol=1e-5)
    assert any("no inpaint form" in note for note in result.report.notes)
    whole = sampling.run(pipeline, request(torch.ones_like(MASK)))
    assert torch.equal(whole.frames, sampling.run(pipeline, request(conditions=())).frames)


def two_masks() -> torch.Tensor:
    other = torch.ones_like(MASK)
    other[:, :40] = 0.0
    return torch.cat([MASK, other])


@pytest.mark.usefixtures("small_edit_pictures")
@pytest.mark.parametrize("family", ["zimage", "qwenimage", "qwenimage-edit"])
def test_each_item_of_a_batch_keeps_to_its_own_mask(family: str) -> None:
    """Qwen-Image's latents have a time axis, and its masks are not frames all the same."""
    pipeline, edits = held(tiny.build(family)), family == "qwenimage-edit"

    def run(mask: torch.Tensor, **changes: Any) -> torch.Tensor:
        asked = request(mask, **changes) if edits else masked_latent(family, mask, **changes)
        result = sampling.run(pipeline, asked)
        assert not any("used" in note for note in result.report.notes if note.startswith("mask"))
        return result.latent

    both = run(two_masks(), batch=2)
    for index, mask in enumerate(two_masks()):
        torch.testing.assert_close(both[index], run(mask, seed=SEED + index)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ["mask: the first of 2 is used."]),
        ({"batch": 2}, []),
        ({"batch": 3}, []),
        ({"conditions": (MaskCondition(two_masks().repeat(2, 1, 1), of_latent=True),), "batch": 3}, ["3 of 4 are"]),
    ],
)
def test_masks_that_no_item_of_a_batch_takes_are_said(changes: dict[str, Any], said: list[str]) -> None:
    asked = replace(masked_latent("flux", two_masks()), **changes)
    notes = [note for note in check_request(family_of("FluxPipeline"), asked) if note.startswith("mask: the first")]
    assert len(notes) == len(said)
    assert all(words in note for words, note in zip(said, notes, strict=True))
    if "conditions" not in changes:
        edit = request(two_masks(), **changes, guidance=None)
        more = check_request(family_of("QwenImageEditPipeline"), edit)
        assert [note for note in more if note.startswith("mask: the first")] == said


def test_the_masks_of_a_clips_frames_are_all_used() -> None:
    notes = check_request(family_of("WanPipeline"), masked_latent("wan22-t2v", two_masks()))
    assert not [note for note in notes if note.startswith("mask: the first")]


# --- the whole way, and bad input -------------------------------------------------------------------------------------


def test_with_and_without_a_mask_on_one_cached_pipeline() -> None:
    handle = PipelineHandle(loader.resolve("tiny:flux"))
    plain = OptimizationSettings.plain()
    first = generate(handle, request(), plain)
    held_before = CACHE.peek(handle.key)
    without = generate(handle, request(images=(), conditions=()), plain)
    again = generate(handle, request(), plain)
    assert CACHE.peek(handle.key) is held_before
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, without.frames)


def test_a_mask_of_another_size_is_scaled_as_comfyui_does_and_it_is_said() -> None:
    small_mask = torch.zeros(1, 16, 16)
    small_mask[:, 4:12, 4:] = 1.0
    notes = check_request(family_of("FluxPipeline"), request(small_mask))
    assert "mask: scaled from 16x16 to the picture's 96x64." in notes
    large = torch.nn.functional.interpolate(small_mask[None], size=(64, 96), mode="bilinear")[0]
    pipeline = tiny.build("flux")
    ours = sampling.run(held(pipeline), request(small_mask))
    theirs = sampling.run(held(pipeline), request(large))
    assert torch.equal(ours.frames, theirs.frames)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("FluxPipeline", {"images": ()}, "no picture for it to keep"),
        ("WanPipeline", {"images": ()}, "no clip to keep a part of"),
        ("CogVideoXPipeline", {}, "no inpaint form"),
        ("FluxPipeline", {"conditions": (MaskCondition(MASK), MaskCondition(MASK))}, "2 masks"),
        ("FluxPipeline", {"conditions": (MaskCondition(MASK * 2),)}, "between 0 and 1"),
        ("FluxPipeline", {"conditions": (MaskCondition(MASK * float("nan")),)}, "between 0 and 1"),
        ("FluxPipeline", {"conditions": (MaskCondition(torch.zeros(1, 1, 4, 4)),)}, "batch, height, width"),
        ("FluxPipeline", {"images": (PICTURE, PICTURE)}, "takes at most 1"),
        ("FluxPipeline", {"images": (PICTURE, PICTURE), "conditions": ()}, "Set strength below 1"),
        ("FluxKontextPipeline", {"images": (PICTURE, PICTURE), "conditions": ()}, r"at most 1\. Leave the others out"),
        (
            "FluxPipeline",
            {"images": (PICTURE, PICTURE), "conditions": (MaskCondition(MASK * 0 + 1),)},
            r"at most 1\. Leave the others out",
        ),
        ("FluxPipeline", {"strength": 0.1}, "none would be left"),
    ],
)
def test_what_cannot_be_done_with_a_mask_is_one_line(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_request(family_of(name), request(guidance=None, **changes))
    assert "\n" not in str(caught.value)


def test_what_becomes_of_a_mask_is_said() -> None:
    soft = torch.full((2, 64, 96), 0.4)
    notes = check_request(family_of("FluxPipeline"), request(soft))
    assert any("the first of 2 is used" in note for note in notes)
    assert any("0.5 and above is made anew" in note for note in notes)


def test_the_form_of_every_class_takes_picture_and_mask() -> None:
    """Walk all of them: each names an inpaint class that is there, or none. Modular ones ask their blocks for it."""
    found = {name: inpaint_form(family_of(name)) for name in dir(diffusers) if name.endswith("Pipeline")}
    forms = {form for name, form in found.items() if form and "Modular" not in name}
    assert len(forms) >= 12
    for form in forms:
        takes = inspect.signature(getattr(diffusers, form).__call__).parameters
        assert {"mask_image", "control_mask"} & set(takes), form

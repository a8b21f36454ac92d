"""Classes outside the table: which argument is the guidance, what they fail without, how many frames a second."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import around, build, cogvideox, generator, loaded, stable_diffusion

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import sampling
from fastdiffusers.pipelines.arguments import call_arguments, to_pil
from fastdiffusers.pipelines.classes.guidance import guided
from fastdiffusers.pipelines.families import FAMILIES
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import SampleRequest

PICTURE = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
REQUEST = SampleRequest("a fox", steps=2, width=64, height=64)
PICTURES = {"image": to_pil(PICTURE), "mask_image": to_pil(PICTURE), "control_image": to_pil(PICTURE)}


# --- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "argument", "default"),
    [
        ("QwenImageImg2ImgPipeline", "true_cfg_scale", 4.0),
        ("QwenImageInpaintPipeline", "true_cfg_scale", 4.0),
        ("QwenImageControlNetPipeline", "true_cfg_scale", 4.0),
        ("QwenImageControlNetInpaintPipeline", "true_cfg_scale", 4.0),
        ("QwenImageEditInpaintPipeline", "true_cfg_scale", 4.0),
        ("QwenImageLayeredPipeline", "true_cfg_scale", 4.0),
        ("HunyuanSkyreelsImageToVideoPipeline", "true_cfg_scale", 6.0),
        ("FluxImg2ImgPipeline", "guidance_scale", 7.0),
        ("FluxInpaintPipeline", "guidance_scale", 7.0),
        ("FluxControlNetPipeline", "guidance_scale", 7.0),
        ("HunyuanVideoPipeline", "guidance_scale", 6.0),
        ("HunyuanVideoFramepackPipeline", "guidance_scale", 6.0),
        ("ChromaInpaintPipeline", "guidance_scale", 7.0),
        ("HiDreamImagePipeline", "guidance_scale", 5.0),
        ("BriaPipeline", "guidance_scale", 5.0),
        ("DreamLitePipeline", "guidance_scale", 3.5),
        ("DreamLiteMobilePipeline", "", None),
        ("StableVideoDiffusionPipeline", "max_guidance_scale", 3.0),
        ("StableCascadeCombinedPipeline", "prior_guidance_scale", 4.0),
        ("HunyuanImagePipeline", "distilled_guidance_scale", 3.25),
        ("Ideogram4Pipeline", "guidance_scale", None),
    ],
)
def test_the_guidance_of_classes_with_several(name: str, argument: str, default: float | None) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    family = family_of(name)
    assert (family.guidance_argument, family.guidance) == (argument, default)


def test_every_class_with_two_guidances_is_decided() -> None:
    """Walk all of them: the one that is set acts in the class's own code, and no other argument is touched."""
    several = [name for name in dir(diffusers) if name.endswith("Pipeline") and _guidances(name) > 1]
    assert len(several) >= 20
    for name in several:
        family = family_of(name)
        if family.guidance_argument:
            source = inspect.getsource(getattr(diffusers, name))
            assert source.count(family.guidance_argument) > 2, name
        if family.guidance_argument == "guidance_scale" and family.negative_prompt and not family.known:
            assert hasattr(getattr(diffusers, name), "do_classifier_free_guidance") or "prior" in source, name


def _guidances(name: str) -> int:
    parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
    return sum(item in parameters for item in ("guidance_scale", "true_cfg_scale", "prior_guidance_scale"))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwenimage", "QwenImageImg2ImgPipeline"),
        ("flux", "FluxImg2ImgPipeline"),
        ("sd3", "StableDiffusion3Img2ImgPipeline"),
        ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
        ("zimage", "ZImageImg2ImgPipeline"),
    ],
)
def test_the_guidance_acts_as_in_bare_diffusers(family: str, name: str) -> None:
    pipeline = build(lambda: around(family, name))
    described = family_of(pipeline)
    ours = sampling.run(loaded(pipeline), replace(REQUEST, steps=4, guidance=3.0, images=(PICTURE,)))
    call: dict[str, Any] = {described.guidance_argument: 3.0}
    if described.guidance_argument == "true_cfg_scale":
        call["negative_prompt"] = " "
    if "width" in inspect.signature(pipeline.__call__).parameters:
        call |= {"width": 64, "height": 64}
    size = {"num_inference_steps": 4, "generator": generator(), "output_type": "pt"}
    theirs = pipeline(prompt="a fox", image=to_pil(PICTURE), **size, **call).images
    assert torch.allclose(ours.frames[:, 0].permute(0, 3, 1, 2), theirs.float(), atol=1e-6)
    other = sampling.run(loaded(pipeline), replace(REQUEST, steps=4, guidance=1.0, images=(PICTURE,)))
    assert not torch.equal(other.frames, ours.frames), "the guidance does nothing"


def test_no_step_left_of_the_classs_own_strength_is_said() -> None:
    family = family_of("StableDiffusionXLImg2ImgPipeline")
    with pytest.raises(InputError, match="none would be left"):
        check_request(family, replace(REQUEST, steps=2, images=(PICTURE,)))


def test_a_model_without_embedded_guidance_says_that_it_takes_none() -> None:
    pipeline = build(lambda: around("flux", "FluxImg2ImgPipeline"))
    pipeline.transformer.register_to_config(guidance_embeds=False)
    family = family_of(pipeline)
    assert family.guidance_argument == ""
    notes = check_request(family, replace(REQUEST, guidance=3.0, images=(PICTURE,)))
    assert any(note.startswith("guidance ignored") for note in notes)


@pytest.mark.skipif(not hasattr(diffusers, "HunyuanVideo15Pipeline"), reason="this diffusers has no guiders")
def test_a_guider_gets_the_guidance_for_the_run() -> None:
    assert family_of("HunyuanVideo15Pipeline").guidance_argument == "guider"
    assert family_of("HunyuanVideo15Pipeline").guidance is None
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0)
    pipeline = SimpleNamespace(guider=guider)
    with guided(pipeline, "guider", 3.0):
        assert (pipeline.guider.guidance_scale, guider.guidance_scale) == (3.0, 6.0)
    assert pipeline.guider is guider
    for argument, scale in (("guider", None), ("guidance_scale", 3.0)):
        with guided(pipeline, argument, scale):
            assert pipeline.guider is guider


def test_a_negative_prompt_that_the_class_never_reads_is_said() -> None:
    for name in ("FluxImg2ImgPipeline", "HunyuanVideoPipeline"):
        family = replace(family_of(name), images="optional")
        notes = check_request(family, SampleRequest("a fox", negative_prompt="dark"))
        assert any(note.startswith("negative_prompt ignored") for note in notes), name
    for name in ("ChromaInpaintPipeline", "StableDiffusionPipeline", "QwenImageImg2ImgPipeline"):
        assert family_of(name).negative_prompt, name
    for name in ("ZImageImg2ImgPipeline", "ZImageInpaintPipeline", "Krea2Pipeline"):
        if hasattr(diffusers, name):
            assert family_of(name).negative_above == 0.0, name


@pytest.mark.skipif(not hasattr(diffusers, "Ideogram4Pipeline"), reason="this diffusers has no Ideogram 4")
def test_a_guidance_takes_the_place_of_ideograms_schedule() -> None:
    family = family_of("Ideogram4Pipeline")
    for request, expected in ((SampleRequest("a fox"), {}), (SampleRequest("a fox", steps=8, guidance=5.0), None)):
        call = call_arguments(_stand_in("Ideogram4Pipeline"), family, ready(family, request))
        assert call.get("guidance_scale") == request.guidance
        assert call.get("guidance_schedule", expected) == expected
    with pytest.raises(InputError, match="48 steps"):
        check_request(family, SampleRequest("a fox", steps=8))


def _stand_in(name: str) -> Any:
    class Stand:
        config: dict[str, Any] = {}  # noqa: RUF012 - read only
        __call__ = getattr(diffusers, name).__call__

    return Stand()


# --- required inputs --------------------------------------------------------------------------------------------------


REQUIRED = [
    ("StableDiffusionInpaintPipeline", "mask_image"),
    ("FluxFillPipeline", "mask_image"),
    ("CogVideoXVideoToVideoPipeline", "video"),
    ("CogVideoXFunControlPipeline", "control_video"),
    ("AnimateDiffVideoToVideoPipeline", "video"),
    ("AnimateDiffControlNetPipeline", "conditioning_frames"),
    ("Cosmos2_5_TransferPipeline", "controls"),
    ("WanVideoToVideoPipeline", "video"),
    ("FluxControlNetImg2ImgPipeline", "control_image"),
    ("StableDiffusionXLControlNetInpaintPipeline", "mask_image, control_image"),
    ("StableDiffusion3ControlNetInpaintingPipeline", "control_mask"),
    ("IFInpaintingSuperResolutionPipeline", "original_image"),
    ("WanAnimatePipeline", "pose_video, face_video"),
    ("KandinskyV22ControlnetPipeline", "image_embeds, negative_image_embeds, hint"),
]


@pytest.mark.parametrize(("name", "missing"), REQUIRED)
def test_what_a_class_fails_without_is_named_before_anything_loads(name: str, missing: str) -> None:
    unknown = "original_image" in missing or "embeds" in missing
    words = rf"^{missing} = 'none': .* works with a .*Use \w+ Condition"
    if unknown:
        words = rf"^{missing} = 'none': .* makes nothing without .* Give each with Pipeline Argument"
    with pytest.raises(InputError, match=words) as caught:
        check_request(family_of(name), SampleRequest("a fox", images=(PICTURE,)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "build_it",
    [
        lambda: cogvideox("CogVideoXVideoToVideoPipeline"),
        lambda: around("sdxl", "StableDiffusionXLInpaintPipeline"),
        lambda: around("flux", "FluxInpaintPipeline"),
        lambda: around("qwenimage", "QwenImageInpaintPipeline"),
        lambda: around("sd3", "StableDiffusion3InpaintPipeline"),
        lambda: around("zimage", "ZImageInpaintPipeline"),
        lambda: diffusers.StableDiffusionInpaintPipeline(
            **stable_diffusion().components, requires_safety_checker=False
        ),
    ],
    ids=["cogvideox", "sdxl", "flux", "qwenimage", "sd3", "zimage", "stable_diffusion"],
)
def test_bare_diffusers_fails_without_it_too(build_it: Any) -> None:
    """No class is refused for an input that it can do without."""
    pipeline = build(build_it)
    for name in family_of(pipeline).required:
        given = {item: value for item, value in PICTURES.items() if item != name}
        accepted = inspect.signature(pipeline.__call__).parameters
        given = {item: value for item, value in given.items() if item in accepted}
        with pytest.raises((ValueError, TypeError, AttributeError)):
            pipeline(prompt="a fox", num_inference_steps=2, **given)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("StableDiffusionImg2ImgPipeline", "required"),
        ("LTXImageToVideoPipeline", "required"),
        ("LongCatImageEditPipeline", "required"),
        ("QwenImageLayeredPipeline", "required"),
        ("StableDiffusionControlNetPipeline", "required"),
        ("FluxControlPipeline", "required"),
        ("Cosmos2VideoToWorldPipeline", "required"),
        ("Cosmos2_5_PredictBasePipeline", "optional"),
        ("LTXConditionPipeline", "optional"),
        ("Flux2KleinKVPipeline", "optional"),
        ("GlmImagePipeline", "optional"),
        ("HeliosPipeline", "optional"),
        ("WanVACEPipeline", "optional"),
        ("StableDiffusionPipeline", "none"),
    ],
)
def test_whether_a_picture_is_needed(name: str, use: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    family = family_of(name)
    assert family.images == use
    if use == "required":
        with pytest.raises(InputError, match="works on a picture"):
            check_request(family, SampleRequest("a fox"))


def test_the_only_picture_of_a_control_model_is_its_control_image() -> None:
    family = family_of("FluxControlPipeline")
    request = ready(family, SampleRequest("a fox", images=(PICTURE,), width=64, height=64))
    call = call_arguments(_stand_in("FluxControlPipeline"), family, request)
    assert call["control_image"].tobytes() == to_pil(PICTURE).tobytes()
    assert "image" not in call


def test_classes_that_make_no_pictures_are_refused() -> None:
    for name, what in (
        ("KandinskyPriorPipeline", "embeddings"),
        ("RFD4ProteinaPipeline", "proteins"),
        ("VisualClozePipeline", "grid"),
        ("VersatileDiffusionPipeline", "nothing by itself"),
    ):
        with pytest.raises(InputError, match=what):
            check_request(family_of(name), SampleRequest("a fox"))


def test_a_prompt_that_nothing_reads_is_said() -> None:
    family = family_of("StableVideoDiffusionPipeline")
    assert check_request(family, SampleRequest("a fox", images=(PICTURE,)))[0].startswith("prompt ignored")
    assert check_request(family, SampleRequest("", images=(PICTURE,))) == []


# --- frame rates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("HunyuanVideo15Pipeline", 24.0),
        ("HunyuanVideoFramepackPipeline", 30.0),
        ("CogVideoXPipeline", 8.0),
        ("AllegroPipeline", 15.0),
        ("MochiPipeline", 30.0),
        ("AnimateDiffPipeline", 8.0),
        ("WanVACEPipeline", 16.0),
        ("LTXPipeline", 25.0),
        ("StableVideoDiffusionPipeline", 7.0),
        ("LattePipeline", 8.0),
    ],
)
def test_the_frame_rate_is_the_models_own(name: str, rate: float) -> None:
    family = replace(family_of(name), required=(), images="optional")
    assert ready(family, SampleRequest("a fox")).frame_rate == rate
    assert not any("assumed" in note for note in check_request(family, SampleRequest("a fox")))


def test_every_video_class_has_a_rate_or_says_that_it_is_assumed() -> None:
    videos = {
        name for name in dir(diffusers) if name.endswith("Pipeline") and family_of(getattr(diffusers, name)).video
    }
    assert len(videos) > 50
    assumed = {name for name in videos if family_of(name).frame_rate_assumed}
    for name in assumed:
        notes = check_request(replace(family_of(name), required=(), images="optional"), SampleRequest("a fox"))
        assert any("16 frames per second assumed" in note for note in notes)
    known = {name for family in FAMILIES for name in family.classes}
    assert not assumed & known


def test_a_newer_cogvideox_makes_sixteen() -> None:
    pipeline = build("cogvideox")
    assert family_of(pipeline).frame_rate == 8.0
    pipeline.transformer.register_to_config(patch_size_t=2)
    assert family_of(pipeline).frame_rate == 16.0


def test_a_rate_that_is_asked_for_reaches_the_model_under_its_own_name() -> None:
    family = family_of("StableVideoDiffusionPipeline")
    request = ready(family, SampleRequest("", images=(PICTURE,), frame_rate=12.0))
    assert call_arguments(_stand_in("StableVideoDiffusionPipeline"), family, request)["fps"] == 12

"""Bad input: one clear line that names the input, the value, the reason and the cure, before any model is loaded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.kinds import ControlCondition, KeyframeCondition, MaskCondition, VideoCondition
from fastdiffusers.pipelines.families import FAMILIES, Family
from fastdiffusers.pipelines.recognize import family_of, small
from fastdiffusers.pipelines.requests import check_request, complete, ready, seeds
from fastdiffusers.pipelines.types import SampleRequest

FLUX, SDXL = family_of("FluxPipeline"), family_of("StableDiffusionXLPipeline")
WAN, KONTEXT = family_of("WanPipeline"), family_of("FluxKontextPipeline")
I2V, EDIT = family_of("WanImageToVideoPipeline"), family_of("QwenImageEditPipeline")
PICTURE = torch.zeros(60, 80, 3)
LTX2, KLEIN = family_of("LTX2Pipeline"), family_of("Flux2KleinPipeline")
KEEPING = MaskCondition(torch.zeros(1, 64, 64), of_latent=True)
TINY_CONTROL = resolve_controlnet("tiny:sdxl")

BAD = [
    (FLUX, {"width": 0}, "width", "16"),
    (FLUX, {"num_frames": 0}, "num_frames", "batch"),
    (WAN, {"num_frames": 8.5}, "num_frames", "5 or 9"),
    (FLUX, {"height": -5}, "height", "16"),
    (FLUX, {"height": 1_000_000}, "height", "16384"),
    (FLUX, {"width": 512.5}, "width", "512 or 528"),
    (WAN, {"num_frames": 1_000_000}, "num_frames", "4093"),
    (WAN, {"num_frames": 0}, "num_frames", "nearest: 1"),
    (FLUX, {"steps": 0}, "steps", "28"),
    (FLUX, {"steps": 5000}, "steps", "1000"),
    (FLUX, {"batch": 0}, "batch", "64"),
    (FLUX, {"seed": -1}, "seed", "between 0"),
    (FLUX, {"seed": 2**64}, "seed", "between 0"),
    (FLUX, {"guidance": float("nan")}, "guidance", "3.5"),
    (FLUX, {"guidance": -1.0}, "guidance", "between 0"),
    (FLUX, {"scheduler": "EulerScheduler"}, "scheduler", "EulerDiscreteScheduler"),
    (FLUX, {"scheduler": "zzzzzz"}, "scheduler", "model default"),
    (FLUX, {"images": (PICTURE,)}, "images", "strength below 1"),
    (WAN, {"images": (PICTURE,)}, "images", "edit model"),
    (KONTEXT, {"images": (PICTURE, PICTURE)}, "images", "at most 1"),
    (KONTEXT, {"images": (torch.zeros(3, 60, 80),)}, r"images[0]", "height, width, 3"),
    (EDIT, {}, "images", "images (--image)"),
    (I2V, {}, "images", "images (--image)"),
    (WAN, {"last_image": PICTURE}, "last_image", "Leave last_image (--last-image) out"),
    (FLUX, {"strength": 0.5}, "strength", "Give a picture in images (--image) or a latent"),
    (FLUX, {"strength": 0.0}, "strength", "above 0"),
    (FLUX, {"strength": 0.01, "images": (PICTURE,)}, "strength", "0.04"),
    (WAN, {"strength": 0.5, "images": (PICTURE,)}, "strength", "no image-to-image form"),
    (FLUX, {"strength": 0.5, "latent": torch.zeros(1, 4, 8, 8)}, "latent", "16"),
    (FLUX, {"strength": 0.5, "latent": torch.zeros(4, 8, 8)}, "latent", "a latent is"),
    (WAN, {"frame_rate": 0.0}, "frame_rate", "24"),
    (WAN, {"frame_rate": 0.0004}, "frame_rate", "between 0.001 and 1000"),
    (FLUX, {"max_sequence_length": 0}, "max_sequence_length", "4096"),
    (FLUX, {"prompt": None}, "prompt", "text"),
    (KONTEXT, {"images": (torch.full((60, 80, 3), float("nan")),)}, "images[0]", "NaN or infinite"),
    (KONTEXT, {"images": (torch.zeros(60, 80, 3, dtype=torch.uint8),)}, "images[0]", "Divide those of 8 bits by 255"),
    (FLUX, {"strength": 0.5, "latent": torch.full((1, 16, 8, 8), float("inf"))}, "latent", "NaN or infinite"),
    (FLUX, {"strength": 0.5, "images": (PICTURE, PICTURE)}, "images", "starts from one"),
    (FLUX, {"strength": 0.5, "images": (PICTURE,), "latent": torch.zeros(1, 16, 8, 8)}, "images", "or the latent"),
    (KONTEXT, {"images": (PICTURE[:15],)}, "images[0]", "16 pixels a side"),
    (KLEIN, {"images": (torch.zeros(64, 64, 3), PICTURE[:63])}, "images[1]", "64 pixels a side"),
    (KLEIN, {"images": (torch.zeros(64, 513, 3),)}, "images[0]", "1:8 to 8:1"),
    (EDIT, {"images": (torch.zeros(1, 200, 3),)}, "images[0]", "1:199 to 199:1"),
    (FLUX, {"strength": 0.5, "latent": torch.zeros(1, 16, 8, 8), "width": 128}, "width", "64, or leave it out"),
    (WAN, {"latent": torch.zeros(1, 16, 3, 8, 8), "num_frames": 5, "conditions": (KEEPING,)}, "num_frames", "Use 9"),
    (FLUX, {"latent": torch.zeros(1, 16, 8, 8), "height": 32, "conditions": (KEEPING,)}, "height", "Use 64"),
    (SDXL, {"conditions": (ControlCondition(PICTURE[None] / 0, TINY_CONTROL),)}, "control_image", "NaN or infinite"),
    (LTX2, {"conditions": (KeyframeCondition(PICTURE[None] / 0),)}, "keyframe", "NaN or infinite"),
]


@pytest.mark.parametrize(("family", "changes", "name", "hint"), BAD)
def test_bad_input_is_one_clear_line(family, changes, name, hint):
    with pytest.raises(InputError) as caught:
        check_request(family, SampleRequest(**{"prompt": "a ship", **changes}))
    text = str(caught.value)
    assert caught.value.name == name
    assert hint in text
    assert "\n" not in text


def test_what_is_ignored_is_said():
    notes = check_request(
        FLUX, SampleRequest("a", negative_prompt="dark", guidance_2=2.0, frame_rate=24, latent=torch.zeros(1, 16, 8, 8))
    )
    assert [note.split(" ignored")[0] for note in notes] == ["negative_prompt", "guidance_2", "frame_rate", "latent"]
    assert check_request(SDXL, SampleRequest("a", negative_prompt="dark")) == []


def test_what_is_not_read_of_the_values_of_pictures_is_said():
    clear, signed = torch.full((1, 60, 80, 4), 0.5), PICTURE * 2 - 1
    conditions = (ControlCondition(clear, TINY_CONTROL),)
    note = "transparency of control_image ignored: sdxl reads the colours alone."
    assert note in check_request(SDXL, SampleRequest("a", width=80, height=64, conditions=conditions))
    notes = check_request(LTX2, SampleRequest("a", num_frames=9, conditions=(KeyframeCondition(clear),)))
    assert "transparency of keyframe ignored: ltx2-t2v reads the colours alone." in notes
    notes = check_request(KONTEXT, SampleRequest("a", images=(signed,)))
    assert notes == ["images[0]: its values go from -1 to -1; what lies outside 0 to 1 is cut off."]
    assert check_request(KONTEXT, SampleRequest("a", images=(PICTURE + 1.25,))) == [], "an edge that was sharpened"


def test_of_a_clip_whose_shape_alone_is_known_one_value_is_looked_at():
    clip = VideoCondition(torch.zeros(1, 1, 1, 1).expand(100_000, 2000, 2000, 3))
    vace = family_of("WanVACEPipeline")
    assert check_request(vace, SampleRequest("a", num_frames=5, width=64, height=64, conditions=(clip,)))


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("Euler", "euler"),
        ("DPM++  2M", "dpm++ 2m"),
        ("eulerdiscretescheduler", "EulerDiscreteScheduler"),
        ("Model Default", "model default"),
        ("UniPC ", "unipc"),
    ],
)
def test_a_scheduler_is_known_however_its_letters_are(typed, known):
    assert ready(SDXL, SampleRequest("a", scheduler=typed)).scheduler == known


@pytest.mark.parametrize("family", [FLUX, SDXL, WAN], ids=lambda family: family.name)
@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_a_prompt(family, prompt):
    assert check_request(family, SampleRequest(prompt)) == []


FITTED = [
    (FLUX, {"width": 250, "height": 256}, {"width": 256, "height": 256}, "width: 256 instead of 250"),
    (FLUX, {"height": 1000}, {"height": 1008}, "height: 1008 instead of 1000"),
    (FLUX, {"width": 3}, {"width": 16}, "width: 16 instead of 3"),
    (SDXL, {"width": 1001}, {"width": 1000}, "width: 1000 instead of 1001; sdxl takes multiples of 8."),
    (WAN, {"num_frames": 80}, {"num_frames": 81}, "num_frames: 81 instead of 80; wan-t2v makes 4n + 1 frames."),
    (WAN, {"num_frames": 3}, {"num_frames": 5}, "num_frames: 5 instead of 3"),
    (FLUX, {"num_frames": 81}, {"num_frames": 1}, "num_frames ignored: flux makes single images."),
]


@pytest.mark.parametrize(("family", "asked", "made", "note"), FITTED)
def test_sizes_and_frames_are_brought_to_what_the_model_takes_and_it_is_said(family, asked, made, note):
    request = ready(family, SampleRequest("a ship", **asked))
    assert {name: getattr(request, name) for name in made} == made
    (said,) = request.notes
    assert said.startswith(note)
    assert request.asked == SampleRequest("a ship", **asked)


def test_another_family_is_given_what_was_asked_and_not_what_the_first_made_of_it():
    request = ready(FLUX, SampleRequest("a ship", width=1001, num_frames=80))
    again = ready(SDXL, request)
    assert (request.width, again.width) == (1008, 1000)
    assert [note.split(":")[0] for note in again.notes] == ["width", "num_frames ignored"]


@given(st.integers(-(10**7), 10**7))
def test_every_size_becomes_the_nearest_valid_one_or_is_answered_with_valid_ones(value):
    nearest = min(range(16, FLUX.max_size + 1, 16), key=lambda size: (abs(size - value), -size))
    try:
        made = ready(FLUX, SampleRequest("a", width=value))
    except InputError as error:
        assert not 0 < value <= FLUX.max_size
        offered = [int(word) for word in str(error).split("nearest: ")[1].rstrip(".").split(" or ")]
        assert nearest in offered
        for width in offered:
            assert ready(FLUX, SampleRequest("a", width=width)).width == width
    else:
        assert made.width == nearest
        assert bool(made.notes) == (value != nearest)


@given(st.integers(-100, 10**7))
def test_every_frame_count_becomes_the_nearest_valid_one_or_is_answered_with_valid_ones(value):
    nearest = min(range(1, WAN.max_frames + 1, 4), key=lambda frames: (abs(frames - value), -frames))
    try:
        made = ready(WAN, SampleRequest("a", num_frames=value))
    except InputError as error:
        assert not 1 <= value <= WAN.max_frames
        for frames in str(error).split("nearest: ")[1].split(";")[0].split(" or "):
            assert ready(WAN, SampleRequest("a", num_frames=int(frames))).num_frames == int(frames)
    else:
        assert made.num_frames == nearest
        assert bool(made.notes) == (value != nearest)


@given(st.integers(16, 5000), st.integers(16, 5000))
def test_the_size_follows_the_pictures_aspect_and_is_always_valid(rows, columns):
    request = SampleRequest("a", images=(torch.zeros(1, 1, 3).expand(rows, columns, 3),))
    filled = complete(KONTEXT, request)
    check_request(KONTEXT, filled)
    if 0.2 < rows / columns < 5:
        assert abs(filled.width / filled.height - columns / rows) < 0.15 * columns / rows
        assert 0.9 < filled.width * filled.height / 1024**2 < 1.1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_recommendations_are_valid_requests(family):
    images = (PICTURE,) if family.images == "required" else ()
    for each in (family, small(family)):
        filled = complete(each, SampleRequest("a", images=images))
        assert check_request(each, filled) == [] or filled.guidance_2 == filled.guidance
        assert filled.width % family.size_multiple == 0
        assert (filled.num_frames - 1) % family.frame_step == 0
        assert (filled.frame_rate is not None) == family.video


@pytest.mark.parametrize(
    ("family", "asked", "note"),
    [
        (SDXL, {"strength": 0.5, "width": 64, "height": 64}, "which changes its proportions"),
        (
            SDXL,
            {"conditions": (MaskCondition(torch.eye(60, 80)[None]),), "width": 64, "height": 64},
            "which changes its",
        ),
        (I2V, {"width": 64, "height": 64}, "so wan-i2v stretches or cuts it"),
        (SDXL, {"strength": 0.5, "width": 640, "height": 480}, ""),
        (I2V, {"width": 640, "height": 480}, ""),
        (KONTEXT, {"width": 64, "height": 64}, ""),
    ],
)
def test_a_picture_whose_shape_changes_is_named(family, asked, note):
    notes = check_request(family, SampleRequest("a", images=(PICTURE,), **asked))
    found = [each for each in notes if each.startswith("images[0]: of 80x60 where the result is 64x64")]
    assert [note in each for each in found] == ([True] if note else [])
    assert bool(note) or not any("proportions" in each for each in notes)


def test_gaps_are_filled_by_the_family():
    filled = complete(WAN, SampleRequest("a"))
    assert (filled.steps, filled.guidance, filled.width, filled.height) == (50, 5.0, 832, 480)
    assert (filled.num_frames, filled.frame_rate) == (81, 16.0)
    assert complete(WAN, SampleRequest("a", guidance=2.0)).guidance_2 == 2.0
    sized = complete(FLUX, SampleRequest("a", latent=torch.zeros(1, 16, 64, 32)))
    assert (sized.width, sized.height) == (256, 512)


def test_seeds_count_up_and_start_over():
    assert seeds(SampleRequest("a", seed=7, batch=3)) == (7, 8, 9)
    assert seeds(SampleRequest("a", seed=2**64 - 1, batch=2)) == (2**64 - 1, 0)


def test_variants_change_the_recommendations(tiny_pipeline):
    schnell = tiny_pipeline("flux")
    schnell.transformer.register_to_config(guidance_embeds=False)
    assert (family_of(schnell).steps, family_of(schnell).guidance_argument) == (4, "")
    klein = tiny_pipeline("flux2-klein")
    assert family_of(klein).steps == 50
    klein.register_to_config(is_distilled=True)
    assert (family_of(klein).steps, family_of(klein).guidance) == (4, 1.0)
    base = tiny_pipeline("zimage")
    assert family_of(base).steps == 9
    base.scheduler.register_to_config(shift=6.0)
    assert family_of(base).steps == 50
    wan = tiny_pipeline("wan22-t2v")
    assert (family_of(wan).guidance, family_of(wan).guidance_2) == (4.0, 3.0)
    assert family_of(tiny_pipeline("wan22-i2v")).guidance == 3.5
    wan.register_to_config(boundary_ratio=None)
    assert not family_of(wan).second_guidance
    wan.register_to_config(expand_timesteps=True)
    assert (family_of(wan).latent_channels, family_of(wan).size_multiple) == (48, 32)


def test_an_unknown_class_is_described_by_its_signature():
    from diffusers import LTXPipeline

    family = family_of(LTXPipeline)
    assert not family.known
    assert family.video
    assert family.num_frames == 161
    assert family.guidance_argument == "guidance_scale"
    assert family_of("SomethingNewPipeline") == Family(
        "SomethingNewPipeline", ("SomethingNewPipeline",), size_multiple=8, max_images=0
    )

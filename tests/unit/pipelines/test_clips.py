"""Clips, their masks and references, and keyframes: equal to bare diffusers, in the form around the same models."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import diffusers
import other_pipelines
import pytest
import torch
from PIL import Image

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import call_arguments, form_for, to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.clips import clip_arguments
from fastdiffusers.pipelines.conditions.keyframes import keyframe_arguments, keyframe_form
from fastdiffusers.pipelines.conditions.kinds import (
    ArgumentCondition,
    KeyframeCondition,
    MaskCondition,
    Sound,
    VideoCondition,
)
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of, family_of_configuration, small
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import LoadedPipeline, PipelineHandle, SampleRequest

CLIP = torch.rand(5, 64, 96, 3, generator=torch.Generator().manual_seed(1))
PICTURE = CLIP[:1]
MASK = torch.zeros(5, 64, 96)
MASK[:, 16:48, 24:] = 1.0
SEED = 3


def held(name: str) -> LoadedPipeline:
    return loader.load(loader.resolve(f"tiny:{name}", dtype="float32", device="cpu"))


def request(*conditions: Any, **changes: Any) -> SampleRequest:
    values = {"steps": 3, "width": 96, "height": 64, "seed": SEED, "guidance": 2.5, "conditions": conditions}
    return SampleRequest("a ship", **{**values, **changes})


def frames(output: Any) -> torch.Tensor:
    """diffusers' "pt" output [B, T, C, H, W] as [B, T, H, W, C]."""
    return output[0].permute(0, 1, 3, 4, 2).float()


CALL = {"prompt": "a ship", "width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 2.5}


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def pil(clip: torch.Tensor) -> list[Image.Image]:
    return [to_pil(frame) for frame in clip]


# --- video to video ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_clip_starts_the_run_as_in_bare_video_to_video(strength: float) -> None:
    loaded = held("wan21-t2v")
    ours = sampling.run(loaded, request(VideoCondition(CLIP), strength=strength))
    parts = {name: part for name, part in tiny.build("wan21-t2v").components.items() if name != "transformer_2"}
    bare = diffusers.WanVideoToVideoPipeline(**parts)
    own = strength if strength < 1 else 0.8
    theirs = bare(video=pil(CLIP), strength=own, generator=[seed()], output_type="pt", **CALL)
    assert torch.equal(ours.frames, frames(theirs))
    assert ours.frames.shape[1] == 5, "as many frames as the clip has"
    assert any("own" in note for note in ours.report.notes) == (strength == 1.0)


def test_steps_of_which_the_forms_own_strength_leaves_none_are_refused() -> None:
    family = small(family_of("WanPipeline"), one_expert=True)
    with pytest.raises(InputError, match=r"steps = 1: WanVideoToVideoPipeline takes 0.8 of them.*Use 2 or more"):
        check_request(family, request(VideoCondition(CLIP), steps=1))
    check_request(family, request(VideoCondition(CLIP), steps=2))


def test_with_and_without_a_clip_on_one_cached_pipeline() -> None:
    handle = PipelineHandle(loader.resolve("tiny:wan21-t2v"))
    plain = OptimizationSettings.plain()
    first = generate(handle, request(VideoCondition(CLIP), strength=0.5), plain)
    pipeline = CACHE.peek(handle.key)
    text = generate(handle, request(num_frames=5), plain)
    again = generate(handle, request(VideoCondition(CLIP), strength=0.5), plain)
    assert CACHE.peek(handle.key) is pipeline
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, text.frames)
    form = form_for(pipeline.pipeline, pipeline.family, ready(pipeline.family, request(VideoCondition(CLIP))))
    assert type(form) is diffusers.WanVideoToVideoPipeline
    assert form.transformer is pipeline.pipeline.transformer


def test_the_clips_length_becomes_one_that_the_model_makes() -> None:
    family = small(family_of("WanPipeline"), one_expert=True)
    long = CLIP.repeat(2, 1, 1, 1)  # 10 frames
    asked = ready(family, request(VideoCondition(long), strength=0.5))
    assert asked.num_frames == 9
    assert any("the first 9 of its 10 frames" in note for note in asked.notes)
    with pytest.raises(InputError, match=r"video = '10 frames': the result has 13\. Use 9 or fewer in num_frames"):
        ready(family, request(VideoCondition(long), strength=0.5, num_frames=13))


@pytest.mark.parametrize(("asked", "made"), [(None, 12.5), (24.0, 24.0)])
def test_the_clips_frame_rate_is_the_results_and_its_sound_is_named(asked: float | None, made: float) -> None:
    clip = VideoCondition(CLIP, frame_rate=12.5, sound=Sound(torch.zeros(1, 9), 9))
    family = small(family_of("WanPipeline"), one_expert=True)
    result = ready(family, request(clip, strength=0.5, frame_rate=asked))
    assert result.frame_rate == made
    assert any(note.startswith(f"frame_rate: {made:g}") for note in result.notes)
    assert "video: its sound is left out." in result.notes


def test_the_size_follows_the_clip() -> None:
    family = family_of("WanVACEPipeline")
    asked = ready(small(family), SampleRequest("a ship", conditions=(VideoCondition(CLIP),)))
    assert asked.width > asked.height


# --- VACE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["clip", "clip and mask", "references", "all"])
def test_vace_takes_clip_mask_and_references_as_in_bare_diffusers(what: str) -> None:
    conditions: tuple[Any, ...] = (VideoCondition(CLIP),) if what != "references" else ()
    call: dict[str, Any] = {"video": pil(CLIP)} if conditions else {}
    if what in ("clip and mask", "all"):
        conditions += (MaskCondition(MASK),)
        call["mask"] = [Image.fromarray((mask * 255).byte().numpy(), mode="L") for mask in MASK]
    images = (PICTURE[0], CLIP[3]) if what in ("references", "all") else ()
    call |= {"reference_images": [to_pil(image) for image in images]} if images else {}
    ours = sampling.run(held("wan21-vace"), request(*conditions, images=images, num_frames=5))
    theirs = tiny.build("wan21-vace")(num_frames=5, generator=seed(), output_type="pt", **CALL, **call)
    assert torch.allclose(ours.frames, frames(theirs), atol=1e-6)


@pytest.mark.parametrize("clip", [True, False], ids=["with a clip", "alone"])
@pytest.mark.parametrize("name", ["WanVACEPipeline", "Wan22VaceModularPipeline"])
def test_vace_reads_a_reference_for_each_latent_frame_at_most(name: str, clip: bool) -> None:
    if not hasattr(diffusers, name):
        pytest.skip("this diffusers has no such class")
    conditions = [VideoCondition(CLIP.repeat(2, 1, 1, 1)[:9])] if clip else []
    for frames, most in ((9, 3), (5, 2), (1, 1)):
        asked = request(*conditions, num_frames=frames, images=(PICTURE[0],) * most)
        check_request(family_of(name), asked)
        more = rf"^images = '{most + 1} images'.* {frames} frames have {most}\. .* make {4 * most + 1} frames or more"
        with pytest.raises(InputError, match=more):
            check_request(family_of(name), replace(asked, images=(PICTURE[0],) * (most + 1)))


def test_as_many_references_as_vace_reads_run_and_bare_diffusers_fails_with_one_more() -> None:
    asked = request(num_frames=5, images=(PICTURE[0],) * 2, steps=1)
    sampling.run(held("wan21-vace"), asked)
    call = {**CALL, "num_frames": 5, "num_inference_steps": 1, "reference_images": [to_pil(PICTURE[0])] * 3}
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        tiny.build("wan21-vace")(**call)


def test_vace_makes_the_items_of_a_batch_one_by_one() -> None:
    """Its class refuses several videos of a prompt."""
    loaded, asked = held("wan21-vace"), request(VideoCondition(CLIP), steps=2, num_frames=5)
    batch = sampling.run(loaded, replace(asked, batch=2))
    for index in range(2):
        single = sampling.run(loaded, replace(asked, seed=SEED + index))
        assert torch.equal(batch.latent[index], single.latent[0])
        assert torch.allclose(batch.frames[index], single.frames[0], atol=2e-5), "they are decoded together"
    assert any(note.startswith("WanVACEPipeline makes one at a time") for note in batch.report.notes)


def test_vace_makes_a_video_from_text_alone_and_says_what_it_is_short_of() -> None:
    result = sampling.run(held("wan21-vace"), request(num_frames=5))
    assert result.frames.shape == (1, 5, 64, 96, 3)
    with pytest.raises(InputError, match="no inpaint form"):
        check_request(family_of("WanVACEPipeline"), request(MaskCondition(MASK), images=(PICTURE[0],)))


# --- other kinds of clips ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(diffusers, "WanAnimatePipeline"), reason="this diffusers has no Wan-Animate")
def test_wan_animate_is_given_every_clip_and_names_the_open_sockets() -> None:
    family = family_of("WanAnimatePipeline")
    with pytest.raises(InputError, match=r"pose_video, face_video.*a pose clip and a face clip\. Use Video Condition"):
        check_request(family, request(images=(PICTURE[0],)))
    with pytest.raises(InputError, match=r"face_video.*a face clip"):
        check_request(family, request(VideoCondition(CLIP, "pose"), images=(PICTURE[0],)))
    clips = [VideoCondition(CLIP, role) for role in ("pose", "face", "background")]
    asked = ready(family, request(*clips, MaskCondition(MASK), images=(PICTURE[0],)))
    stand_in: Any = object.__new__(diffusers.WanAnimatePipeline)  # the call's signature is all that is asked of it
    stand_in.__dict__ |= {"_internal_dict": {}, "text_encoder": object()}
    call = call_arguments(stand_in, family, asked)
    assert {"image", "pose_video", "face_video", "background_video", "mask_video"} <= set(call)
    assert call["mode"] == "replace"
    assert len(call["pose_video"]) == len(call["mask_video"]) == 5


@pytest.mark.skipif(not hasattr(diffusers, "WanAnimatePipeline"), reason="this diffusers has no Wan-Animate")
def test_every_clip_is_as_long_as_the_pose_and_what_is_longer_is_said() -> None:
    family = family_of("WanAnimatePipeline")
    long = CLIP.repeat(2, 1, 1, 1)
    with pytest.raises(InputError, match=r"face_video = '5 frames': the pose clip has 10"):
        check_request(family, request(VideoCondition(long, "pose"), VideoCondition(CLIP, "face"), images=(PICTURE[0],)))
    clips = VideoCondition(CLIP, "pose"), VideoCondition(long, "face")
    notes = check_request(family, request(*clips, images=(PICTURE[0],)))
    assert "face_video: the first 5 of its 10 frames are used." in notes


@pytest.mark.parametrize(
    ("name", "conditions", "changes", "words"),
    [
        ("FluxPipeline", [VideoCondition(CLIP)], {}, "no clip to start from"),
        ("WanPipeline", [VideoCondition(CLIP)], {}, "no clip to start from"),  # two experts
        ("WanVACEPipeline", [VideoCondition(CLIP, "pose")], {}, "no pose clip"),
        ("WanVACEPipeline", [VideoCondition(CLIP), VideoCondition(CLIP)], {}, "video = 'two clips'"),
        ("WanVACEPipeline", [VideoCondition(CLIP)], {"strength": 0.5}, "has no strength"),
        ("WanVACEPipeline", [VideoCondition(CLIP[0])], {}, "frames, height, width"),
        ("CogVideoXVideoToVideoPipeline", [], {}, "a clip. Use Video Condition"),
        ("FluxPipeline", [KeyframeCondition(PICTURE)], {}, "no keyframes"),
        ("WanImageToVideoPipeline", [KeyframeCondition(PICTURE)], {"images": (PICTURE[0],)}, "last_image"),
    ],
)
def test_what_a_model_does_not_take_is_one_line(name: str, conditions: Any, changes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_request(family_of(name), request(*conditions, **{"guidance": None, **changes}))
    assert "\n" not in str(caught.value)


def test_of_two_clips_the_one_that_the_model_does_not_take_is_named() -> None:
    family, both = (
        small(family_of("WanPipeline"), one_expert=True),
        (VideoCondition(CLIP), VideoCondition(CLIP, "control")),
    )
    for clips in (both, both[::-1]):
        with pytest.raises(InputError, match="control_video = 'a clip': wan-t2v takes no control clip"):
            check_request(family, request(*clips))


# --- keyframes --------------------------------------------------------------------------------------------------------

LTX2 = pytest.mark.skipif(
    "conditions" not in inspect.signature(getattr(diffusers, "LTX2ConditionPipeline", object).__init__).parameters
    and not hasattr(diffusers, "LTX2ConditionPipeline"),
    reason="this diffusers has no LTX-2 with conditions",
)


@LTX2
@pytest.mark.parametrize("places", [((0, 1.0),), ((0, 1.0), (-1, 0.8)), ((9, 1.0),)])
def test_keyframes_are_as_in_bare_diffusers(places: tuple[tuple[int, float], ...]) -> None:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    loaded = held("ltx2-t2v")
    keyframes = [
        KeyframeCondition(CLIP[index : index + 1], frame, held_by) for index, (frame, held_by) in enumerate(places)
    ]
    ours = sampling.run(loaded, request(*keyframes, num_frames=17))
    pipeline = tiny.build("ltx2-t2v")
    wanted = inspect.signature(diffusers.LTX2ConditionPipeline.__init__).parameters
    bare = diffusers.LTX2ConditionPipeline(**{k: v for k, v in pipeline.components.items() if k in wanted})
    index = {0: 0, -1: -1, 9: 2}
    conditions = [
        LTX2VideoCondition(frames=to_pil(CLIP[number]), index=index[frame], strength=held_by)
        for number, (frame, held_by) in enumerate(places)
    ]
    extra = dict(loaded.family.extra)
    theirs = bare(
        conditions=conditions, num_frames=17, generator=[seed()], output_type="pt", frame_rate=24, **CALL, **extra
    )
    assert torch.allclose(ours.frames, frames(theirs), atol=1e-6)
    without = sampling.run(loaded, request(num_frames=17))
    assert not torch.allclose(ours.frames, without.frames, atol=1e-3)


@LTX2
@pytest.mark.parametrize(
    ("keyframe", "changes", "words"),
    [
        (KeyframeCondition(PICTURE, 17), {}, "there are 17 frames"),
        (KeyframeCondition(PICTURE, -2), {}, "-1 for the last"),
        (KeyframeCondition(PICTURE, 0, 0.0), {}, "above 0"),
        (KeyframeCondition(PICTURE[0]), {}, "batch, height, width"),
        (KeyframeCondition(PICTURE), {"images": (PICTURE[0],)}, "no other first frame"),
    ],
)
def test_bad_keyframes_are_one_line(keyframe: KeyframeCondition, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_request(family_of("LTX2Pipeline"), request(keyframe, num_frames=17, **changes))


@LTX2
def test_keyframes_of_ltx_video_lie_at_any_frame() -> None:
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    loaded = other_pipelines.loaded(other_pipelines.build("ltx"))
    with pytest.raises(InputError, match="LTXConditionPipeline cannot use a scheduler that shifts its steps"):
        sampling.run(loaded, request(KeyframeCondition(CLIP[:1], 0), num_frames=17))
    still = diffusers.FlowMatchEulerDiscreteScheduler()  # as LTX-Video 0.9.5 and newer
    loaded.pipeline.register_modules(scheduler=still)
    keyframes = [
        KeyframeCondition(CLIP[:1], 0),
        KeyframeCondition(CLIP[4:5], 13, 0.6),
        KeyframeCondition(CLIP[3:4], -1),
    ]
    ours = sampling.run(loaded, request(*keyframes, num_frames=17))
    pipeline = other_pipelines.build("ltx")
    pipeline.register_modules(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    wanted = inspect.signature(diffusers.LTXConditionPipeline.__init__).parameters
    bare = diffusers.LTXConditionPipeline(**{k: v for k, v in pipeline.components.items() if k in wanted})
    places = ((0, 0, 1.0), (4, 13, 0.6), (3, 16, 1.0))
    items = [LTXVideoCondition(image=to_pil(CLIP[n]), frame_index=frame, strength=held) for n, frame, held in places]
    theirs = bare(conditions=items, num_frames=17, generator=seed(), output_type="pt", frame_rate=25, **CALL)
    assert torch.allclose(ours.frames, frames(theirs), atol=1e-6)
    assert not any("keyframe:" in note for note in ours.report.notes)
    with pytest.raises(InputError, match="both come to lie at frame 16"):
        check_request(loaded.family, request(keyframes[2], KeyframeCondition(CLIP[:1], 16), num_frames=17))


@LTX2
def test_where_a_keyframe_comes_to_lie_is_said() -> None:
    notes = check_request(family_of("LTX2Pipeline"), request(KeyframeCondition(PICTURE, 12), num_frames=17))
    assert "keyframe: at frame 9 instead of 12, the nearest that ltx2-t2v takes." in notes


@LTX2
def test_a_frame_behind_the_last_latent_frame_lies_in_that() -> None:
    loaded = held("ltx2-t2v")
    last = sampling.run(loaded, request(KeyframeCondition(PICTURE, -1), num_frames=9))
    ours = sampling.run(loaded, request(KeyframeCondition(PICTURE, 8), num_frames=9))
    without = sampling.run(loaded, request(num_frames=9))
    assert torch.equal(ours.frames, last.frames)
    assert not torch.allclose(ours.frames, without.frames, atol=1e-3)
    assert "keyframe: at frame 1 instead of 8, the nearest that ltx2-t2v takes." in ours.report.notes


@LTX2
@pytest.mark.parametrize(("first", "second"), [(0, 0), (8, 10), (16, -1)])
def test_two_keyframes_in_one_place_are_refused(first: int, second: int) -> None:
    keyframes = KeyframeCondition(PICTURE, first), KeyframeCondition(PICTURE, second)
    with pytest.raises(InputError, match=f"{first} and {second}.*nearer to two of frames 0, 1, 9, 17 and so on"):
        check_request(family_of("LTX2Pipeline"), request(*keyframes, num_frames=17))


@LTX2
def test_a_model_that_works_on_a_picture_takes_keyframes_in_its_place() -> None:
    asked = request(KeyframeCondition(PICTURE, 0), num_frames=9)
    theirs = sampling.run(held("ltx2-t2v"), asked)
    result = sampling.run(held("ltx2-i2v"), asked)
    assert result.frames.shape == theirs.frames.shape
    with pytest.raises(InputError, match="works on a picture"):
        check_request(family_of("LTX2ImageToVideoPipeline"), request(num_frames=9))


@LTX2
def test_what_is_brought_to_the_results_size_is_said_and_keyframes_are_in_the_facts() -> None:
    other = torch.zeros(1, 32, 96, 3)
    result = sampling.run(held("ltx2-t2v"), request(KeyframeCondition(other, 0, 0.5), num_frames=9))
    cut = "keyframe: scaled from 96x32 to 96x64, and what stands out on two sides is cut off."
    assert cut in result.report.notes
    assert result.report.facts["keyframes"] == "frame 0, strength 0.5"


def test_what_becomes_of_a_clip_and_its_mask_is_said() -> None:
    soft = torch.full((2, 32, 48), 0.5)
    clip = torch.zeros(5, 48, 48, 3)
    result = sampling.run(held("wan21-vace"), request(VideoCondition(clip), MaskCondition(soft), num_frames=5))
    said = "\n".join(result.report.notes)
    assert "video: scaled from 48x48 to 96x64, which changes its proportions." in said
    assert "mask: scaled from 48x32 to the clip's 48x48." in said
    assert "mask: the last of 2 holds for the frames after it" in said
    assert "so above 0.5 is made anew" in said
    assert result.report.facts["clips"] == "video 5 frames of 48x48"
    assert result.report.facts["mask"] == "48x32"
    with pytest.raises(InputError, match="a mask is between 0 and 1"):
        check_request(family_of("WanVACEPipeline"), request(VideoCondition(CLIP), MaskCondition(MASK * 2)))


def test_a_clip_that_is_gone_on_from_may_be_shorter_than_the_result() -> None:
    family = family_of("SkyReelsV2DiffusionForcingVideoToVideoPipeline")
    asked = ready(family, request(VideoCondition(CLIP), num_frames=17))
    assert asked.num_frames == 17
    assert ready(family, request(VideoCondition(CLIP))).num_frames != len(CLIP), "as long as the class makes it"
    around_it = ready(family_of("SkyReelsV2DiffusionForcingPipeline"), request(VideoCondition(CLIP)))
    assert around_it.num_frames != len(CLIP), "in the form around the same models too"
    given = clip_arguments(family.name, family, asked, to_pil)
    assert len(given["video"]) == len(CLIP)
    with pytest.raises(InputError, match="video = '5 frames': the result has 17"):
        check_request(held("wan21-t2v").family, ready(family, request(VideoCondition(CLIP), num_frames=17)))


@LTX2
def test_keyframes_lie_where_the_checkpoints_own_vae_has_its_frames() -> None:
    """A VAE of LTX-2's kind makes two frames of one latent frame for each stage that doubles the time."""
    pipeline_class = diffusers.LTX2Pipeline
    for stages, stride in (((True, True, True), 8), ((True,), 2)):
        vae = {"patch_size_t": 1, "spatio_temporal_scaling": stages}
        family = family_of_configuration(pipeline_class, {}, {"vae": vae})
        assert (family.frame_step, family.temporal_stride) == (stride, stride)
        keyframe = KeyframeCondition(PICTURE, 2 * stride + 1)
        asked = ready(family, request(keyframe, num_frames=4 * stride + 1))
        assert asked.num_frames == 4 * stride + 1
        (item,) = keyframe_arguments("LTX2ConditionPipeline", family, asked, to_pil)["conditions"]
        assert item.index == 3
    explicit = family_of_configuration(pipeline_class, {}, {"vae": {"temporal_compression_ratio": 4}})
    assert explicit.frame_step == 4
    assert family_of_configuration(pipeline_class, {}, {}).frame_step == 8
    assert keyframe_form(family_of("LTX2InContextPipeline")) == "LTX2InContextPipeline"


@LTX2
@pytest.mark.parametrize(
    ("name", "with_keyframe", "count", "used", "factor"),
    [
        ("ltx2-t2v", False, 9, 9, 2),
        ("ltx2-t2v", True, 5, 1, 1),
        ("ltx2-i2v", False, 20, 9, 1),
        ("ltx2-i2v", True, 9, 9, 1),
    ],
)
def test_a_reference_clip_is_as_in_bare_diffusers(
    name: str, with_keyframe: bool, count: int, used: int, factor: int
) -> None:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
    from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

    loaded = held(name)
    keyframe = [KeyframeCondition(PICTURE)] if with_keyframe else []
    width, less = (128, {"reference_downscale_factor": factor}) if factor > 1 else (96, {})
    clip = torch.rand(count, 64 // factor, width // factor, 3, generator=torch.Generator().manual_seed(2))
    arguments = [ArgumentCondition(*each) for each in less.items()]
    asked = request(VideoCondition(clip, "reference"), *keyframe, *arguments, num_frames=9, width=width)
    ours = sampling.run(loaded, asked)
    pipeline = tiny.build(name)
    wanted = inspect.signature(diffusers.LTX2InContextPipeline.__init__).parameters
    bare = diffusers.LTX2InContextPipeline(**{k: v for k, v in pipeline.components.items() if k in wanted})
    given = {"conditions": [LTX2VideoCondition(frames=to_pil(PICTURE[0]), index=0)]} if with_keyframe else {}
    theirs = bare(
        reference_conditions=[LTX2ReferenceCondition(frames=pil(clip[:used]))],
        num_frames=9,
        generator=[seed()],
        output_type="pt",
        frame_rate=24,
        **given,
        **less,
        **(CALL | {"width": width}),
        **dict(loaded.family.extra),
    )
    assert torch.allclose(ours.frames, frames(theirs), atol=1e-6)
    assert "clips" in ours.report.facts
    cut = [f"reference_video: the first {used} of its {count} frames are used."] if used < count else []
    assert [note for note in ours.report.notes if "are used" in note] == cut
    assert not [note for note in ours.report.notes if "scaled" in note]


@LTX2
def test_a_reference_is_refused_where_nothing_reads_one() -> None:
    with pytest.raises(InputError, match="takes no reference clip"):
        check_request(held("wan21-t2v").family, request(VideoCondition(CLIP, "reference"), num_frames=5))
    family = small(family_of("LTX2ImageToVideoPipeline"))
    two = (VideoCondition(CLIP, "reference"), VideoCondition(CLIP, "reference"))
    with pytest.raises(InputError, match=r"reference_video = '2 clips': LTX2InContextPipeline reads one reference"):
        check_request(small(family_of("LTX2Pipeline")), request(*two, num_frames=9))
    heard = VideoCondition(CLIP, "reference", sound=Sound(torch.zeros(1, 9), 9))
    notes = check_request(small(family_of("LTX2Pipeline")), request(heard, num_frames=9))
    assert "reference_video: its sound is left out." in notes
    with pytest.raises(InputError, match="keyframe at frame 0"):
        check_request(family, request(VideoCondition(CLIP, "reference"), num_frames=9, images=(PICTURE[0],)))


@LTX2
@pytest.mark.parametrize(("factor", "cure"), [(3, "Use 1 or 2, or another size."), (0, "Use 1 or 2"), (99, "1 or 2")])
def test_a_reference_of_a_size_that_the_model_has_not_is_refused(factor: int, cure: str) -> None:
    family = small(family_of("LTX2Pipeline"))
    part = ArgumentCondition("reference_downscale_factor", factor)
    with pytest.raises(InputError, match=f"reference_downscale_factor = {factor}: of 128x64 that leaves no.*{cure}"):
        check_request(family, request(VideoCondition(CLIP, "reference"), part, num_frames=9, width=128))

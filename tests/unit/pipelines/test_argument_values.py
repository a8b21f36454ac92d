"""Values of arguments: each kind acts as in a bare call, another is refused before loading, and clashes are named."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import build, generator, loaded
from safetensors.torch import save_file

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.conditions.arguments.values import EMPTY, check_pictures, check_value
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, ControlCondition, ControlNetKey, VideoCondition
from fastdiffusers.pipelines.conditions.taking import call_kinds
from fastdiffusers.pipelines.families import Family
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

SIZE = {"width": 64, "height": 64}


def request(*arguments: ArgumentCondition, **fields: Any) -> SampleRequest:
    return SampleRequest(**{"prompt": "a fox", **SIZE, "conditions": arguments, **fields})


def asked(**values: Any) -> SampleRequest:
    return request(*(ArgumentCondition(*each) for each in values.items()))


def made(pipeline: Any, values: dict[str, Any], **fields: Any) -> SampleResult:
    return sampling.run(loaded(pipeline), request(*(ArgumentCondition(*each) for each in values.items()), **fields))


def bare(pipeline: Any, **call: Any) -> torch.Tensor:
    """Pictures [B, H, W, 3] of the plain call."""
    pictures = pipeline(**{"prompt": "a fox", "generator": generator(), "output_type": "pt", **SIZE, **call})[0]
    return pictures.permute(0, 2, 3, 1)


def tiny_pipeline(name: str) -> Any:
    return tiny.build(name) if name in tiny.TINY_FAMILIES else build(name)


LIKE_BARE: tuple[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    ("sdxl", {"clip_skip": 1}, {}, {"guidance_scale": 5.0}),
    ("stable_diffusion", {"guidance_rescale": 1}, {}, {"guidance_scale": 7.5}),
    ("stable_diffusion", {"clip_skip": None}, {}, {"guidance_scale": 7.5}),
    ("sdxl", {"original_size": [32, 48], "crops_coords_top_left": [8, 4]}, {}, {"guidance_scale": 5.0}),
    ("sdxl", {"prompt_2": "a ship"}, {}, {"guidance_scale": 5.0}),
    ("sdxl", {"negative_prompt_2": "a ship"}, {}, {"guidance_scale": 5.0}),
    ("sdxl", {"cross_attention_kwargs": {"scale": 1}}, {}, {"guidance_scale": 5.0}),
    ("sdxl", {"timesteps": [801, 400, 1]}, {}, {"guidance_scale": 5.0}),
    ("sdxl", {"sigmas": [10.0, 3, 0.5, 0.0]}, {}, {"guidance_scale": 5.0}),
    ("flux", {"sigmas": [1.0, 0.7, 0.2]}, {}, {"guidance_scale": 3.5}),
    ("flux", {"joint_attention_kwargs": {}}, {}, {"guidance_scale": 3.5}),
    ("zimage", {"cfg_normalization": True}, {"guidance": 3.0}, {"guidance_scale": 3.0}),
    ("sd3", {"skip_guidance_layers": [0]}, {}, {"guidance_scale": 4.5}),
    ("qwenimage", {"sigmas": [1.0, 0.5]}, {}, {"true_cfg_scale": 4.0, "negative_prompt": " "}),
)
"""(model, arguments, other fields of the request, what the bare call is given beside the arguments)."""


@pytest.mark.parametrize(("name", "values", "fields", "call"), LIKE_BARE)
def test_a_value_of_each_kind_acts_as_in_a_bare_call(
    name: str, values: dict[str, Any], fields: dict[str, Any], call: dict[str, Any]
) -> None:
    pipeline = tiny_pipeline(name)
    scheduled = {"sigmas", "timesteps"} & set(values)
    steps = {} if scheduled else {"steps": 3}
    result = made(pipeline, values, **steps, **fields)
    pairs = {each: tuple(value) if each.startswith(("original", "crops")) else value for each, value in values.items()}
    number = {} if scheduled else {"num_inference_steps": 3}
    assert torch.equal(result.frames[:, 0], bare(tiny_pipeline(name), **pairs, **call, **number))
    assert result.report.facts["arguments"] == ", ".join(values)
    if scheduled:
        made_steps = len(next(iter(values.values()))) - (name == "sdxl" and "sigmas" in values)
        assert result.report.facts["steps"] == made_steps
        assert any(note.startswith(f"steps: {made_steps}, ") for note in result.report.notes)


def test_embeddings_take_the_place_of_the_texts() -> None:
    pipeline = build("stable_diffusion")
    positive, negative = pipeline.encode_prompt("a fox", "cpu", 1, True, "a ship")
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    result = made(pipeline, given, prompt="", steps=3)
    expected = bare(pipeline, num_inference_steps=3, guidance_scale=7.5, negative_prompt="a ship")
    assert torch.equal(result.frames[:, 0], expected)
    for field, said in (("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")):
        with pytest.raises(InputError, match=f"'{said}': {field} gives it"):
            made(pipeline, given, **{"prompt": "", field: "a fox"})


def test_a_single_tensor_stands_for_a_list_of_one() -> None:
    pipeline = tiny.build("zimage")
    embeds, _ = pipeline.encode_prompt("a fox", "cpu", False)
    result = made(pipeline, {"prompt_embeds": embeds[0]}, prompt="", steps=3)
    assert torch.equal(result.frames[:, 0], bare(pipeline, num_inference_steps=3, guidance_scale=0.0))


def test_several_tensors_are_taken_where_the_annotation_says_one() -> None:
    """ConsisID's call says a tensor and reads one for each layer."""
    several = [torch.zeros(1, 4), torch.zeros(1, 4)]
    assert check_value("ConsisIDPipeline", "id_vit_hidden", torch.Tensor | None, None, several) is several


def test_the_negative_prompt_acts_beside_the_true_guidance_of_a_flux() -> None:
    pipeline = tiny.build("flux")
    result = made(pipeline, {"true_cfg_scale": 4}, negative_prompt="a ship", steps=3)
    call = {"num_inference_steps": 3, "guidance_scale": 3.5, "negative_prompt": "a ship", "true_cfg_scale": 4.0}
    assert torch.equal(result.frames[:, 0], bare(pipeline, **call))
    assert not any("negative_prompt ignored" in note for note in result.report.notes)
    with pytest.raises(InputError, match="argument true_cfg_scale = 4: it acts with a negative prompt alone"):
        check_request(family_of("FluxPipeline"), asked(true_cfg_scale=4))


REFUSED: tuple[tuple[str, str, Any, str], ...] = (
    ("StableDiffusionPipeline", "clip_skip", "abc", "takes a whole number or null. Write clip_skip=2."),
    ("StableDiffusionPipeline", "clip_skip", 2.0, "takes a whole number or null. Write clip_skip=2."),
    ("StableDiffusionPipeline", "clip_skip", True, "takes a whole number or null."),
    ("StableDiffusionPipeline", "eta", [0.5], "takes a number. Write eta=0.5."),
    ("StableDiffusionPipeline", "eta", None, "takes a number. Write eta=0.5."),
    ("StableDiffusionPipeline", "eta", float("nan"), "it is no number that anything can be made with."),
    ("StableDiffusionPipeline", "sigmas", [1.0, float("inf")], "it is no number that anything can be made with."),
    (
        "StableDiffusionPipeline",
        "timesteps",
        [9.5],
        "takes a list of whole numbers or null. Write timesteps=[999, 500].",
    ),
    ("StableDiffusionPipeline", "cross_attention_kwargs", "scale", 'Write cross_attention_kwargs={"NAME": VALUE}.'),
    ("StableDiffusionPipeline", "prompt_embeds", [[1.0]], "takes a tensor or null. Give a tensor: prompt_embeds=@FILE"),
    ("StableDiffusionPipeline", "eta", torch.zeros(2), "'a tensor of shape [2]': the call of"),
    (
        "StableDiffusionXLPipeline",
        "original_size",
        [32],
        "takes a list of 2 whole numbers or null. Write original_size=[",
    ),
    ("StableDiffusionXLPipeline", "prompt_2", 5, 'Write it in quotation marks: prompt_2="5".'),
    ("ZImagePipeline", "cfg_normalization", "yes", "takes true or false. Write cfg_normalization=true."),
    ("ZImagePipeline", "cfg_normalization", 1, "takes true or false. Write cfg_normalization=true."),
    ("FluxPipeline", "sigmas", "hello", "takes a list of numbers or null. Write sigmas=[1.0, 0.5]."),
    ("FluxPipeline", "sigmas", [[1.0]], "takes a list of numbers or null."),
    ("FluxPipeline", "sigmas", torch.ones(2, 2), "takes a list of numbers or null."),
    ("FluxPipeline", "joint_attention_kwargs", [1], "takes an object of names and values or null."),
    ("FluxModularPipeline", "sigmas", "hello", "takes a list of numbers or null."),
    ("QwenImageModularPipeline", "attention_kwargs", 3, "takes an object of names and values or null."),
)


@pytest.mark.parametrize(("form", "name", "value", "said"), REFUSED)
def test_a_value_of_another_kind_is_refused_before_loading(form: str, name: str, value: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_request(family_of(form), request(ArgumentCondition(name, value), prompt=""))
    assert str(caught.value).startswith(f"argument {name} = ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_is_refused_where_none_is_taken_and_several_where_one_is() -> None:
    picture = torch.rand(1, 8, 8, 3)
    for name in ("eta", "prompt_embeds"):
        with pytest.raises(
            InputError, match=f"argument {name} = 'a picture': the call of StableDiffusionPipeline takes"
        ):
            check_request(
                family_of("StableDiffusionPipeline"), request(ArgumentCondition(name, image=picture), prompt="")
            )
    from PIL.Image import Image

    with pytest.raises(InputError, match=r"argument image = '2 pictures': the call of X takes one. Give a single one"):
        check_pictures("X", "image", Image, EMPTY, 2)
    assert not check_pictures("X", "image", Image, EMPTY, 1)
    assert check_pictures("X", "image", list[Image], EMPTY, 1)


def test_a_row_of_numbers_from_a_file_is_a_list_and_an_empty_one_is_refused() -> None:
    family = family_of("FluxPipeline")
    row = ready(family, asked(sigmas=torch.tensor([1.0, 0.5])))
    assert row.steps == 2
    hint = call_kinds("FluxPipeline")["sigmas"]
    assert check_value("FluxPipeline", "sigmas", *hint, torch.tensor([1.0, 0.5])) == [1.0, 0.5]
    for name in ("sigmas", "timesteps"):
        with pytest.raises(InputError, match="gives no step a value"):
            check_request(family_of("StableDiffusionXLPipeline"), asked(**{name: []}))


def test_every_default_of_every_pipeline_is_of_a_kind_that_is_taken() -> None:
    names = [name for name in dir(diffusers) if name.endswith("Pipeline") and name != "DiffusionPipeline"]
    checked = 0
    for form in names:
        for name, (hint, default) in call_kinds(form).items():
            if default is not EMPTY:
                check_value(form, name, hint, default, default)
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize(
    ("steps", "name", "values", "said"),
    [
        (4, "sigmas", [1.0, 0.5], "steps = 4: argument sigmas gives 2 values, one for each step. Leave steps"),
        (5, "timesteps", [900, 500, 100], "steps = 5: argument timesteps gives 3 values"),
    ],
)
def test_as_many_steps_as_values_or_refused(steps: int, name: str, values: list[float], said: str) -> None:
    family = family_of("StableDiffusionXLPipeline")
    asking = request(ArgumentCondition(name, values), steps=steps)
    with pytest.raises(InputError) as caught:
        check_request(family, asking)
    assert said in str(caught.value)
    assert ready(family, request(ArgumentCondition(name, values))).steps == len(values)
    with pytest.raises(InputError, match="a run follows one of them"):
        check_request(family, asked(sigmas=[1.0], timesteps=[999]))


PICTURE = torch.zeros(1, 64, 64, 3)
TWICE: tuple[tuple[str, str, Any, dict[str, Any], str], ...] = (
    ("StableDiffusionPipeline", "guidance_scale", 3.0, {}, "guidance gives it. Use guidance"),
    ("QwenImagePipeline", "true_cfg_scale", 3.0, {"guidance": 4.0}, "guidance gives it. Use guidance"),
    ("WanPipeline", "guidance_scale_2", 3.0, {}, "guidance_2 gives it. Use guidance_2"),
    ("StableDiffusionPipeline", "guidancescale", 3.0, {}, "takes none of that name. Use guidance"),
    (
        "StableDiffusionPipeline",
        "xyz",
        3.0,
        {},
        "takes none of that name. It takes timesteps, sigmas, eta",
    ),
    ("StableDiffusionXLPipeline", "xyz", 3.0, {}, "takes none of that name. It takes among others prompt_2, timesteps"),
    ("StableDiffusionXLPipeline", "strength", 0.5, {}, "takes none of that name. Use strength."),
    ("StableDiffusionXLPipeline", "image", "a.png", {}, "takes none of that name. Use images (--image)."),
    ("StableDiffusionXLPipeline", "mask_image", "a.png", {}, "takes none of that name. Use Mask Condition (--mask)."),
    ("StableDiffusionXLPipeline", "output_type", "pt", {}, "this pack gives it, so that it gets the result. Leave"),
    ("StableDiffusionXLPipeline", "latents", 1, {}, "the sampler node's latent gives it."),
    ("FluxPipeline", "max_sequence_length", 64, {}, "max_sequence_length gives it. Use max_sequence_length."),
    ("StableDiffusionPipeline", "prompt", "a ship", {}, "prompt gives it"),
    ("StableDiffusionPipeline", "negative_prompt", "a ship", {}, "negative_prompt gives it"),
    ("StableDiffusionPipeline", "prompt_embeds", torch.zeros(1, 77, 8), {}, "'prompt_embeds': prompt gives it"),
)


@pytest.mark.parametrize(("form", "name", "value", "fields", "said"), TWICE)
def test_what_another_input_gives_is_refused_by_name(
    form: str, name: str, value: Any, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_request(family_of(form), request(ArgumentCondition(name, value), **fields))
    assert said in str(caught.value)


def test_what_a_condition_gives_is_refused_too() -> None:
    clip = VideoCondition(torch.zeros(5, 64, 64, 3))
    held = request(ArgumentCondition("video", image=PICTURE), clip, num_frames=5)
    with pytest.raises(InputError, match="'video': Video Condition gives it"):
        check_request(family_of("WanVideoToVideoPipeline"), held)
    control = ControlCondition(PICTURE, ControlNetKey("tiny:sdxl", "", "ControlNetModel"))
    given = (ArgumentCondition("controlnet_conditioning_scale", 0.3), control)
    with pytest.raises(InputError, match=r"Control Condition \(--control-image\) gives it. Leave one of them out"):
        check_request(family_of("StableDiffusionXLPipeline"), request(*given))


def test_an_argument_that_guidance_switches_off_is_named() -> None:
    notes = check_request(
        family_of("StableDiffusionXLPipeline"), request(ArgumentCondition("negative_prompt_2", "a ship"), guidance=1.0)
    )
    assert "argument negative_prompt_2 ignored: guidance = 1 switches it off." in notes


def test_text_is_no_picture() -> None:
    hint = call_kinds("StableDiffusionPipeline")["ip_adapter_image"]
    with pytest.raises(InputError, match="Give a picture: the node's image, or ip_adapter_image="):
        check_value("StableDiffusionPipeline", "ip_adapter_image", *hint, "cat.png")


@pytest.mark.parametrize("sign", ["", "negative_"])
def test_what_an_adapter_reads_is_refused_without_one(sign: str) -> None:
    family = family_of("FluxPipeline")
    for name, value in {"ip_adapter_image": None, "ip_adapter_image_embeds": torch.zeros(1, 1, 8)}.items():
        picture = torch.zeros(1, 8, 8, 3) if value is None else None
        argument = ArgumentCondition(f"{sign}{name}", value, image=picture)
        with pytest.raises(InputError, match=rf"{sign}{name}'.*Use Image Prompt Condition \(--image-prompt\)"):
            check_request(family, request(argument))


def test_a_latent_by_name_is_refused_with_a_cure_for_each_place() -> None:
    starts = {"FluxPipeline": "give a picture with --image and a --strength below 1", "Flux2Pipeline": "leave it out"}
    for name, start in starts.items():
        with pytest.raises(InputError, match=f"Use that node in ComfyUI; on the command line.* no latent, {start}"):
            check_request(family_of(name), request(ArgumentCondition("latents", torch.zeros(1, 4, 8, 8))))


def test_a_family_without_classes_is_named_and_no_class() -> None:
    with pytest.raises(InputError, match="which arguments the server's model takes is not known here"):
        check_request(Family("the server's model"), asked(eta=0.5))


def test_what_the_call_refuses_is_one_line_that_names_the_argument() -> None:
    handle = PipelineHandle(loader.resolve("tiny:sdxl"))
    for name, value in {
        "pooled_prompt_embeds": torch.zeros(1, 8),
        "prompt_embeds": torch.zeros(1, 77, 8),
    }.items():
        with pytest.raises(InputError) as caught:
            generate(handle, request(ArgumentCondition(name, value), prompt="", steps=2), OptimizationSettings.plain())
        assert str(caught.value).startswith(f"argument = '{name}=")
        assert "the call of StableDiffusionXLPipeline fails: " in str(caught.value)
        assert "\n" not in str(caught.value)
    assert generate(handle, request(steps=2), OptimizationSettings.plain()).frames is not None


def test_what_a_callback_raises_travels_unchanged_beside_an_argument() -> None:
    from fastdiffusers.callbacks import Callbacks

    class Cancelled(ValueError):
        pass

    def stop(progress: Any) -> None:
        if progress.stage == "denoise" and progress.done:
            raise Cancelled

    pipeline = build("stable_diffusion")
    with pytest.raises(Cancelled):
        sampling.run(loaded(pipeline), asked(eta=0.5), Callbacks(on_progress=stop))


def test_the_command_line_hands_tensors_and_values_on(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from fastdiffusers import cli

    save_file({"prompt_embeds": torch.zeros(1, 77, 8)}, tmp_path / "embeds.safetensors")
    base = ["generate", "--model", "tiny:sdxl", "--output", str(tmp_path / "a.png"), "--prompt", "a fox"]
    for text, said in (
        ("clip_skip=abc", "argument clip_skip = 'abc'"),
        ("guidance_rescale=hello", "argument guidance_rescale = 'hello'"),
        (f"clip_skip=@{tmp_path / 'embeds.safetensors'}", "argument clip_skip = 'a tensor of shape [1, 77, 8]'"),
        (f"prompt_embeds=@{tmp_path / 'embeds.safetensors'}", "argument = 'prompt_embeds': prompt gives it"),
        ("eta=NaN", "it is no number that anything can be made with"),
    ):
        assert cli.main([*base, "--argument", text]) == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "a.png").exists()

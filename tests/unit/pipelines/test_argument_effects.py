"""What arguments of a call come to in a run: the steps that a schedule makes, and those that do nothing are named."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import loaded

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.conditions.arguments.schedules import LAST_IS_THE_END, SCHEDULES, with_steps
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, MaskCondition
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requested.before_load import check_before_load
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import LoadedPipeline, SampleRequest, SampleResult

SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def held() -> dict[str, LoadedPipeline]:
    pipelines = {name: tiny.build(name) for name in ("flux", "sdxl", "sd3", "ltx2-t2v", "zimage")}
    pipelines["sdxl without zeros"] = tiny.build("sdxl")
    pipelines["sdxl without zeros"].register_to_config(force_zeros_for_empty_prompt=False)
    pipelines["sdxl refiner"] = _refiner()
    pipelines["sd3 without T5"] = tiny.build("sd3")
    pipelines["sd3 without T5"].text_encoder_3 = None
    return {name: loaded(pipeline) for name, pipeline in pipelines.items()}


def _refiner() -> Any:
    """SDXL's second text encoder alone, as its refiner has it."""
    parts = dict(tiny.build("sdxl").components)
    sizes, width = parts["unet"].config, parts["text_encoder_2"].config.hidden_size
    ids = sizes.projection_class_embeddings_input_dim - sizes.addition_time_embed_dim  # its score is in place of a size
    torch.manual_seed(0)
    parts["unet"] = diffusers.UNet2DConditionModel.from_config(
        sizes, cross_attention_dim=width, projection_class_embeddings_input_dim=ids
    )
    parts |= {"text_encoder": None, "tokenizer": None}
    made = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
    made.unet.eval()
    return made


def asking(values: dict[str, Any], **fields: Any) -> SampleRequest:
    arguments = tuple(ArgumentCondition(*each) for each in values.items())
    return SampleRequest(**{"prompt": "a fox", **SIZE, "conditions": arguments, **fields})


def made(pipeline: LoadedPipeline, values: dict[str, Any], **fields: Any) -> SampleResult:
    return sampling.run(pipeline, asking(values, **fields))


REFINED = {"images": (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1)),), "strength": 0.9}
IDLE: tuple[tuple[str, dict[str, Any], dict[str, Any], str], ...] = (
    ("sdxl", {"eta": 0.5}, {}, "argument eta ignored: EulerDiscreteScheduler has none"),
    ("sdxl", {"guidance_rescale": 0.5}, {"guidance": 1.0}, "guidance = 1 switches it off"),
    ("sdxl", {"negative_original_size": [8, 8]}, {"guidance": 1.0}, "guidance = 1 switches it off"),
    ("sdxl", {"negative_original_size": [8, 8]}, {}, "it acts with argument negative_target_size"),
    ("sdxl", {"cross_attention_kwargs": {"foo": 1}}, {}, "cross_attention_kwargs: foo ignored"),
    ("flux", {"joint_attention_kwargs": {"foo": 1}}, {}, "joint_attention_kwargs: foo ignored"),
    ("sdxl", {"negative_prompt_2": "a ship"}, {}, "negative_prompt_2 ignored: without a negative_prompt"),
    ("sdxl", {"negative_prompt_2": "a ship"}, {"guidance": 1.0}, "guidance = 1 switches it off"),
    ("sd3 without T5", {"prompt_3": "a ship", "negative_prompt_3": "a cat"}, {}, "came without text_encoder_3"),
    ("sdxl refiner", {"prompt_2": "a ship", "negative_prompt_2": "a cat"}, REFINED, "this model has one text encoder"),
    ("flux", {"negative_prompt_2": "a ship"}, {}, "without argument true_cfg_scale above 1"),
    ("flux", {"true_cfg_scale": 1}, {}, "it guides above 1, and is 1"),
    ("sd3", {"mu": 0.5}, {}, "this model's scheduler has a shift of its own"),
    ("sd3", {"skip_layer_guidance_scale": 9}, {}, "it acts with argument skip_guidance_layers"),
    ("sd3", {"skip_guidance_layers": [0]}, {}, "of 2 steps none lies between 0.01 and 0.2 of them"),
    ("zimage", {"cfg_truncation": 0.2}, {"guidance": 0.0}, "guidance = 0 switches it off"),
    ("ltx2-t2v", {"noise_scale": 0.5, "decode_timestep": 0.1}, {"num_frames": 9}, "noise_scale ignored: it mixes"),
)
"""(model, arguments that do nothing, other fields, what is said)."""


@pytest.mark.parametrize(("name", "values", "fields", "said"), IDLE)
def test_what_does_nothing_is_said_to_and_does_nothing(
    name: str, values: dict[str, Any], fields: dict[str, Any], said: str, held: dict[str, LoadedPipeline]
) -> None:
    result, plain = (made(held[name], each, steps=2, **fields) for each in (values, {}))
    assert torch.equal(result.latent, plain.latent)
    for argument in values:
        about = [note for note in result.report.notes if note.startswith(f"argument {argument}")]
        assert len(about) == 1, result.report.notes
    assert any(said in note for note in result.report.notes)


ACTING: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("sdxl", {"eta": 0.5}, {"scheduler": "ddim"}),
    ("sdxl", {"guidance_rescale": 0.9}, {}),
    ("sdxl", {"negative_prompt_2": "a ship"}, {"negative_prompt": "fog"}),
    ("sdxl", {"prompt_2": "a ship"}, {}),
    ("sdxl without zeros", {"negative_prompt_2": "a ship"}, {}),
    ("sd3", {"negative_prompt_2": "a ship"}, {}),
    ("sd3", {"negative_prompt_3": "a ship"}, {}),
    ("sd3", {"prompt_3": "a ship"}, {}),
    ("sdxl", {"negative_original_size": [8, 8], "negative_target_size": [9, 9]}, {}),
    ("flux", {"true_cfg_scale": 3, "negative_prompt_2": "a ship"}, {"negative_prompt": "a ship"}),
    ("sd3", {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 0.9}, {}),
    ("ltx2-t2v", {"guidance_rescale": 0.9}, {"num_frames": 9, "guidance": 1.0}),
)
"""(model, arguments that change the result, other fields)."""


@pytest.mark.parametrize(("name", "values", "fields"), ACTING)
def test_what_acts_is_not_said_to_do_nothing(
    name: str, values: dict[str, Any], fields: dict[str, Any], held: dict[str, LoadedPipeline]
) -> None:
    result, plain = (made(held[name], each, steps=3, **fields) for each in (values, {}))
    changed = not torch.equal(result.latent, plain.latent)
    assert changed or not torch.equal(result.audio["waveform"], plain.audio["waveform"])
    assert not [note for note in result.report.notes if note.startswith("argument")]


def test_the_scale_of_loras_is_not_read_among_what_attention_takes() -> None:
    with pytest.raises(InputError, match=r"strength here. Use the strength of Load LoRA \(--lora FILE:0.5\)"):
        check_request(family_of("FluxPipeline"), asking({"joint_attention_kwargs": {"scale": 0.5}}))


def test_a_second_negative_prompt_alone_is_none_for_a_true_guidance() -> None:
    with pytest.raises(InputError, match="true_cfg_scale = 3: it acts with a negative prompt alone"):
        check_request(family_of("FluxPipeline"), asking({"true_cfg_scale": 3, "negative_prompt_2": "a ship"}))


STEPS: tuple[tuple[str, list[float], int, str], ...] = (
    ("flux", [1.0, 0.5, 0.2], 3, "steps: 3, as many as argument sigmas gives values."),
    ("flux", [1.0, 0.5, 0.0], 3, "ends at 0 by itself, so the last of them changes nothing: leave its last value out."),
    ("sdxl", [14.0, 5.0, 0.0], 2, "takes the last of the 3 sigmas for where the last ends."),
    ("sdxl", [14.0, 5.0, 1.0], 2, "for where the last ends, and leaves a noise of 1 in the picture."),
)


@pytest.mark.parametrize(("name", "sigmas", "steps", "said"), STEPS)
def test_the_report_says_how_many_steps_sigmas_make(
    name: str, sigmas: list[float], steps: int, said: str, held: dict[str, LoadedPipeline]
) -> None:
    result = made(held[name], {"sigmas": sigmas})
    assert result.report.facts["steps"] == len(result.step_seconds) == steps
    about = [note for note in result.report.notes if note.startswith("steps")]
    assert len(about) == 1
    assert about[0].endswith(said)
    if sigmas[-1] == 0 and name == "flux":
        shorter = made(held[name], {"sigmas": sigmas[:-1]})
        assert torch.equal(result.latent, shorter.latent)


@pytest.mark.parametrize(
    ("name", "sigmas", "steps", "said"),
    [
        ("flux", [1.0, 0.5, 0.0], 2, "FlowMatchEulerDiscreteScheduler ends at 0 by itself. Leave the last of the"),
        ("flux", [1.0, 0.5, 0.2], 2, "gives 3 values, one for each step. Leave steps (--steps) out, or give 2 sigmas."),
        ("flux", [14.0, 0.5], None, "flow they are shares of noise, and 1 is noise alone. Begin with 1.0."),
        ("sdxl", [14.0, 5.0, 0.0], 3, "makes 2 of the 3 sigmas, whose last is where the last step ends. Leave steps"),
        ("sdxl", [14.0], None, "so no step is left. Give two values or more."),
        ("ltx2-t2v", [1.0], None, "steps = 1: this model's scheduler divides by zero with a single step. Use 2 or"),
        ("sdxl ddim", [14.0, 5.0], None, "DDIMScheduler makes its steps by number alone. Leave it out, or choose"),
    ],
)
def test_a_schedule_that_does_not_fit_its_scheduler_is_refused_before_the_load(
    name: str, sigmas: list[float], steps: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load", lambda *_: pytest.fail("it was loaded"))
    model, _, scheduler = name.partition(" ")
    key = loader.resolve(f"tiny:{model}", device="cpu")
    request = asking({"sigmas": sigmas}, steps=steps, scheduler=scheduler or "model default")
    with pytest.raises(InputError) as caught:
        check_before_load(key, ready(loader.family_of_key(key), request))
    assert said in str(caught.value)


def test_evaluations_beyond_the_steps_are_said(held: dict[str, LoadedPipeline]) -> None:
    result = made(held["sdxl"], {}, steps=3, scheduler="heun")
    assert result.report.facts["steps"] == 5
    assert "steps: 5 evaluations of the model for 3 steps, as HeunDiscreteScheduler makes them." in result.report.notes


def test_every_scheduler_makes_as_many_steps_of_a_schedule_as_are_said() -> None:
    values: dict[str, list[float]] = {"sigmas": [1.0, 0.6, 0.3], "timesteps": [900, 500, 100]}
    seen = set()
    for name in dir(diffusers):
        kind = getattr(diffusers, name)
        if not name.endswith("Scheduler") or not hasattr(kind, "set_timesteps"):
            continue
        for argument in SCHEDULES:
            parameters = inspect.signature(kind.set_timesteps).parameters
            if argument not in parameters:
                continue
            given = {"mu": 1.0, "max_timesteps": None, "intermediate_timesteps": None, "num_inference_steps": None}
            call = {each: value for each, value in given.items() if each in parameters}
            flow = {"use_flow_sigmas": True} if name == "UniPCMultistepScheduler" else {}
            if name == "SCMScheduler":
                call["num_inference_steps"] = 2
            scheduler = kind(**flow)
            try:
                scheduler.set_timesteps(**call, **{argument: values[argument]})
            except (
                AssertionError,
                AttributeError,
                KeyError,
                TypeError,
                ValueError,
            ):  # it takes its values in a form of its own
                continue
            request = with_steps(asking({argument: values[argument]}), scheduler)
            # The second order's schedulers list every step twice but the last; SCM lists its end too.
            levels = torch.as_tensor(scheduler.timesteps).unique()
            assert request.steps == len(levels) - (name == "SCMScheduler"), (name, argument)
            seen.add(name)
    assert {"EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "SCMScheduler", "DDPMScheduler"} <= seen
    assert {name for names in LAST_IS_THE_END.values() for name in names} <= seen


def test_a_crop_that_the_class_lays_back_itself_is_refused() -> None:
    family, mask = family_of("StableDiffusionXLPipeline"), MaskCondition(torch.ones(1, 64, 64))
    conditions = (mask, ArgumentCondition("padding_mask_crop", 32))
    with pytest.raises(InputError, match=r"padding_mask_crop.*decoded outside\. Leave it out, or cut the part"):
        check_request(family, asking({}, conditions=conditions, images=(torch.zeros(64, 64, 3),)))


def test_tokens_to_read_are_said_to_do_nothing_where_the_class_has_no_such_argument() -> None:
    said = "max_sequence_length ignored: StableDiffusionXLPipeline reads as much of a prompt as its text encoders do."
    assert said in check_request(family_of("StableDiffusionXLPipeline"), asking({}, max_sequence_length=50))
    assert check_request(family_of("FluxPipeline"), asking({}, max_sequence_length=50)) == []

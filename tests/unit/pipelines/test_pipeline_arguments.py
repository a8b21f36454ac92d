"""Arguments of a pipeline's call that no other input gives: they act as in bare diffusers, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import build, generator, loaded
from PIL.Image import fromarray
from safetensors.torch import save_file

from fastdiffusers.commands.conditions.given import absolute_argument, argument
from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import sampling
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, MaskCondition
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.tiny.components import image_vae
from fastdiffusers.pipelines.types import SampleRequest


def request(*arguments: ArgumentCondition, **fields: Any) -> SampleRequest:
    return SampleRequest("a fox", steps=3, width=32, height=32, conditions=arguments, **fields)


def test_arguments_act_as_in_a_bare_call() -> None:
    pipeline = build("stable_diffusion")
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    given = {"eta": 0.7, "guidance_rescale": 0.5}
    result = sampling.run(loaded(pipeline), request(*(ArgumentCondition(*each) for each in given.items())))
    size = {"num_inference_steps": 3, "width": 32, "height": 32, "output_type": "pt"}
    expected = pipeline("a fox", generator=generator(), guidance_scale=7.5, **size, **given).images
    assert torch.equal(result.frames[:, 0].permute(0, 3, 1, 2), expected)
    assert result.report.facts["arguments"] == "eta, guidance_rescale"
    for name, value in given.items():
        alone = sampling.run(loaded(pipeline), request(ArgumentCondition(name, value)))
        assert not torch.equal(alone.frames, sampling.run(loaded(pipeline), request()).frames), f"{name} does nothing"


def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=4,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    return diffusers.DiTPipeline(transformer, image_vae(4, 0.18215), diffusers.DDIMScheduler())


def test_a_class_that_needs_an_argument_names_it_and_runs_with_it() -> None:
    pipeline = build(dit)
    with pytest.raises(InputError) as caught:
        check_request(family_of(pipeline), SampleRequest(""))
    assert str(caught.value) == (
        "class_labels = 'none': DiTPipeline makes nothing without class_labels. "
        "Give each with Pipeline Argument (--argument NAME=VALUE)."
    )
    asked = SampleRequest("", steps=2, guidance=4.0, conditions=(ArgumentCondition("class_labels", [7]),))
    result = sampling.run(loaded(pipeline), asked)
    expected = pipeline([7], guidance_scale=4.0, num_inference_steps=2, generator=generator(), output_type="np")[0]
    assert torch.equal(result.frames[:, 0], torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([ArgumentCondition("guidancerescale", 1)], "takes none of that name. Use guidance_rescale"),
        ([ArgumentCondition("output_type", "pt")], "this pack gives it, so that it gets the result"),
        ([ArgumentCondition("eta", 1), ArgumentCondition("eta", 0)], "it is given twice"),
        ([ArgumentCondition("width", 64)], "width gives it. Use width"),
        ([ArgumentCondition("guidance_scale", 2)], "guidance gives it. Use guidance"),
        ([ArgumentCondition("num_inference_steps", 2)], "steps gives it"),
    ],
)
def test_what_the_call_has_not_or_an_input_gives_is_refused(arguments: list[ArgumentCondition], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_request(family_of("StableDiffusionPipeline"), request(*arguments))


def test_the_class_that_is_called_has_to_take_it() -> None:
    """An inpaint form may take what the pipeline itself does not, and the other way round."""
    family = family_of("StableDiffusionXLPipeline")
    picture, mask = torch.rand(32, 32, 3), MaskCondition(torch.zeros(1, 32, 32))
    score = ArgumentCondition("aesthetic_score", 7.0)
    check_request(family, request(mask, score, images=(picture,)))
    with pytest.raises(InputError, match="StableDiffusionXLPipeline takes none of that name"):
        check_request(family, request(score))


def test_the_command_line_reads_json_text_pictures_and_tensors(tmp_path: Path, monkeypatch: Any) -> None:
    for text, value in (
        ("eta=0.5", 0.5),
        ("labels=[1, 2]", [1, 2]),
        ("mode=fast", "fast"),
        ('mode=""', ""),
        ("x=a=b", "a=b"),
    ):
        found = argument(text)
        assert (found.name, found.value, found.image) == (text.split("=")[0], value, None)
    save_file({"image_embeds": torch.ones(2), "other": torch.zeros(2)}, tmp_path / "two.safetensors")
    save_file({"anything": torch.full((2,), 3.0)}, tmp_path / "one.safetensors")
    assert argument(f"image_embeds=@{tmp_path}/two.safetensors").value.tolist() == [1, 1]
    assert argument(f"image_embeds=@{tmp_path}/one.safetensors").value.tolist() == [3, 3]
    fromarray((torch.rand(4, 6, 3) * 255).byte().numpy()).save(tmp_path / "picture.png")
    assert argument(f"original_image=@{tmp_path}/picture.png").image.shape == (1, 4, 6, 3)
    monkeypatch.chdir(tmp_path)
    assert absolute_argument("x=@picture.png") == f"x=@{tmp_path}/picture.png"
    assert absolute_argument("x=1") == "x=1"
    for text, said in (
        ("eta", "it is no NAME=VALUE"),
        ("eta=", "it has no value"),
        ("x=@", "it is empty"),
        ("negative_embeds=@two.safetensors", "it holds image_embeds, other"),
        ("x=@absent.safetensors", "check the file"),
    ):
        with pytest.raises(InputError, match="(?i)" + said):
            argument(text)

"""Image prompts: IP-Adapters and Flux Redux, equal to bare diffusers, and gone again after the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from image_prompt_files import ip_adapter_file, redux_folder, vision
from other_pipelines import build

from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.image_prompts.keys import resolve_image_prompt
from fastdiffusers.pipelines.conditions.kinds import Condition, ImagePromptCondition, MaskCondition
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

PLAIN = OptimizationSettings.plain(memory_mode="gpu")
PICTURE = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
REQUEST = SampleRequest("a ship", steps=3, width=64, height=64, seed=3, guidance=2.5)
FAMILIES = ("stable_diffusion", "sdxl", "flux", "sd3")
Adapter = Callable[[str], Path]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    root = tmp_path_factory.mktemp("image_prompts")

    def file(family: str) -> Path:
        made = root / family / "ip-adapter.safetensors"
        if family == "redux":
            return root / "redux" if (root / "redux").is_dir() else redux_folder(root / "redux")
        return made if made.is_file() else ip_adapter_file(source(family), root / family)

    return file


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_prompts_sd") / "sd"
    build("stable_diffusion").save_pretrained(folder)
    return folder


def source(family: str) -> Any:
    return build(family) if family == "stable_diffusion" else tiny.build(family)


def handle(family: str, folder: Path) -> PipelineHandle:
    return PipelineHandle(loader.resolve(str(folder) if family == "stable_diffusion" else f"tiny:{family}"))


def prompt(file: Path, strength: float = 1.0, picture: torch.Tensor = PICTURE) -> ImagePromptCondition:
    return ImagePromptCondition(picture[None], resolve_image_prompt(str(file)), strength)


def run(handle: PipelineHandle, *conditions: Condition, **changes: Any) -> SampleResult:
    return generate(handle, replace(REQUEST, conditions=conditions, **changes), PLAIN)


def call(pipeline: Any, **more: Any) -> torch.Tensor:
    arguments = {"num_inference_steps": 3, "width": 64, "height": 64, "guidance_scale": 2.5, "output_type": "np"}
    made = pipeline(**arguments | {"generator": torch.Generator().manual_seed(3)} | more).images
    return torch.as_tensor(made).unsqueeze(1)


def as_it_is(pipeline: Any, denoiser: Any) -> list[Any]:
    """What an IP-Adapter changes of a pipeline: its parts, its denoiser's processors, layers and configuration."""
    parts = {name: id(part) for name, part in pipeline.components.items()}
    processors = {name: id(processor) for name, processor in denoiser.attn_processors.items()}
    kind = getattr(denoiser.config, "encoder_hid_dim_type", None)
    return [parts, processors, set(denoiser.state_dict()), dict(denoiser.config), kind, dict(pipeline.config)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ip_adapter_gives_what_it_gives_in_diffusers(family: str, adapter: Adapter, stable_diffusion: Path) -> None:
    file, on = adapter(family), handle(family, stable_diffusion)
    before = run(on)
    plain: Any = CACHE.peek(on.key)
    denoiser = getattr(plain.pipeline, "unet", None) or plain.pipeline.transformer
    state = as_it_is(plain.pipeline, denoiser)
    result = run(on, prompt(file, 0.6))
    pipeline = source(family)
    if family == "sd3":  # its own loader looks for the encoder in the working folder
        from transformers import SiglipImageProcessor

        pipeline.register_modules(
            image_encoder=vision("SiglipVisionModel"),
            feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
        )
        pipeline.load_ip_adapter(str(file.parent), weight_name=file.name, image_encoder_folder=None)
    elif family == "flux":
        where = {"image_encoder_pretrained_model_name_or_path": str(file.parent / "image_encoder")}
        pipeline.load_ip_adapter(str(file.parent), file.name, image_encoder_dtype=torch.float32, **where)
    else:
        pipeline.load_ip_adapter(str(file.parent), "", file.name)
    pipeline.set_ip_adapter_scale(0.6)
    assert torch.equal(result.frames, call(pipeline, prompt="a ship", ip_adapter_image=to_pil(PICTURE)))
    assert not torch.equal(result.frames, before.frames)
    assert result.report.facts["image prompts"] == "ip-adapter.safetensors 0.6"
    again = run(on)
    assert torch.equal(again.frames, before.frames)
    assert as_it_is(plain.pipeline, denoiser) == state
    assert CACHE.peek(on.key) is plain
    assert plain.image_prompts == {}


def test_two_pictures_and_a_mask_beside_them(adapter: Adapter, stable_diffusion: Path) -> None:
    file, on = adapter("stable_diffusion"), handle("stable_diffusion", stable_diffusion)
    other = PICTURE.flip(0)
    result = run(on, prompt(file, 0.6), prompt(file, 0.3, other))
    pipeline = source("stable_diffusion")
    pipeline.load_ip_adapter(str(file.parent), ["", ""], [file.name] * 2)
    pipeline.set_ip_adapter_scale([0.6, 0.3])
    pictures = [to_pil(PICTURE), to_pil(other)]
    assert torch.equal(result.frames, call(pipeline, prompt="a ship", ip_adapter_image=pictures))
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:44] = 1
    masked = run(on, prompt(file, 0.6), MaskCondition(mask), images=(PICTURE,))
    assert not torch.equal(masked.frames, run(on, MaskCondition(mask), images=(PICTURE,)).frames)


def test_redux_gives_what_it_gives_in_diffusers(adapter: Adapter) -> None:
    folder, on = adapter("redux"), handle("flux", Path())
    before = run(on)
    result = run(on, prompt(folder, 0.8))
    pipeline: Any = tiny.build("flux")
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    texts = {name: getattr(pipeline, name) for name in names}
    prior = diffusers.FluxPriorReduxPipeline.from_pretrained(folder, **texts)
    made = prior([to_pil(PICTURE)], prompt=["a ship"], prompt_embeds_scale=[0.8], pooled_prompt_embeds_scale=[0.8])
    assert torch.equal(result.frames, call(pipeline, **made))
    assert torch.equal(run(on).frames, before.frames)


def test_what_does_not_fit_is_one_line(adapter: Adapter, stable_diffusion: Path, tmp_path: Path) -> None:
    sd = handle("stable_diffusion", stable_diffusion)
    refused = (
        (PipelineHandle(loader.resolve("tiny:zimage")), prompt(adapter("sdxl")), "zimage takes none of that kind"),
        (PipelineHandle(loader.resolve("tiny:sdxl")), prompt(adapter("redux")), "sdxl takes none of that kind"),
        (sd, prompt(adapter("sdxl"), 3.0), "between 0 and 2"),
        (sd, prompt(adapter("flux")), "it does not fit StableDiffusionPipeline"),
    )
    for on, condition, said in refused:
        with pytest.raises(InputError, match=said) as error:
            run(on, condition)
        assert "\n" not in str(error.value)
    plain = run(sd)
    assert torch.equal(plain.frames, call(source("stable_diffusion"), prompt="a ship"))
    alone = tmp_path / "alone.safetensors"
    shutil.copy(adapter("sdxl"), alone)
    with pytest.raises(InputError, match="is not beside it"):
        resolve_image_prompt(str(alone))
    with pytest.raises(ModelFileError, match="it holds no IP-Adapter"):
        resolve_image_prompt(str(next((stable_diffusion / "vae").glob("*.safetensors"))))
    with pytest.raises(ModelFileError, match="which is not Flux Redux"):
        resolve_image_prompt(str(stable_diffusion))


def test_the_embedded_ip_adapters_are_written_once_and_steer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stable_diffusion: Path
) -> None:
    monkeypatch.setenv("FASTDIFFUSERS_CACHE", str(tmp_path / "cache"))
    keys = {family: resolve_image_prompt(f"tiny:{family}") for family in tiny.IMAGE_PROMPT_FAMILIES}
    assert {family: resolve_image_prompt(f"tiny:{family}") for family in keys} == keys
    assert Path(keys["sdxl"].source).is_relative_to(tmp_path / "cache")
    on = handle("sdxl", stable_diffusion)
    steered = run(on, ImagePromptCondition(PICTURE[None], keys["sdxl"]))
    assert not torch.allclose(steered.frames, run(on).frames, atol=1e-4)
    assert steered.report.facts["image prompts"] == "tiny-sdxl.safetensors 1"
    with pytest.raises(InputError, match="there is no embedded IP-Adapter of that name") as caught:
        resolve_image_prompt("tiny:wan")
    assert "\n" not in str(caught.value)

"""Image prompts on models that were quantized while loading: diffusers would cast such a UNet, and it refuses that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from image_prompt_files import ip_adapter_file

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.quantization.quantize import pipeline_quantization_config
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.image_prompts import running
from fastdiffusers.pipelines.conditions.image_prompts.keys import resolve_image_prompt
from fastdiffusers.pipelines.conditions.kinds import ImagePromptCondition
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

PLAIN = OptimizationSettings.plain(memory_mode="gpu")
PICTURE = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
REQUEST = SampleRequest("a ship", steps=2, width=64, height=64, seed=3, guidance=2.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("quantized_sdxl") / "sdxl"
    pipeline = tiny.build("sdxl")
    pipeline.save_pretrained(made)
    ip_adapter_file(pipeline, made.parent / "prompt")
    return made


def prompt_of(folder: Path) -> ImagePromptCondition:
    key = resolve_image_prompt(str(folder.parent / "prompt" / "ip-adapter.safetensors"))
    return ImagePromptCondition(PICTURE[None], key, 0.6)


@pytest.mark.parametrize("quantization", ["torchao-int8", "torchao-fp8", "sdnq-int8", "sdnq-uint4", "layerwise-fp8"])
def test_an_image_prompt_on_a_folder_that_is_quantized_while_loading(quantization: str, folder: Path) -> None:
    pytest.importorskip(quantization.split("-")[0]) if "layerwise" not in quantization else None
    on = PipelineHandle(loader.resolve(str(folder), device="cpu", dtype="bfloat16", quantization=quantization))
    before = generate(on, REQUEST, PLAIN)
    unet: Any = CACHE.peek(on.key).pipeline.unet
    state = {name: str(tensor.dtype) for name, tensor in unet.state_dict().items()}
    result = generate(on, replace(REQUEST, conditions=(prompt_of(folder),)), PLAIN)
    assert result.report.facts["image prompts"] == "ip-adapter.safetensors 0.6"
    assert not torch.equal(result.frames, before.frames)
    assert "to" not in unet.__dict__
    assert {name: str(tensor.dtype) for name, tensor in unet.state_dict().items()} == state
    assert torch.equal(generate(on, REQUEST, PLAIN).frames, before.frames)
    if "torchao" in quantization:
        # Its frames are rounded to bfloat16.
        torch.testing.assert_close(result.frames, in_diffusers(folder, quantization), atol=0.004, rtol=0)


def in_diffusers(folder: Path, quantization: str) -> torch.Tensor:
    """What bare diffusers gives where its cast to the dtype that the model has is left out: it changes nothing."""
    index = diffusers.DiffusionPipeline.load_config(folder)
    config = pipeline_quantization_config(quantization, index, dtype=torch.bfloat16)
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.bfloat16, quantization_config=config
    )
    with pytest.raises(ValueError, match="Casting a quantized model"):
        pipeline.unet.to(dtype=torch.bfloat16)
    pipeline.unet.to = lambda **kwargs: pipeline.unet
    pipeline.load_ip_adapter(str(folder.parent / "prompt"), "", "ip-adapter.safetensors")
    del pipeline.unet.to
    pipeline.unet.encoder_hid_proj.to(torch.bfloat16)
    for processor in pipeline.unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.to(torch.bfloat16)
    pipeline.image_encoder.to(torch.bfloat16)
    pipeline.set_ip_adapter_scale(0.6)
    made = pipeline(
        "a ship",
        num_inference_steps=2,
        width=64,
        height=64,
        guidance_scale=2.5,
        output_type="np",
        ip_adapter_image=to_pil(PICTURE),
        generator=torch.Generator().manual_seed(3),
    )
    return torch.as_tensor(made.images).unsqueeze(1)


def test_what_diffusers_says_is_in_the_refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("some reason of its own")

    monkeypatch.setattr(running, "_load", fails)
    with pytest.raises(InputError, match=r"diffusers cannot put it into sdxl \(some reason of its own\)"):
        generate(PipelineHandle(loader.resolve("tiny:sdxl")), replace(REQUEST, conditions=(prompt_of(folder),)), PLAIN)


def test_too_little_memory_is_no_misfit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(running, "_load", fails)
    with pytest.raises(torch.OutOfMemoryError):
        generate(PipelineHandle(loader.resolve("tiny:sdxl")), replace(REQUEST, conditions=(prompt_of(folder),)), PLAIN)

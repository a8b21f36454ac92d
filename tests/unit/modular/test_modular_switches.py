"""Every switch on a modular pipeline in the cache: without a reload, and undone without a trace, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modular_twins import ROUNDING
from safetensors.torch import save_file

from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations import offload
from fastdiffusers.optimizations.caching import step_cache
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import load, resolve
from fastdiffusers.pipelines.types import LoraSpec, PipelineHandle, SampleRequest

Folder = Callable[[str], Path]
GPU = OptimizationSettings.plain(memory_mode="gpu")
REQUEST = SampleRequest("a red fox", steps=8, width=64, height=64, seed=3)

SWITCHES = {
    "attention": (replace(GPU, attention="math"), "math"),
    "torch_compile": (
        replace(GPU, torch_compile="on", compile=CompileSettings(backend="eager", headroom_gib=0.0)),
        "transformer (4 blocks), eager",
    ),
    "memory_mode": (replace(GPU, memory_mode="group_offload_block"), "group_offload_block"),
    "vae_tiling": (replace(GPU, vae_tiling=TilingSettings(mode="on", tile_size=64)), ""),
    "step_cache": (replace(GPU, step_cache="fast"), "fast, diffusers FirstBlockCache"),
    "fused_projections": (replace(GPU, fused_projections="on"), "transformer (4 attention layers)"),
}


def test_every_switch_acts_on_the_cached_pipeline_and_leaves_no_trace(
    modular_folder: Folder, fresh_dynamo: None
) -> None:
    handle = PipelineHandle(resolve(str(modular_folder("flux"))))
    plain = generate(handle, REQUEST, GPU)
    loaded = CACHE.peek(handle.key)
    for name, (settings, applied) in SWITCHES.items():
        result = generate(handle, REQUEST, settings)
        assert not result.report[name].failed, name
        assert result.report[name].applied.startswith(applied), name
        if name != "step_cache":
            assert torch.allclose(result.latent, plain.latent, atol=1e-4), name
        again = generate(handle, REQUEST, GPU)
        assert torch.equal(again.latent, plain.latent), name
        assert torch.equal(again.frames, plain.frames), name
    assert CACHE.peek(handle.key) is loaded


def test_a_step_cache_does_what_it_does_to_the_classical_form(modular_folder: Folder) -> None:
    settings = replace(GPU, step_cache="fast")
    modular = generate(PipelineHandle(resolve(str(modular_folder("flux")))), REQUEST, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_cache, "ENGINES", step_cache.ENGINES[1:])  # without cache-dit, which knows this form alone
        classical = generate(PipelineHandle(resolve("tiny:flux")), REQUEST, settings)
    torch.testing.assert_close(modular.latent, classical.latent, atol=ROUNDING, rtol=0)
    assert modular.report["step_cache"].applied == classical.report["step_cache"].applied


def test_a_step_cache_that_cannot_tell_the_halves_of_guidance_is_refused_by_name(modular_folder: Folder) -> None:
    handle = PipelineHandle(resolve(str(modular_folder("zimage"))))
    record = generate(handle, REQUEST, replace(GPU, step_cache="fast")).report["step_cache"]
    assert record.failed
    assert "the blocks of ZImageModularPipeline do not say which half of guidance a call is" in record.reason


def test_offloading_by_model_becomes_offloading_by_block(modular_folder: Folder) -> None:
    pipeline = load(resolve(str(modular_folder("flux")))).pipeline
    mode, reason = offload.decide(pipeline, "model_offload", torch.device("cuda"), MemoryState(GIB, GIB))
    assert mode == "group_offload_block"
    assert "model by model" in reason


def test_a_lora_acts_as_on_the_classical_form_and_comes_off_again(modular_folder: Folder, tmp_path: Path) -> None:
    handle = PipelineHandle(resolve(str(modular_folder("flux"))))
    plain = generate(handle, REQUEST, GPU)
    with CACHE.use(handle.key) as loaded:
        layers = dict(loaded.pipeline.transformer.named_modules())
    noise = torch.Generator().manual_seed(0)
    tensors = {}
    for name, layer in layers.items():
        if name.endswith(("to_q", "to_v")):
            stem = f"transformer.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=noise) * 0.1
            tensors[f"{stem}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=noise) * 0.1
    save_file(tensors, tmp_path / "lora.safetensors")
    loras = (LoraSpec(str(tmp_path / "lora.safetensors"), 0.8),)
    modular = generate(replace(handle, loras=loras), REQUEST, GPU)
    assert not torch.equal(modular.latent, plain.latent)
    assert torch.equal(generate(handle, REQUEST, GPU).latent, plain.latent)
    classical = generate(PipelineHandle(resolve("tiny:flux"), loras=loras), REQUEST, GPU)
    torch.testing.assert_close(modular.latent, classical.latent, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("quantization", ["torchao-int8", "layerwise-fp8"])
def test_quantized_weights_are_those_of_the_classical_form(
    quantization: str, modular_folder: Folder, tiny_folder: Folder
) -> None:
    pytest.importorskip("torchao")
    modular = load(resolve(str(modular_folder("flux")), quantization=quantization))
    classical = load(resolve(str(tiny_folder("flux")), quantization=quantization))
    assert modular.facts["quantization"] == classical.facts["quantization"]

"""LoRA, quantization, step caching, compile and memory modes at once, through the call that nodes and commands make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.apply import active, apply
from fastdiffusers.optimizations.quantization import sdnq
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.lora import set_loras
from fastdiffusers.pipelines.types import LoraSpec, PipelineHandle, SampleRequest

REQUEST = SampleRequest("a red fox", steps=8, width=64, height=64, seed=3, decode=False)
GPU = OptimizationSettings.plain(memory_mode="gpu")
COMPILED = replace(GPU, torch_compile="on", compile=CompileSettings(backend="eager", headroom_gib=0.0))


@pytest.fixture(autouse=True)
def _clean(fresh_dynamo: None) -> Iterator[None]:
    yield
    CACHE.clear()


def handle(family: str = "flux", *loras: LoraSpec, **options: Any) -> PipelineHandle:
    return PipelineHandle(resolve(f"tiny:{family}", device="cpu", dtype="float32", **options), loras=loras)


def latent(pipeline: PipelineHandle, settings: OptimizationSettings = GPU) -> torch.Tensor:
    return generate(pipeline, REQUEST, settings).latent


def test_loras_travel_with_the_handle_and_cost_no_reload(make_lora: Callable) -> None:
    path = str(make_lora("flux"))
    plain = latent(handle())
    result = generate(handle("flux", LoraSpec(path, 0.5)), REQUEST, GPU)
    assert result.report["lora"].requested.endswith("0.5")
    assert not torch.equal(result.latent, plain)
    with CACHE.use(handle().key) as loaded:
        transformer = loaded.pipeline.transformer
    assert torch.equal(latent(handle()), plain)
    assert torch.equal(latent(handle("flux", LoraSpec(path, 0.5))), result.latent)
    with CACHE.use(handle().key) as loaded:
        assert loaded.pipeline.transformer is transformer


def test_a_bad_lora_is_said_before_the_model_loads(make_lora: Callable) -> None:
    bad = handle("flux", LoraSpec(str(make_lora("flux")), float("nan")))
    CACHE.clear()
    with pytest.raises(InputError, match="strength"):
        generate(bad, REQUEST, GPU)
    assert not CACHE.keys()


@pytest.mark.parametrize("memory_mode", ["group_offload_block", "group_offload_leaf", "model_offload"])
def test_loras_change_under_offloading(memory_mode: str, make_lora: Callable) -> None:
    first, second = str(make_lora("flux", rank=4)), str(make_lora("flux", rank=40, seed=1))
    chains = [(LoraSpec(first),), (), (LoraSpec(first, 0.5),), (LoraSpec(first), LoraSpec(second, 0.3)), ()]
    expected = [latent(handle("flux", *chain)) for chain in chains]
    CACHE.clear()
    settings = replace(GPU, memory_mode=memory_mode)
    for chain, result in zip(chains, expected, strict=True):
        report = generate(handle("flux", *chain), REQUEST, settings)
        assert torch.equal(report.latent, result), chain
        assert not report.report["memory_mode"].failed


def test_loras_under_compile_and_step_caching_recompile_nothing(make_lora: Callable) -> None:
    pytest.importorskip("cache_dit")
    path, other = str(make_lora("flux", seed=1)), str(make_lora("flux", seed=2))
    settings = replace(COMPILED, step_cache="balanced")
    chains = [
        (LoraSpec(path),),
        (LoraSpec(path, 0.2),),
        (LoraSpec(other),),
        (LoraSpec(path, 0.5), LoraSpec(other, 0.5)),
    ]
    expected = [latent(handle("flux", *chain), replace(GPU, step_cache="balanced")) for chain in chains]
    latent(handle("flux", *chains[0]), settings)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for chain, result in zip(chains, expected, strict=True):
            made = generate(handle("flux", *chain), REQUEST, settings)
            assert not made.report["torch_compile"].failed
            torch.testing.assert_close(made.latent, result, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["flux", "wan22-t2v"])
def test_a_lora_comes_to_fused_projections_and_goes(family: str, make_lora: Callable) -> None:
    everywhere = str(make_lora(family))
    outputs = str(make_lora(family, seed=1, targets=["to_out.0"], name="outputs.safetensors"))
    chains = [(), (LoraSpec(everywhere),), (LoraSpec(everywhere, 0.5),), (), (LoraSpec(outputs),), ()]
    expected = [latent(handle(family, *chain)) for chain in chains]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    CACHE.clear()
    settings = replace(GPU, fused_projections="on")
    for chain, result in zip(chains, expected, strict=True):
        made = generate(handle(family, *chain), REQUEST, settings)
        torch.testing.assert_close(made.latent, result, rtol=1e-3, atol=1e-4)
        record = made.report["fused_projections"]
        separate = chain != () and chain[0].path == everywhere
        assert ("a LoRA is on them" in record.reason) == record.failed == separate
    assert torch.equal(latent(handle(family)), expected[0])


def test_without_a_way_to_tell_the_optimizations_a_lora_still_unfuses(make_lora: Callable) -> None:
    spec = LoraSpec(str(make_lora("flux")))
    expected = latent(handle("flux", spec))
    CACHE.clear()
    latent(handle(), replace(GPU, fused_projections="on"))
    with CACHE.use(handle().key) as loaded:
        set_loras(loaded, (spec,))
        assert not any(getattr(layer, "fused_projections", False) for layer in loaded.pipeline.transformer.modules())
    assert torch.equal(latent(handle("flux", spec)), expected)


def test_quantized_matmul_is_switched_where_what_is_not_quantized_is_fused(
    tiny_pipeline: Callable, run: Callable
) -> None:
    pytest.importorskip("sdnq")
    pipeline = tiny_pipeline("flux")
    kept = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"]
    with sdnq.import_sdnq_safely() as library:
        scheme = {"weights_dtype": "int8", "torch_dtype": torch.float32, "minimum_allowed_numel": 1024}
        library.sdnq_post_load_quant(pipeline.transformer, **scheme, modules_to_not_convert=kept)
    results: dict[str, torch.Tensor] = {}
    for fused in ("off", "on"):
        for choice in ("off", "on", "off"):
            settings = replace(GPU, quantized_matmul=choice, fused_projections=fused)
            report = apply(pipeline, settings)
            with active(pipeline, settings, report):
                result = run(pipeline)
            torch.testing.assert_close(result, results.setdefault(choice, result), rtol=1e-3, atol=1e-4)
            assert not report["fused_projections"].failed
    assert not torch.equal(results["on"], results["off"])


@pytest.mark.parametrize("quantization", ["sdnq-int8", "sdnq-uint4", "layerwise-fp8"])
def test_everything_at_once_on_a_quantized_model(quantization: str, make_lora: Callable) -> None:
    if quantization.startswith("sdnq"):
        pytest.importorskip("sdnq")
    lora = LoraSpec(str(make_lora("qwenimage")))
    plain = latent(handle("qwenimage", quantization=quantization))
    with_lora = handle("qwenimage", lora, quantization=quantization)
    expected = latent(with_lora)
    assert not torch.equal(expected, plain)
    settings = replace(COMPILED, memory_mode="group_offload_leaf")
    made = generate(with_lora, REQUEST, settings)
    torch.testing.assert_close(made.latent, expected, rtol=1e-3, atol=1e-3)
    assert "text_encoder" in made.report.facts["quantization"] or quantization == "layerwise-fp8"
    assert torch.equal(latent(handle("qwenimage", quantization=quantization)), plain)

"""Adapters of every kind that PEFT writes give the layers that diffusers' own `load_lora_weights` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import (
    adapter_of,
    apply,
    assert_same_layers,
    denoiser_of,
    loaded,
    prefixed,
    random_pair,
    random_values,
    write,
)

from fastdiffusers.pipelines.lora import set_loras
from fastdiffusers.pipelines.types import LoraSpec

FAMILIES = ("flux", "sdxl", "qwenimage", "zimage", "wan22-t2v", "flux2-klein")
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4},
    "alpha": {"r": 4, "lora_alpha": 16},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 8}, "alpha_pattern": {"to_q": 2, "to_k": 32}},
    "regular expressions": {
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": {r".*\.0\..*to_k": 2},
        "alpha_pattern": {"to_[qv]": 9},
    },
    # Neither is the name of a layer from a dot on: PEFT leaves both layers at the common alpha.
    "ends of words": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"q": 32, "out.0": 16, "o_k": 64}},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"to_v": 2}},
    "DoRA": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "biases": {"r": 4, "lora_alpha": 8, "lora_bias": True},
}


def load_reference(pipeline: Any, path: Path, name: str = "reference", expert: str = "both") -> None:
    if expert != "low":
        pipeline.load_lora_weights(str(path), adapter_name=name)
    if getattr(pipeline, "transformer_2", None) is not None and expert != "high":
        pipeline.load_lora_weights(str(path), adapter_name=f"{name}_low", load_into_transformer_2=True)


def set_reference(pipeline: Any, strength: float, name: str = "reference") -> None:
    for part, module in pipeline.components.items():
        if getattr(module, "peft_config", None):
            module.set_adapters([name if name in module.peft_config else f"{name}_low"], [strength])
            assert part


def make(pipeline: Any, path: Path, metadata: bool = True, seed: int = 0, **kind: Any) -> Path:
    from peft import LoraConfig

    part = denoiser_of(pipeline)
    config = LoraConfig(**{"target_modules": TARGETS, "init_lora_weights": False, **kind})
    values, settings = adapter_of(pipeline, part, config, seed)
    return write(path, prefixed(part, values), prefixed(part, settings) if metadata else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_adapter(family: str, kind: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    path = make(reference, tmp_path / "made.safetensors", **KINDS[kind])
    load_reference(reference, path)
    set_reference(reference, 0.7)
    (record,) = set_loras(loaded(pipeline), (LoraSpec(str(path), 0.7),))
    experts = ("transformer", "transformer_2") if family.startswith("wan") else ()
    assert assert_same_layers(pipeline, reference, experts) >= 4
    assert record.reason == ""


@pytest.mark.parametrize("kind", ["patterns", "DoRA", "biases"])
@pytest.mark.parametrize("family", ["flux", "sdxl", "wan22-t2v"])
def test_a_file_without_a_configuration(family: str, kind: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    path = make(reference, tmp_path / "made.safetensors", metadata=False, **KINDS[kind])
    load_reference(reference, path)
    set_loras(loaded(pipeline), (LoraSpec(str(path)),))
    assert_same_layers(pipeline, reference)


@pytest.mark.parametrize("kind", ["DoRA", "biases", "rank-stabilised"])
def test_the_picture_is_that_of_diffusers_and_comes_off_exactly(
    kind: str, tiny_pipeline: Callable, run: Callable, tmp_path: Path
) -> None:
    pipeline, reference = tiny_pipeline("flux"), tiny_pipeline("flux")
    path = make(reference, tmp_path / "made.safetensors", **KINDS[kind])
    load_reference(reference, path)
    set_reference(reference, 0.5)
    entry, plain = loaded(pipeline), run(pipeline)
    set_loras(entry, (LoraSpec(str(path), 0.5),))
    torch.testing.assert_close(run(pipeline), run(reference), rtol=1e-3, atol=1e-4)
    set_reference(reference, -0.25)
    (record,) = set_loras(entry, (LoraSpec(str(path), -0.25),))
    assert record.cost.startswith("exchanged in place")
    torch.testing.assert_close(run(pipeline), run(reference), rtol=1e-3, atol=1e-4)
    set_loras(entry, ())
    assert torch.equal(run(pipeline), plain)


def test_different_kinds_at_once(tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline("flux"), tiny_pipeline("flux")
    kinds = ("DoRA", "biases", "plain")
    files = [make(reference, tmp_path / f"{kind}.safetensors", seed=n, **KINDS[kind]) for n, kind in enumerate(kinds)]
    strengths = [0.5, -0.25, 0.8]
    for name, file in zip(kinds, files, strict=True):
        reference.load_lora_weights(str(file), adapter_name=name)
    reference.transformer.set_adapters(list(kinds), strengths)
    entry = loaded(pipeline)
    specs = tuple(LoraSpec(str(file), strength) for file, strength in zip(files, strengths, strict=True))
    set_loras(entry, specs)
    assert_same_layers(pipeline, reference)
    reference.transformer.set_adapters(["plain"], [0.8])
    (record,) = set_loras(entry, specs[2:])
    assert record.cost.startswith("exchanged in place")
    assert_same_layers(pipeline, reference)


@pytest.mark.parametrize("family", ["flux", "sdxl"])
@pytest.mark.parametrize("metadata", [True, False])
def test_text_encoders(family: str, metadata: bool, tiny_pipeline: Callable, tmp_path: Path) -> None:
    from peft import LoraConfig

    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    parts = ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",)
    tensors: dict[str, torch.Tensor] = {}
    settings: dict[str, Any] = {}
    for part in (denoiser_of(reference), *parts):
        encoder = part.startswith("text")
        config = LoraConfig(
            r=4,
            lora_alpha=4 if not metadata else 10,
            target_modules=["q_proj", "v_proj", "fc1"] if encoder else TARGETS,
            init_lora_weights=False,
        )
        values, own = adapter_of(reference, part, config, seed=len(settings))
        tensors |= prefixed(part, values)
        settings |= prefixed(part, own)
    path = write(tmp_path / "made.safetensors", tensors, settings if metadata else None)
    reference.load_lora_weights(str(path), adapter_name="reference")
    set_loras(loaded(pipeline), (LoraSpec(str(path)),))
    assert_same_layers(pipeline, reference, (denoiser_of(reference), *parts))


@pytest.mark.parametrize("options", [{}, {"decompose_both": True, "r": 2}, {"r": 64}, {"decompose_factor": 4}])
@pytest.mark.parametrize("family", ["flux2-klein", "zimage"])
def test_lokr(family: str, options: dict[str, Any], tiny_pipeline: Callable, tmp_path: Path) -> None:
    from peft import LoKrConfig

    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    config = LoKrConfig(**{"r": 4, "alpha": 6, "target_modules": TARGETS, "init_weights": False, **options})
    values, settings = adapter_of(reference, "transformer", config)
    path = write(tmp_path / "made.safetensors", prefixed("transformer", values), prefixed("transformer", settings))
    reference.load_lora_weights(str(path), adapter_name="reference")
    entry = loaded(pipeline)
    set_loras(entry, (LoraSpec(str(path)),))
    assert assert_same_layers(pipeline, reference) >= 4
    reference.transformer.set_adapters(["reference"], [-0.5])
    (record,) = set_loras(entry, (LoraSpec(str(path), -0.5),))
    assert record.cost.startswith("exchanged in place")
    assert_same_layers(pipeline, reference)


def test_other_kinds_are_exchanged_without_recompiling(
    tiny_pipeline: Callable, run: Callable, tmp_path: Path, fresh_dynamo: None
) -> None:
    pipeline, reference = tiny_pipeline("flux"), tiny_pipeline("flux")
    entry = loaded(pipeline)
    kinds = ("DoRA", "biases", "plain")
    files = [make(reference, tmp_path / f"{kind}.safetensors", seed=n, **KINDS[kind]) for n, kind in enumerate(kinds)]
    everything = tuple(LoraSpec(str(file), 0.5) for file in files)
    set_loras(entry, everything)
    sets = [everything, everything[:1], everything[1:], (LoraSpec(str(files[0]), -0.3),)]
    eager = []
    for specs in sets:
        set_loras(entry, specs)
        eager.append(run(pipeline))
    pipeline.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    run(pipeline)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for specs, expected in zip(sets, eager, strict=True):
            (record,) = set_loras(entry, specs)
            assert record.cost.startswith("exchanged in place")
            assert torch.equal(run(pipeline), expected)


@pytest.mark.parametrize("kind", ["DoRA", "biases"])
def test_other_kinds_on_a_quantized_model(kind: str, tiny_pipeline: Callable, run: Callable, tmp_path: Path) -> None:
    pytest.importorskip("sdnq")
    from fastdiffusers.optimizations.quantization.quantize import quantize_loaded

    pipeline, unquantized = tiny_pipeline("flux"), tiny_pipeline("flux")
    path = make(unquantized, tmp_path / "made.safetensors", **KINDS[kind])
    quantize_loaded(pipeline, "sdnq-int8", minimum_numel=1024)
    plain = run(pipeline)
    set_loras(loaded(pipeline), (LoraSpec(str(path)),))
    set_loras(loaded(unquantized), (LoraSpec(str(path)),))
    result = run(pipeline)
    assert (result - run(unquantized)).abs().mean() < (result - plain).abs().mean() / 2
    set_loras(loaded(pipeline), ())
    assert torch.equal(run(pipeline), plain)


@pytest.mark.parametrize("kind", ["DoRA", "biases"])
def test_other_kinds_while_the_weights_are_offloaded(
    kind: str, tiny_pipeline: Callable, run: Callable, tmp_path: Path
) -> None:
    pipeline, expected = tiny_pipeline("flux"), tiny_pipeline("flux")
    path = make(expected, tmp_path / "made.safetensors", **KINDS[kind])
    set_loras(loaded(expected), (LoraSpec(str(path)),))
    entry = loaded(pipeline)
    set_loras(entry, (LoraSpec(str(path)),))
    pipeline.transformer.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level")
    assert torch.equal(run(pipeline), run(expected))
    for model in (entry, loaded(expected)):
        (record,) = set_loras(model, (LoraSpec(str(path), 0.4),))
        assert record.cost.startswith("exchanged in place")
    assert torch.equal(run(pipeline), run(expected))


@pytest.mark.parametrize("kind", ["DoRA", "plain"])
def test_what_a_dora_does_at_strength_0_is_said(kind: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline = tiny_pipeline("flux")
    path = make(pipeline, tmp_path / "made.safetensors", **KINDS[kind])
    (record,) = set_loras(loaded(pipeline), (LoraSpec(str(path), 0.0),))
    assert ("made: a DoRA scales its layers at strength 0 too" in record.reason) is (kind == "DoRA")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_that_a_file_holds_whole_take_the_place_of_the_models_own(
    tiny_pipeline: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    """FLUX.1's control LoRAs train them; diffusers loads them into the transformer."""
    pipeline, reference = (tiny_pipeline("flux").to(dtype) for _ in range(2))
    block = "transformer_blocks.0.attn"
    norms = [f"{block}.{name}" for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")]
    own = {f"{norm}.weight": pipeline.transformer.get_parameter(f"{norm}.weight").detach().clone() for norm in norms}
    tensors = {**random_pair(f"{block}.to_q", 32, 32), **random_values(own, seed=3, size=1.0)}
    path = write(tmp_path / "norms.safetensors", prefixed("transformer", tensors))
    assert "4 norms taken whole from the file" in apply(pipeline, path).reason
    reference.load_lora_weights(str(path))
    for norm in norms:
        ours, theirs = (model.transformer.get_submodule(norm) for model in (pipeline, reference))
        x = torch.randn(2, 3, theirs.weight.numel(), generator=torch.Generator().manual_seed(0)).to(dtype)
        torch.testing.assert_close(ours(x), theirs(x))
        assert not torch.equal(theirs.weight, own[f"{norm}.weight"])
    alone = {key: tensor for key, tensor in tensors.items() if key in own}
    apply(pipeline, write(tmp_path / "alone.safetensors", prefixed("transformer", alone)))
    torch.testing.assert_close(pipeline.transformer.get_submodule(norms[-1])(x), theirs(x))
    set_loras(loaded(pipeline), ())
    for key, weight in own.items():
        assert torch.equal(pipeline.transformer.get_parameter(key), weight)

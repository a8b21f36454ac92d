"""Several adapters of which some are DoRAs: the same files in the same order give what diffusers gives with them.

PEFT applies adapters one after the other, and a DoRA multiplies what the ones before it added too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import adapter_of, assert_same_layers, denoiser_of, input_for, loaded, prefixed, write
from safetensors.torch import load_file

from fastdiffusers.optimizations.lora_layers import LoraLayer
from fastdiffusers.pipelines.lora import set_loras
from fastdiffusers.pipelines.types import LoraSpec

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "q_proj", "v_proj", "fc1"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "biases": {"r": 2, "lora_alpha": 4, "lora_bias": True},
    "DoRA": {"r": 4, "lora_alpha": 2, "use_dora": True},
}
PARTS = {"flux": ("transformer", "text_encoder"), "sdxl": ("unet", "text_encoder", "text_encoder_2")}
ORDERS: dict[str, list[tuple[str, float]]] = {
    "LoRA, DoRA": [("plain", 0.5), ("DoRA", 0.8)],
    "DoRA, LoRA": [("DoRA", 0.8), ("plain", 0.5)],
    "DoRA, DoRA": [("DoRA", 0.5), ("DoRA", -0.8)],
    "DoRA at 0 last": [("plain", -0.7), ("DoRA", 0.0)],
    "LoRA at 0": [("plain", 0.0), ("DoRA", 0.6), ("biases", 1.0)],
    "many": [("biases", -0.4), ("DoRA", 0.8), ("plain", 0.3), ("DoRA", -0.5), ("biases", 0.7)],
}


def make(pipeline: Any, path: Path, parts: Sequence[str], kind: str, seed: int = 0) -> Path:
    from peft import LoraConfig

    tensors: dict[str, torch.Tensor] = {}
    settings: dict[str, Any] = {}
    for number, part in enumerate(parts):
        config = LoraConfig(target_modules=TARGETS, init_lora_weights=False, **KINDS[kind])
        values, own = adapter_of(pipeline, part, config, seed + 10 * number)
        tensors |= prefixed(part, values)
        settings |= prefixed(part, own)
    return write(path, tensors, settings)


def load(pipeline: Any, files: Sequence[Path], strengths: Sequence[float]) -> list[str]:
    names = [f"number{number}" for number in range(len(files))]
    for name, file in zip(names, files, strict=True):
        pipeline.load_lora_weights(str(file), adapter_name=name)
        read_magnitudes(pipeline, file, name)
    pipeline.set_adapters(names, list(strengths))
    return names


def read_magnitudes(pipeline: Any, file: Path, name: str) -> None:
    """transformers 5 drops the magnitudes of a DoRA that diffusers hands it: a text encoder's are random then."""
    for key, magnitude in load_file(file).items():
        part, _, layer = key.removesuffix(".lora_magnitude_vector").partition(".")
        if key.endswith(".lora_magnitude_vector") and part.startswith("text_encoder"):
            getattr(pipeline, part).get_submodule(layer).lora_magnitude_vector[name].weight.data.copy_(magnitude)


def specs_of(files: Sequence[Path], strengths: Sequence[float]) -> tuple[LoraSpec, ...]:
    return tuple(LoraSpec(str(file), strength) for file, strength in zip(files, strengths, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("family", PARTS)
def test_every_order_gives_the_layers_of_diffusers(
    family: str, order: str, tiny_pipeline: Callable, tmp_path: Path
) -> None:
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    files = [
        make(reference, tmp_path / f"{number}.safetensors", PARTS[family], kind, number)
        for number, (kind, _) in enumerate(ORDERS[order])
    ]
    strengths = [strength for _, strength in ORDERS[order]]
    load(reference, files, strengths)
    set_loras(loaded(pipeline), specs_of(files, strengths))
    assert assert_same_layers(pipeline, reference, PARTS[family]) >= 10


def test_another_order_on_a_loaded_model_reloads_nothing(
    tiny_pipeline: Callable, run: Callable, tmp_path: Path
) -> None:
    pipeline, reference = tiny_pipeline("sdxl"), tiny_pipeline("sdxl")
    kinds = ("plain", "DoRA", "DoRA")
    parts = PARTS["sdxl"]
    files = [make(reference, tmp_path / f"{n}.safetensors", parts, kind, n) for n, kind in enumerate(kinds)]
    names = load(reference, files, [1.0] * 3)
    entry, plain = loaded(pipeline), run(pipeline)
    pictures = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0), (0, 2)):
        strengths = [(0.5, 0.8, -0.3)[n] for n in order]
        reference.set_adapters([names[n] for n in order], strengths)
        (record,) = set_loras(entry, specs_of([files[n] for n in order], strengths))
        assert not pictures or record.cost.startswith("exchanged in place")
        assert_same_layers(pipeline, reference, PARTS["sdxl"])
        pictures.append(run(pipeline))
        torch.testing.assert_close(pictures[-1], run(reference), rtol=1e-3, atol=1e-4)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
    set_loras(entry, ())
    assert torch.equal(run(pipeline), plain)


def test_each_expert_has_its_own_order(tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline("wan22-t2v"), tiny_pipeline("wan22-t2v")
    kinds = ("plain", "DoRA")
    files = [
        make(reference, tmp_path / f"{kind}.safetensors", ["transformer"], kind, n) for n, kind in enumerate(kinds)
    ]
    for kind, file in zip(kinds, files, strict=True):
        reference.load_lora_weights(str(file), adapter_name=kind)
        reference.load_lora_weights(str(file), adapter_name=f"{kind}_low", load_into_transformer_2=True)
    reference.transformer.set_adapters(["plain", "DoRA"], [0.5, 0.8])
    reference.transformer_2.set_adapters(["DoRA_low", "plain_low"], [-0.6, 0.9])
    plain, dora = map(str, files)
    high = (LoraSpec(plain, 0.5, "high"), LoraSpec(dora, 0.8, "high"))
    low = (LoraSpec(dora, -0.6, "low"), LoraSpec(plain, 0.9, "low"))
    set_loras(loaded(pipeline), (low[0], *high, low[1]))
    assert assert_same_layers(pipeline, reference, ("transformer", "transformer_2")) >= 10


@pytest.mark.parametrize("first", ["LoKr", "DoRA"])
def test_a_kronecker_product_and_a_dora(first: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    from peft import LoKrConfig

    pipeline, reference = tiny_pipeline("zimage"), tiny_pipeline("zimage")
    part = denoiser_of(reference)
    config = LoKrConfig(r=4, alpha=6, target_modules=TARGETS[:4], init_weights=False)
    values, settings = adapter_of(reference, part, config)
    kronecker = write(tmp_path / "kronecker.safetensors", prefixed(part, values), prefixed(part, settings))
    dora = make(reference, tmp_path / "dora.safetensors", [part], "DoRA", 1)
    files = [kronecker, dora] if first == "LoKr" else [dora, kronecker]
    load(reference, files, [0.5, 0.8])
    entry = loaded(pipeline)
    for order in (files[::-1], files):
        set_loras(entry, specs_of(order, [0.5, 0.8]))
    assert assert_same(pipeline, reference) >= 4


def assert_same(pipeline: Any, reference: Any) -> int:
    """Layers of another kind of adapter stand inside one another in PEFT: the outermost counts."""
    wrapped = {name: layer for name, layer in pipeline.transformer.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in wrapped.items():
        hidden = input_for(layer.base)
        with torch.no_grad():
            theirs = reference.transformer.get_submodule(name)(hidden)
            torch.testing.assert_close(
                layer(hidden), theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max()))
            )
    return len(wrapped)

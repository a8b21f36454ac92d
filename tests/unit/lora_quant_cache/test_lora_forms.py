"""LoRA files under the names that other programs write: the same layers get the same update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import (
    A,
    B,
    Tensors,
    adapter_of,
    apply,
    assert_same_layers,
    denoiser_of,
    flat,
    input_for,
    loaded,
    prefixed,
    random_values,
    write,
)

from fastdiffusers.optimizations.lora_layers import LoraLayer
from fastdiffusers.pipelines.lora import set_loras
from fastdiffusers.pipelines.types import LoraSpec

FAMILIES = ("flux", "sdxl", "qwenimage", "zimage", "wan22-t2v", "flux2-klein")


def made(pipeline: Any, targets: Any = ("to_q", "to_v", "to_out.0"), part: str = "", **options: Any) -> Tensors:
    from peft import LoraConfig

    config = LoraConfig(**{"r": 4, "target_modules": targets, "init_lora_weights": False, **options})
    return adapter_of(pipeline, part or denoiser_of(pipeline), config)[0]


def renamed(tensors: Tensors, rename: Callable[[str], str], down: str = A, up: str = B) -> Tensors:
    """Layer names through `rename`, and other endings for the two halves."""
    result = {}
    for key, value in tensors.items():
        end = A if key.endswith(A) else B
        result[rename(key.removesuffix(end)) + (down if end == A else up)] = value
    return result


FORMS: dict[str, Callable[[Tensors], Tensors]] = {
    "no prefix": lambda t: t,
    "PEFT": lambda t: prefixed("base_model.model", t),
    "PEFT with the adapter's name": lambda t: renamed(
        t, lambda n: n, ".lora_A.default.weight", ".lora_B.default.weight"
    ),
    "ComfyUI": lambda t: prefixed("diffusion_model", t),
    "down and up": lambda t: renamed(t, lambda n: f"diffusion_model.{n}", ".lora_down.weight", ".lora_up.weight"),
    "dots": lambda t: renamed(t, lambda n: n, ".lora.down.weight", ".lora.up.weight"),
    "DiffSynth": lambda t: prefixed("pipe.dit", t),
    "kohya": lambda t: renamed(t, flat, ".lora_down.weight", ".lora_up.weight"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_known_under_every_form(form: str, family: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    tensors = made(reference)
    part = denoiser_of(reference)
    reference.load_lora_weights(str(write(tmp_path / "plain.safetensors", prefixed(part, tensors))), adapter_name="one")
    record = apply(pipeline, write(tmp_path / "form.safetensors", FORMS[form](tensors)))
    assert assert_same_layers(pipeline, reference) >= 4
    assert record.reason == ""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["no prefix", "ComfyUI", "kohya"])
def test_an_alpha_per_layer(form: str, family: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    tensors = made(reference)
    alphas = {key.removesuffix(A): 2.0 ** (number % 5) for number, key in enumerate(sorted(tensors)) if key.endswith(A)}
    folded = {
        key: value * (alphas[key.removesuffix(A)] / 4) if key.endswith(A) else value for key, value in tensors.items()
    }
    part = denoiser_of(reference)
    reference.load_lora_weights(str(write(tmp_path / "plain.safetensors", prefixed(part, folded))), adapter_name="one")
    given = FORMS[form](tensors)
    rename = {"no prefix": str, "ComfyUI": lambda n: f"diffusion_model.{n}", "kohya": flat}[form]
    given |= {f"{rename(name)}.alpha": torch.tensor(alpha) for name, alpha in alphas.items()}
    apply(pipeline, write(tmp_path / "form.safetensors", given))
    assert_same_layers(pipeline, reference)


def fused(tensors: Tensors, parts: list[str], name: str) -> Tensors:
    """The file of a fused layer, whose separate layers then all have its `down` matrix: both are changed to fit."""
    for part in parts:
        tensors[part + A] = tensors[parts[0] + A]
    rows = torch.cat([tensors[part + B] for part in parts])
    return {name + A: tensors[parts[0] + A], name + B: rows}


FLUX_FUSED = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{n}" for n in "qkv"],
    "double_blocks.1.txt_attn.qkv": [f"transformer_blocks.1.attn.add_{n}_proj" for n in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
    "double_blocks.1.img_mod.lin": ["transformer_blocks.1.norm1.linear"],
    "single_blocks.0.linear1": [
        f"single_transformer_blocks.0.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ],
    "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
    "img_in": ["x_embedder"],
    "final_layer.linear": ["proj_out"],
}
ZIMAGE_FUSED = {
    "layers.0.attention.qkv": [f"layers.0.attention.to_{n}" for n in "qkv"],
    "layers.1.attention.out": ["layers.1.attention.to_out.0"],
    "context_refiner.0.attention.qkv": [f"context_refiner.0.attention.to_{n}" for n in "qkv"],
    "noise_refiner.0.feed_forward.w1": ["noise_refiner.0.feed_forward.w1"],
}
KLEIN_FUSED = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{n}" for n in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{n}_proj" for n in "qkv"],
    "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.linear_in"],
    "single_blocks.0.linear1": ["single_transformer_blocks.0.attn.to_qkv_mlp_proj"],
    "single_blocks.0.linear2": ["single_transformer_blocks.0.attn.to_out"],
}
WAN_ORIGINAL = {
    **{f"blocks.0.self_attn.{n}": [f"blocks.0.attn1.to_{n}"] for n in "qkv"},
    "blocks.1.cross_attn.o": ["blocks.1.attn2.to_out.0"],
    "blocks.1.ffn.0": ["blocks.1.ffn.net.0.proj"],
    "blocks.0.ffn.2": ["blocks.0.ffn.net.2"],
    "head.head": ["proj_out"],
    "time_projection.1": ["condition_embedder.time_proj"],
    "text_embedding.2": ["condition_embedder.text_embedder.linear_2"],
}
ORIGINALS = {"flux": FLUX_FUSED, "zimage": ZIMAGE_FUSED, "flux2-klein": KLEIN_FUSED, "wan22-t2v": WAN_ORIGINAL}


@pytest.mark.parametrize("form", ["ComfyUI", "PEFT", "kohya"])
@pytest.mark.parametrize("family", ORIGINALS)
def test_the_names_of_the_original_models(form: str, family: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    layers = [part for parts in ORIGINALS[family].values() for part in parts]
    # PEFT's targets are ends of names: "proj_out" stands for others too.
    tensors = {key: value for key, value in made(reference, layers).items() if key[: -len(A)] in layers}
    original: Tensors = {}
    for name, parts in ORIGINALS[family].items():
        original |= fused(tensors, parts, name)
    plain = write(tmp_path / "plain.safetensors", prefixed("transformer", tensors))
    reference.load_lora_weights(str(plain), adapter_name="one")
    record = apply(pipeline, write(tmp_path / "form.safetensors", FORMS[form](original)))
    assert assert_same_layers(pipeline, reference) == len(layers)
    assert record.reason == ""


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["flux", "qwenimage", "wan22-t2v"])
def test_files_in_other_types(dtype: torch.dtype, family: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    narrow = {key: value.to(dtype) for key, value in made(reference).items()}
    wide = {key: value.float() for key, value in narrow.items()}
    reference.load_lora_weights(str(write(tmp_path / "wide.safetensors", prefixed("transformer", wide))))
    alphas = {key.removesuffix(A) + ".alpha": torch.tensor(4.0).to(dtype) for key in narrow if key.endswith(A)}
    apply(pipeline, write(tmp_path / "narrow.safetensors", prefixed("diffusion_model", narrow | alphas)))
    assert_same_layers(pipeline, reference)


@pytest.mark.parametrize("family", ["flux", "sdxl", "wan22-t2v"])
def test_loha_is_what_peft_makes_of_it(family: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    from peft import LoHaConfig, inject_adapter_in_model, set_peft_model_state_dict

    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    part = denoiser_of(reference)
    config = LoHaConfig(r=3, alpha=6, target_modules=["to_q", "to_out.0", "conv1"], init_weights=False)
    values, _ = adapter_of(reference, part, config)
    model = getattr(reference, part)
    inject_adapter_in_model(config, model, adapter_name="made")
    set_peft_model_state_dict(model, values, adapter_name="made")
    stems = {key.rpartition(".")[0] for key in values}
    kohya = {f"{flat(stem)}.{name}": values[f"{stem}.{name}"] for stem, name in (k.rsplit(".", 1) for k in values)}
    kohya |= {f"{flat(stem)}.alpha": torch.tensor(6.0) for stem in stems}
    apply(pipeline, write(tmp_path / "loha.safetensors", kohya))
    assert assert_same_layers(pipeline, reference) == len(stems)


@pytest.mark.parametrize("whole", [True, False])
def test_lokr_of_fused_projections_is_cut_between_them(whole: bool, tiny_pipeline: Callable, tmp_path: Path) -> None:
    """ai-toolkit's form for FLUX.2. diffusers fuses the layers of the model for it; here they stay separate."""
    pipeline, reference = tiny_pipeline("flux2-klein"), tiny_pipeline("flux2-klein")
    # 3 * 32 rows as 8 * 12: no border between query, key and value is one between blocks.
    shapes = {"lokr_w1": (8, 8)} | ({"lokr_w2": (12, 4)} if whole else {"lokr_w2_a": (12, 2), "lokr_w2_b": (2, 4)})
    values = random_values({name: torch.zeros(shape) for name, shape in shapes.items()})
    tensors = {f"diffusion_model.double_blocks.0.img_attn.qkv.{name}": value for name, value in values.items()}
    tensors["diffusion_model.double_blocks.0.img_attn.qkv.alpha"] = torch.tensor(6.0)
    path = write(tmp_path / "lokr.safetensors", tensors)
    reference.load_lora_weights(str(path), adapter_name="one")
    apply(pipeline, path)
    attention = "transformer_blocks.0.attn"
    fused_layer = reference.transformer.get_submodule(f"{attention}.to_qkv")
    hidden = input_for(pipeline.transformer.get_submodule(f"{attention}.to_q"))
    separate = [pipeline.transformer.get_submodule(f"{attention}.to_{n}")(hidden) for n in "qkv"]
    torch.testing.assert_close(torch.cat(separate, -1), fused_layer(hidden), rtol=1e-4, atol=1e-5)


def test_a_kernel_between_the_matrices(tiny_pipeline: Callable, tmp_path: Path) -> None:
    """LoCon in CP form for a 3x3 convolution: down 1x1, kernel 3x3, up 1x1, one after the other."""
    pipeline, plain = tiny_pipeline("sdxl"), tiny_pipeline("sdxl")
    name = "down_blocks.0.resnets.0.conv1"
    base = plain.unet.get_submodule(name)
    shapes = {"lora_down": (4, 16, 1, 1), "lora_mid": (4, 4, 3, 3), "lora_up": (16, 4, 1, 1)}
    parts = random_values({name: torch.zeros(shape) for name, shape in shapes.items()})
    path = write(tmp_path / "cp.safetensors", {f"{flat(name)}.{part}.weight": value for part, value in parts.items()})
    apply(pipeline, path, 0.5)
    hidden = input_for(base)
    middle = torch.conv2d(torch.conv2d(hidden, parts["lora_down"]), parts["lora_mid"], padding=1)
    expected = base(hidden) + 0.5 * torch.conv2d(middle, parts["lora_up"])
    torch.testing.assert_close(pipeline.unet.get_submodule(name)(hidden), expected, rtol=1e-4, atol=1e-5)


def test_differences_of_weights_biases_and_norms(tiny_pipeline: Callable, run: Callable, tmp_path: Path) -> None:
    """The form of lightx2v's files for Wan: pairs with differences of biases, norms and some whole layers."""
    pipeline, expected = tiny_pipeline("wan22-t2v"), tiny_pipeline("wan22-t2v")
    plain = run(pipeline)
    meant = {
        "blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",
        "blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
        "blocks.1.norm3.diff": "blocks.1.norm2.weight",
        "blocks.1.norm3.diff_b": "blocks.1.norm2.bias",
        "head.head.diff": "proj_out.weight",
        "head.head.diff_b": "proj_out.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    }
    own = dict(expected.transformer.named_parameters())
    differences = random_values({ours: own[theirs] for ours, theirs in meant.items()})
    pair = random_values(
        {f"blocks.0.self_attn.q{A}": torch.zeros(4, 24), f"blocks.0.self_attn.q{B}": torch.zeros(24, 4)}
    )
    zero = {"blocks.0.self_attn.norm_k.diff": torch.zeros_like(own["blocks.0.attn1.norm_k.weight"])}
    tables = {"blocks.0.diff_m": torch.ones(1, 6, 24)}
    file = write(tmp_path / "wan.safetensors", prefixed("diffusion_model", differences | pair | zero | tables))
    strength = 0.6
    for model in (expected.transformer, expected.transformer_2):
        own = dict(model.named_parameters())
        with torch.no_grad():
            for ours, theirs in meant.items():
                own[theirs] += strength * differences[ours]
            own["blocks.0.attn1.to_q.weight"] += strength * (
                pair[f"blocks.0.self_attn.q{B}"] @ pair[f"blocks.0.self_attn.q{A}"]
            )
    entry = loaded(pipeline)
    (record,) = set_loras(entry, (LoraSpec(str(file), strength),))
    torch.testing.assert_close(run(pipeline), run(expected), rtol=1e-3, atol=1e-4)
    assert "1 difference of modulation tables (diff_m) not applied" in record.reason
    assert "norm_k" not in record.reason
    (record,) = set_loras(entry, (LoraSpec(str(file), 0.1),))
    assert record.cost.startswith("exchanged in place")
    set_loras(entry, ())
    assert torch.equal(run(pipeline), plain)


def test_lone_halves_are_left_out_and_named(tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline, reference = tiny_pipeline("flux"), tiny_pipeline("flux")
    tensors = made(reference)
    reference.load_lora_weights(str(write(tmp_path / "whole.safetensors", prefixed("transformer", tensors))))
    lone = {f"transformer_blocks.0.ff.net.2{A}": torch.randn(4, 128), f"proj_out{B}": torch.randn(64, 4)}
    strange = {"logit_scale": torch.ones(1), "emb_params": torch.ones(2, 32)}
    record = apply(pipeline, write(tmp_path / "lone.safetensors", prefixed("transformer", tensors | lone) | strange))
    assert_same_layers(pipeline, reference)
    assert "2 layers incomplete and left out" in record.reason
    assert "transformer.proj_out (lacks the down matrix)" in record.reason
    assert "2 keys no part of a LoRA" in record.reason


def test_layers_that_the_model_lacks_are_counted(tiny_pipeline: Callable, tmp_path: Path) -> None:
    pipeline = tiny_pipeline("flux")
    tensors = made(tiny_pipeline("flux"))
    tensors |= {
        f"transformer_blocks.57.attn.to_q{end}": torch.randn(shape) for end, shape in ((A, (4, 32)), (B, (32, 4)))
    }
    record = apply(pipeline, write(tmp_path / "more.safetensors", FORMS["ComfyUI"](tensors)))
    assert "1 layer not in this model" in record.reason
    assert "transformer_blocks.57.attn.to_q" in record.reason
    assert any(isinstance(module, LoraLayer) for module in pipeline.transformer.modules())

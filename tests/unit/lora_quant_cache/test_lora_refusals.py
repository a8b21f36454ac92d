"""Files that are no LoRA, or none for this model, or damaged: one line that says what they are, and nothing changes."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import Tensors, adapter_of, denoiser_of, loaded, prefixed, write

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.lora import MAX_STRENGTH, active_loras, set_loras
from fastdiffusers.pipelines.types import LoraSpec

A, B = ".lora_A.weight", ".lora_B.weight"
LAYER = "transformer.transformer_blocks.0.attn.to_q"


def pair(name: str, into: int = 32, out: int = 32) -> Tensors:
    return {f"{name}{A}": torch.ones(4, into), f"{name}{B}": torch.ones(out, 4)}


def kohya(name: str, into: int, out: int) -> Tensors:
    return {f"{name}.lora_down.weight": torch.ones(4, into), f"{name}.lora_up.weight": torch.ones(out, 4)}


def message(pipeline: Any, path: Path) -> str:
    """The one line with which a file is refused; the pipeline is as before."""
    entry = loaded(pipeline)
    before = [type(module) for module in getattr(pipeline, denoiser_of(pipeline)).modules()]
    with pytest.raises(InputError) as caught:
        set_loras(entry, (LoraSpec(str(path)),))
    text = str(caught.value)
    assert text.startswith("lora = ")
    assert "\n" not in text
    assert active_loras(entry) == ()
    assert [type(module) for module in getattr(pipeline, denoiser_of(pipeline)).modules()] == before
    return text


NO_LORAS: dict[str, tuple[Tensors, str]] = {
    "textual inversion": ({"emb_params": torch.ones(2, 768)}, "a textual inversion"),
    "textual inversion for SDXL": (
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
        "a textual inversion",
    ),
    "VAE": (
        {"encoder.conv_in.weight": torch.ones(8, 3, 3, 3), "decoder.conv_in.weight": torch.ones(8, 4, 3, 3)},
        "a VAE",
    ),
    "ControlNet": ({"controlnet_cond_embedding.conv_in.weight": torch.ones(8, 3, 3, 3)}, "a ControlNet"),
    "checkpoint": ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.ones(4, 4)}, "a whole model"),
    "text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(4, 4)}, "a text encoder"),
    "anything": ({"logits": torch.ones(4)}, "1 key no part of a LoRA: logits"),
    "halves": ({f"{LAYER}{A}": torch.ones(4, 32)}, "1 layer incomplete and left out: .*to_q .lacks the up matrix"),
    "other halves": ({f"{LAYER}{B}": torch.ones(32, 4)}, "lacks the down matrix"),
    "alphas": ({f"{LAYER}.alpha": torch.tensor(1.0)}, "lacks both matrices"),
    "magnitudes": ({f"{LAYER}.lora_magnitude_vector": torch.ones(32)}, "lacks both matrices"),
    "factors": ({f"{LAYER}.lokr_w1": torch.ones(4, 4)}, "lacks a LoKr factor"),
    "zeros": ({f"{LAYER}.diff_b": torch.zeros(32)}, "all of it is zero"),
    "nothing": ({}, "it holds no tensors"),
}


@pytest.mark.parametrize("name", NO_LORAS)
@pytest.mark.parametrize("family", ["flux", "sdxl", "wan22-t2v"])
def test_what_is_no_lora_is_refused_by_name(family: str, name: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    tensors, words = NO_LORAS[name]
    text = message(tiny_pipeline(family), write(tmp_path / "file.safetensors", tensors))
    assert re.search(words, text), text


ELSEWHERE: dict[str, tuple[Tensors, str]] = {
    "FLUX.1 as ComfyUI has it": (pair("diffusion_model.double_blocks.0.img_attn.qkv", 3072, 9216), "FLUX.1"),
    "FLUX.1 as kohya has it": (kohya("lora_unet_single_blocks_0_linear1", 3072, 21504), "FLUX.1"),
    "FLUX.1": (pair("transformer.single_transformer_blocks.0.proj_mlp", 3072, 12288), "FLUX.1"),
    "FLUX.2": (pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072, 27648), "FLUX.2"),
    "Wan": (pair("diffusion_model.blocks.0.self_attn.q", 5120, 5120), "Wan"),
    "Wan as musubi has it": (kohya("lora_unet_blocks_0_cross_attn_k", 5120, 5120), "Wan"),
    "Wan as diffusers has it": (pair("transformer.blocks.0.attn1.to_q", 5120, 5120), "Wan"),
    "HunyuanVideo": (pair("diffusion_model.double_blocks.0.img_attn_qkv", 3072, 9216), "HunyuanVideo"),
    "Z-Image": (pair("diffusion_model.layers.0.attention.to_q", 3840, 3840), "Z-Image"),
    "Qwen-Image": (pair("transformer.transformer_blocks.0.img_mlp.net.2", 12288, 3072), "Qwen-Image"),
    "Qwen-Image, attention only": (pair("transformer.transformer_blocks.59.attn.to_q", 3072, 3072), "Qwen-Image"),
    "SD 3": (pair("transformer.transformer_blocks.0.attn.add_q_proj", 1536, 1536), "SD 3"),
    "SDXL": (kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, 640), "SDXL"),
    "SD 1.5": (kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 768, 640), "SD 1.5"),
}
OWN = {"flux": ("FLUX.1",), "sdxl": ("SDXL", "SD 1.5"), "wan22-t2v": ("Wan",), "zimage": ("Z-Image",)}


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("family", OWN)
def test_a_file_for_another_architecture_says_for_which(
    family: str, name: str, tiny_pipeline: Callable, tmp_path: Path
) -> None:
    tensors, architecture = ELSEWHERE[name]
    text = message(tiny_pipeline(family), write(tmp_path / "file.safetensors", tensors))
    if architecture == "SD 1.5" and family == "sdxl":
        assert "it is for SD 1.5;" in text
    elif architecture in OWN[family]:  # the tiny models are narrower than the real ones
        assert f"It is for {architecture}, but " in text
        assert "choose one for the size of this model" in text
        assert "trained for this model" not in text
    else:
        assert f"it is for {architecture}; " in text
        assert f"or load {architecture}" in text
    assert "AssertionError" not in text
    assert "infer state dict type" not in text


def test_a_file_that_fits_another_architecture_in_part_is_refused(tiny_pipeline: Callable, tmp_path: Path) -> None:
    """FLUX.1 and Qwen-Image name the layers of their double blocks alike, and have them in the same width."""
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    values, _ = adapter_of(tiny_pipeline("flux"), "transformer", config)
    path = write(tmp_path / "flux.safetensors", prefixed("transformer", values))
    assert "it is for FLUX.1; 6 of its 14 layers" in message(tiny_pipeline("qwenimage"), path)


KINDS: dict[str, tuple[Tensors, str]] = {
    "LyCORIS DoRA": (pair(LAYER) | {f"{LAYER}.dora_scale": torch.ones(32, 1)}, "DoRA in LyCORIS's form"),
    "OFT": ({f"{LAYER}.oft_blocks": torch.ones(2, 16, 16)}, "OFT"),
    "half a DoRA": (
        pair(LAYER) | {f"{LAYER}.lora_magnitude_vector": torch.ones(32)} | pair(LAYER.replace("to_q", "to_k")),
        "1 of its layers have no magnitude",
    ),
    "whole numbers": (pair(LAYER) | {f"{LAYER}{A}": torch.ones(4, 32, dtype=torch.int8)}, "whole numbers"),
    "scalars": ({f"{LAYER}{A}": torch.tensor(1.0), f"{LAYER}{B}": torch.tensor(1.0)}, "malformed"),
    "rank 0": ({f"{LAYER}{A}": torch.ones(0, 32), f"{LAYER}{B}": torch.ones(32, 0)}, "malformed"),
    "two ranks": ({f"{LAYER}{A}": torch.ones(4, 32), f"{LAYER}{B}": torch.ones(32, 8)}, "malformed"),
    "rank 5000": ({f"{LAYER}{A}": torch.ones(5000, 32), f"{LAYER}{B}": torch.ones(32, 5000)}, "rank 5000"),
    "alpha of three": (pair(LAYER) | {f"{LAYER}.alpha": torch.ones(3)}, "alpha"),
    "alpha nan": (pair(LAYER) | {f"{LAYER}.alpha": torch.tensor(float("nan"))}, "alpha"),
    "LoHa of high rank": (
        {
            f"{LAYER}.hada_{n}": torch.ones((32, 80) if n.endswith("a") else (80, 32))
            for n in ("w1_a", "w1_b", "w2_a", "w2_b")
        },
        "rank 6400",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_and_tensors_that_are_not_applied(name: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    tensors, words = KINDS[name]
    assert words in message(tiny_pipeline("flux"), write(tmp_path / "file.safetensors", tensors))


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "alpha_pattern": ["to_q"]},
        {"r": 4, "rank_pattern": "to_q"},
        {"r": "4", "lora_alpha": 4},
        {"r": 4, "lora_alpha": {"to_q": 4}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": "high"}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"(": 8}},
        {"r": 4, "lora_alpha": 4, "alpha_pattern": {"([a-z_.0-9]+)+!": 8}},
        {"r": 4, "lora_alpha": 4, "rank_pattern": {f"to_{n}": 4 for n in range(10_001)}},
        {"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"},
    ],
)
def test_a_configuration_that_cannot_be_followed(
    settings: dict[str, Any], tiny_pipeline: Callable, tmp_path: Path
) -> None:
    path = write(tmp_path / "file.safetensors", pair(LAYER), prefixed("transformer", settings))
    message(tiny_pipeline("flux"), path)


def raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS: dict[str, tuple[Any, bytes]] = {
    "deep": (b"[" * 100_000 + b"]" * 100_000, b""),
    "a list": ([1, 2], b""),
    "an entry that is a number": ({LAYER: 5}, b""),
    "offsets that are text": ({LAYER: {**ENTRY, "data_offsets": "ab"}}, b"1234"),
    "no offsets": ({LAYER: {**ENTRY, "data_offsets": []}}, b"1234"),
    "a negative size": ({LAYER: {**ENTRY, "shape": [-1]}}, b"1234"),
    "a size that is text": ({LAYER: {**ENTRY, "shape": "x"}}, b"1234"),
    "no type": ({LAYER: {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "an unknown type": ({LAYER: {**ENTRY, "dtype": "Q9"}}, b"1234"),
    "metadata that is a number": ({"__metadata__": {"a": 5}, LAYER: ENTRY}, b"1234"),
    "metadata that is damaged": ({"__metadata__": {"lora_adapter_metadata": "["}, LAYER: ENTRY}, b"1234"),
    "metadata that is deep": ({"__metadata__": {"lora_adapter_metadata": "[" * 100_000}, LAYER: ENTRY}, b"1234"),
    "metadata that is a list": ({"__metadata__": {"lora_adapter_metadata": "[1]"}, LAYER: ENTRY}, b"1234"),
    "17 MiB": (b" " * (17 * 2**20), b""),
    "100,001 entries": ({f"k{n}": {**ENTRY, "shape": [0], "data_offsets": [0, 0]} for n in range(100_001)}, b""),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_headers(name: str, tiny_pipeline: Callable, tmp_path: Path) -> None:
    message(tiny_pipeline("flux"), raw(tmp_path / "file.safetensors", *HEADERS[name]))


@pytest.mark.parametrize(
    "path", ["a\0b.safetensors", "x" * 5000 + ".safetensors", "\ud800.safetensors", "~nobody/a.safetensors"]
)
def test_paths_that_cannot_be(path: str, tiny_pipeline: Callable) -> None:
    message(tiny_pipeline("flux"), Path(path))


def test_what_is_no_file(tiny_pipeline: Callable, tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    assert "it is no file" in message(tiny_pipeline("flux"), tmp_path / "folder.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        assert "it is no file" in message(tiny_pipeline("flux"), tmp_path / "pipe.safetensors")


@pytest.mark.parametrize("strength", [1e308, -1e308, 100.5])
def test_a_strength_beyond_the_range(strength: float, tiny_pipeline: Callable, tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", pair(LAYER))
    entry = loaded(tiny_pipeline("flux"))
    with pytest.raises(InputError, match=f"strength = .*between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}"):
        set_loras(entry, (LoraSpec(str(path), strength),))
    assert active_loras(entry) == ()


def test_a_whole_model_is_refused_unread(
    tiny_pipeline: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors

    real = safetensors.safe_open

    class Unread:
        def __init__(self, *args: Any, **options: Any) -> None:
            self._file = real(*args, **options)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def metadata(self) -> Any:
            return self._file.metadata()

        def keys(self) -> Any:
            return self._file.keys()

        def get_tensor(self, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} was read")

    path = write(tmp_path / "model.safetensors", NO_LORAS["checkpoint"][0])
    monkeypatch.setattr(safetensors, "safe_open", Unread)
    assert "a whole model" in message(tiny_pipeline("flux"), path)


def test_a_control_lora_says_that_it_needs_a_control_picture(tiny_pipeline: Callable, tmp_path: Path) -> None:
    wide = {
        **pair("transformer.x_embedder", 128),
        "transformer.transformer_blocks.0.attn.norm_q.weight": torch.ones(16),
    }
    text = message(tiny_pipeline("flux"), write(tmp_path / "control.safetensors", wide))
    assert "a control LoRA" in text
    assert "FluxPipeline takes no control picture" in text


def test_a_file_with_nan_in_it_is_refused(tiny_pipeline: Callable, tmp_path: Path) -> None:
    tensors = pair(LAYER)
    tensors[f"{LAYER}{B}"][0, 0] = float("nan")
    text = message(tiny_pipeline("flux"), write(tmp_path / "nan.safetensors", tensors))
    assert f"1 of its 2 tensors hold NaN or infinity: {LAYER}{B}" in text

"""LoRA files that diffusers' own converters translate: the same layers as diffusers makes of the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_kit import Tensors, apply, assert_same_layers, flat, random_pair, random_values, write


def kohya_pair(name: str, into: int, out: int) -> Tensors:
    pair = random_pair(f"lora_unet_{name}", into, out, ".lora_down.weight", ".lora_up.weight")
    return pair | {f"lora_unet_{name}.alpha": torch.tensor(2.0)}


def wan_file(blocks: int, width: int, hidden: int, flat_names: bool) -> Tensors:
    """All layers of Wan's blocks, which is what diffusers' converters for it expect."""
    sizes = {f"{at}.{name}": (width, width) for at in ("self_attn", "cross_attn") for name in "qkvo"}
    sizes |= {"ffn.0": (width, hidden), "ffn.2": (hidden, width)}
    tensors: Tensors = {}
    for block in range(blocks):
        for name, size in sizes.items():
            stem = f"blocks.{block}.{name}"
            pair = kohya_pair(stem.replace(".", "_"), *size)
            if not flat_names:
                pair = {key.replace(flat(stem), f"diffusion_model.{stem}"): value for key, value in pair.items()}
            tensors |= pair
    return tensors


UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
XLABS = {
    f"double_blocks.0.processor.{name}.{half}.weight": torch.zeros(shape)
    for name, out in (("qkv_lora1", 96), ("qkv_lora2", 96), ("proj_lora1", 32), ("proj_lora2", 32))
    for half, shape in (("down", (4, 32)), ("up", (out, 4)))
}
TRANSLATED: dict[str, tuple[str, Tensors, int]] = {
    "kohya, convolution": (
        "sdxl",
        random_values(
            {
                "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.zeros(4, 16, 3, 3),
                "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.zeros(16, 4, 1, 1),
            }
        ),
        1,
    ),
    "Stability's block numbers": ("sdxl", kohya_pair("input_blocks_3_1_transformer_blocks_0_attn1_to_q", 32, 32), 1),
    "attention processors": (
        "sdxl",
        random_pair(f"unet.{UNET}.processor.to_q", 32, 32, "_lora.down.weight", "_lora.up.weight"),
        1,
    ),
    "FLUX.1 by kohya": (
        "flux",
        kohya_pair("double_blocks_0_img_attn_qkv", 32, 96) | kohya_pair("double_blocks_1_txt_mlp_0", 32, 128),
        4,
    ),
    "FLUX.1 by XLabs": ("flux", random_values(XLABS), 8),
    "FLUX.1 with fewer channels": ("flux", random_pair("transformer.x_embedder", 48, 32), 1),
    "FLUX.1, alphas for some": (
        "flux",
        random_pair("transformer.x_embedder", 64, 32)
        | random_pair("transformer.transformer_blocks.0.attn.to_q", 32, 32)
        | {"transformer.x_embedder.alpha": torch.tensor(8.0)},
        2,
    ),
    "FLUX.2 by kohya": ("flux2-klein", kohya_pair("double_blocks_0_img_attn_qkv", 32, 96), 3),
    "Qwen-Image by kohya": (
        "qwenimage",
        kohya_pair("transformer_blocks_0_attn_to_q", 32, 32) | kohya_pair("transformer_blocks_0_img_mod_1", 32, 192),
        2,
    ),
    "Z-Image by kohya": (
        "zimage",
        kohya_pair("layers_0_attention_qkv", 32, 96) | kohya_pair("layers_0_attention_out", 32, 32),
        4,
    ),
    "Wan by musubi": ("wan22-t2v", wan_file(2, 24, 64, flat_names=True), 20),
    "Wan with alphas": ("wan22-t2v", wan_file(2, 24, 64, flat_names=False), 20),
}


@pytest.mark.parametrize("name", TRANSLATED)
def test_what_diffusers_translates_gives_what_diffusers_gives(
    name: str, tiny_pipeline: Callable, tmp_path: Path
) -> None:
    family, tensors, layers = TRANSLATED[name]
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    path = write(tmp_path / "file.safetensors", tensors)
    reference.load_lora_weights(str(path), adapter_name="one")
    record = apply(pipeline, path)
    assert assert_same_layers(pipeline, reference) == layers
    assert record.reason == ""

"""FLUX.1's components as the files that ComfyUI takes, written by a renaming of the tests' own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

FP8 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]
NAMES = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
}
NORMS = {"norm_q": "img_attn.norm.query_norm", "norm_k": "img_attn.norm.key_norm"}
NORMS |= {"norm_added_q": "txt_attn.norm.query_norm", "norm_added_k": "txt_attn.norm.key_norm"}


def original_transformer(state: Tensors) -> Tensors:
    """FLUX.1's own names and fused layers."""
    out: Tensors = {}
    for kind in ("weight", "bias"):
        out |= {f"{new}.{kind}": state[f"{old}.{kind}"] for old, new in NAMES.items() if f"{old}.{kind}" in state}
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        for i in range(2):
            block = f"transformer_blocks.{i}."
            out |= {f"double_blocks.{i}.{new}.{kind}": state[f"{block}{old}.{kind}"] for old, new in DOUBLE.items()}
            for side, names in (("img", "to_q to_k to_v"), ("txt", "add_q_proj add_k_proj add_v_proj")):
                pieces = [state[f"{block}attn.{name}.{kind}"] for name in names.split()]
                out[f"double_blocks.{i}.{side}_attn.qkv.{kind}"] = torch.cat(pieces)
            block, own = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
            pieces = [state[f"{block}{name}.{kind}"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
            out[f"{own}linear1.{kind}"] = torch.cat(pieces)
            out[f"{own}linear2.{kind}"] = state[f"{block}proj_out.{kind}"]
            out[f"{own}modulation.lin.{kind}"] = state[f"{block}norm.linear.{kind}"]
    for i in range(2):
        for old, new in NORMS.items():
            out[f"double_blocks.{i}.{new}.scale"] = state[f"transformer_blocks.{i}.attn.{old}.weight"]
        for old, new in (("norm_q", "query_norm"), ("norm_k", "key_norm")):
            out[f"single_blocks.{i}.norm.{new}.scale"] = state[f"single_transformer_blocks.{i}.attn.{old}.weight"]
    return out


def original_vae(state: Tensors) -> Tensors:
    """The names of latent diffusion's code, whose decoder counts its blocks from the other end."""
    out: Tensors = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[1] in ("down_blocks", "up_blocks"):
            level = int(parts[2]) if parts[1] == "down_blocks" else 3 - int(parts[2])
            middle = (
                f"block.{parts[4]}" if parts[3] == "resnets" else parts[3].removesuffix("rs").removesuffix("e") + "e"
            )
            way = parts[1].split("_")[0]
            rest = parts[5:] if parts[3] == "resnets" else ["conv", parts[-1]]
            middle = middle if parts[3] == "resnets" else f"{way}sample"
            new = ".".join([parts[0], way, str(level), middle, *rest]).replace("conv_shortcut", "nin_shortcut")
        elif "mid_block.resnets" in name:
            new = name.replace(f"mid_block.resnets.{parts[3]}", f"mid.block_{int(parts[3]) + 1}")
        elif "mid_block.attentions" in name:
            new = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            for old, short in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                new = new.replace(f".{old}.", f".{short}.")
            if value.ndim == 2:
                value = value[:, :, None, None]
        else:
            new = name.replace("conv_norm_out", "norm_out")
        out[new] = value
    return out


def scaled(tensors: Tensors, unscaled: tuple[str, ...] = ()) -> tuple[Tensors, Tensors]:
    """Linear weights as scaled fp8 with its marker, and what they stand for. Names that end in `unscaled` stay."""
    stored: Tensors = {"scaled_fp8": torch.zeros(0, dtype=FP8)}
    meant: Tensors = {}
    for name, value in tensors.items():
        if value.ndim == 2 and name.endswith(".weight") and not name.endswith(unscaled or ("\0",)):
            scale = value.float().abs().max() / 448
            stored[name] = (value.float() / scale).to(FP8)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
            meant[name] = stored[name].float() * scale
        else:
            stored[name] = meant[name] = value
    return stored, meant


def make_files(
    folder: Path, place: Path, precision: str = "float32", encoder_precision: str = "float32"
) -> tuple[dict[str, Path], Path]:
    """The parts in one precision, and a diffusers folder of the same weights.

    The configurations and tokenizers of `folder` lie beside the diffusion model, as no size of it is published.
    `encoder_precision` is that of the T5.
    """
    twin = place / "twin"
    shutil.copytree(folder, twin)
    pipeline: Any = FluxPipeline.from_pretrained(folder)
    stored, meant = in_precision(original_transformer(pipeline.transformer.state_dict()), precision)
    # The twin's weights come out of the test's own renaming of what was stored: position by position, not by name.
    positions = {
        key: torch.arange(value.numel()).view(value.shape) for key, value in pipeline.transformer.state_dict().items()
    }
    start = 0
    for key in positions:
        positions[key] = positions[key] + start
        start += positions[key].numel()
    flat = torch.empty(start)
    for key, where in original_transformer(positions).items():
        flat[where.flatten()] = meant[key].float().flatten()
    pipeline.transformer.load_state_dict({key: flat[where] for key, where in positions.items()})
    pipeline.transformer.save_pretrained(twin / "transformer")
    files = {name: place / f"{name}.safetensors" for name in ("model", "clip_l", "t5xxl", "ae")}
    save_file({f"model.diffusion_model.{key}": value.contiguous() for key, value in stored.items()}, files["model"])
    clip = {
        "text_model." + key.removeprefix("text_model."): value
        for key, value in pipeline.text_encoder.state_dict().items()
    }
    save_file({**clip, "text_projection.weight": torch.eye(32), "logit_scale": torch.ones(())}, files["clip_l"])
    t5 = {key: value for key, value in pipeline.text_encoder_2.state_dict().items() if "embed_tokens" not in key}
    stored, meant = in_precision(t5, encoder_precision, unscaled=("shared.weight", "relative_attention_bias.weight"))
    save_file(stored, files["t5xxl"])
    pipeline.text_encoder_2.load_state_dict({**meant, "encoder.embed_tokens.weight": meant["shared.weight"]})
    pipeline.text_encoder_2.save_pretrained(twin / "text_encoder_2")
    save_file({key: value.contiguous() for key, value in original_vae(pipeline.vae.state_dict()).items()}, files["ae"])
    for pattern in ("*/*.json", "*/*.txt", "*/*.model"):
        for file in folder.glob(pattern):
            (place / "model" / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place / "model" / file.parent.name / file.name)
    return files, twin


def in_precision(tensors: Tensors, precision: str, unscaled: tuple[str, ...] = ()) -> tuple[Tensors, Tensors]:
    """Tensors as a file of that precision holds them, and what they stand for in float32."""
    if precision == "scaled fp8":
        return scaled(tensors, unscaled)
    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8": FP8, "fp8 e5m2": torch.float8_e5m2}
    stored = {key: value.to(kinds.get(precision, torch.float32)) for key, value in tensors.items()}
    return stored, {key: value.float() for key, value in stored.items()}

"""SDXL, SD 3, Chroma, Krea 2 and CLIP as the files that ComfyUI takes, written by renamings of the tests' own."""

from __future__ import annotations

import re

import torch
from original_layout import DOUBLE, NAMES, NORMS, Tensors

SD3 = (
    ("time_text_embed.timestep_embedder.linear_1.", "t_embedder.mlp.0."),
    ("time_text_embed.timestep_embedder.linear_2.", "t_embedder.mlp.2."),
    ("time_text_embed.text_embedder.linear_1.", "y_embedder.mlp.0."),
    ("time_text_embed.text_embedder.linear_2.", "y_embedder.mlp.2."),
    ("pos_embed.proj.", "x_embedder.proj."),
    ("pos_embed.pos_embed", "pos_embed"),
    ("norm_out.linear.", "final_layer.adaLN_modulation.1."),
)
SD3_BLOCK = (
    ("norm1.linear.", "x_block.adaLN_modulation.1."),
    ("norm1_context.linear.", "context_block.adaLN_modulation.1."),
    ("ff.net.0.proj.", "x_block.mlp.fc1."),
    ("ff.net.2.", "x_block.mlp.fc2."),
    ("ff_context.net.0.proj.", "context_block.mlp.fc1."),
    ("ff_context.net.2.", "context_block.mlp.fc2."),
    ("attn.to_add_out.", "context_block.attn.proj."),
    ("attn.add_q_proj.", "context_block.attn.qkv."),
    ("attn.norm_added_", "context_block.attn.ln_"),
    ("attn.norm_", "x_block.attn.ln_"),
    ("attn2.norm_", "x_block.attn2.ln_"),
    ("attn.to_out.0.", "x_block.attn.proj."),
    ("attn2.to_out.0.", "x_block.attn2.proj."),
    ("attn.to_q.", "x_block.attn.qkv."),
    ("attn2.to_q.", "x_block.attn2.qkv."),
)
RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
)
UNET = (
    ("conv_in.", "input_blocks.0.0."),
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
)


def original_sd3(state: Tensors) -> Tensors:
    """SD 3's own names, with one layer for queries, keys and values; its last layers shift before they scale."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    out: Tensors = {}
    for name, value in state.items():
        if re.search(r"\.(to_k|to_v|add_k_proj|add_v_proj)\.", name):
            continue
        if ".to_q." in name or ".add_q_proj." in name:
            sides = [name.replace(".to_q.", f".to_{s}.").replace("add_q_", f"add_{s}_") for s in "qkv"]
            value = torch.cat([state[side] for side in sides])
        if name.startswith(("norm_out.linear.", f"transformer_blocks.{last}.norm1_context.linear.")):
            value = torch.cat(value.chunk(2)[::-1])
        block = re.match(r"transformer_blocks\.(\d+)\.", name)
        if block:
            rest = name[block.end() :]
            new = next(fresh + rest.removeprefix(old) for old, fresh in SD3_BLOCK if rest.startswith(old))
            out[f"joint_blocks.{block[1]}.{new}"] = value
            continue
        new = name.replace("proj_out.", "final_layer.linear.") if name.startswith("proj_out.") else name
        for old, fresh in SD3:
            new = fresh + name.removeprefix(old) if name.startswith(old) else new
        out[new] = value
    return out


def original_unet(state: Tensors) -> Tensors:
    """Latent diffusion's names of the tiny SDXL's U-Net: one layer a level."""
    return {_of_unet(name): value for name, value in state.items()}


def _of_unet(name: str) -> str:
    for old, new in UNET:
        if name.startswith(old):
            return new + name.removeprefix(old)
    layers = 1
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        number = 2 * int(found[2]) if found[1] == "resnets" else 1
        return f"middle_block.{number}.{_layer(found[1], found[3])}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    assert found
    way, level, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if way == "down":
        first = 1 + level * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + number}.{int(kind == 'attentions')}.{_layer(kind, rest)}"
    first = level * (layers + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.2.{rest}"
    return f"output_blocks.{first + number}.{int(kind == 'attentions')}.{_layer(kind, rest)}"


def _layer(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    return next(new + rest.removeprefix(old) for old, new in RESNET if rest.startswith(old))


def original_chroma(state: Tensors) -> Tensors:
    """The names of FLUX.1's code, without its modulations, and of the network that makes them."""
    out: Tensors = {}
    for name, value in state.items():
        parts = name.split(".")
        if name.startswith("distilled_guidance_layer."):
            new = name.replace(".linear_1.", ".in_layer.").replace(".linear_2.", ".out_layer.")
            out[new.replace("weight", "scale") if parts[1] == "norms" else new] = value
        elif ".to_k." in name or ".to_v." in name or ".add_k_" in name or ".add_v_" in name or "proj_mlp" in name:
            continue
        elif parts[0] == "transformer_blocks":
            layer, kind = ".".join(parts[2:-1]), parts[-1]
            own, block = f"double_blocks.{parts[1]}.", f"transformer_blocks.{parts[1]}.attn."
            if layer in ("attn.to_q", "attn.add_q_proj"):
                text = "add" in layer
                sides = [f"{block}add_{s}_proj.{kind}" if text else f"{block}to_{s}.{kind}" for s in "qkv"]
                out[f"{own}{'txt' if text else 'img'}_attn.qkv.{kind}"] = torch.cat([state[side] for side in sides])
            elif layer.removeprefix("attn.") in NORMS:
                out[f"{own}{NORMS[layer.removeprefix('attn.')]}.scale"] = value
            else:
                out[f"{own}{DOUBLE[layer]}.{kind}"] = value
        elif parts[0] == "single_transformer_blocks":
            own, kind, block = f"single_blocks.{parts[1]}.", parts[-1], f"single_transformer_blocks.{parts[1]}."
            if parts[3] == "to_q":
                sides = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                out[f"{own}linear1.{kind}"] = torch.cat([state[f"{block}{side}.{kind}"] for side in sides])
            elif parts[2] == "proj_out":
                out[f"{own}linear2.{kind}"] = value
            else:
                out[f"{own}norm.{'query' if parts[3] == 'norm_q' else 'key'}_norm.scale"] = value
        else:
            out[f"{NAMES[parts[0]]}.{parts[-1]}"] = value
    return out


def original_clip(state: Tensors) -> Tensors:
    """A text encoder of CLIP, without its projection."""
    named = {name: "text_model." + name.removeprefix("text_model.") for name in state}
    return {named[name]: value for name, value in state.items() if name != "text_projection.weight"}


def original_clip_g(state: Tensors) -> Tensors:
    return original_clip(state) | {"text_projection.weight": state["text_projection.weight"]}


def original_clip_vision(state: Tensors) -> Tensors:
    return {"vision_model." + name.removeprefix("vision_model."): value for name, value in state.items()}


KREA2 = (
    ("img_in.", "first."),
    ("time_embed.linear_1.", "tmlp.0."),
    ("time_embed.linear_2.", "tmlp.2."),
    ("time_mod_proj.", "tproj.1."),
    ("txt_in.norm.weight", "txtmlp.0.scale"),
    ("txt_in.linear_1.", "txtmlp.1."),
    ("txt_in.linear_2.", "txtmlp.3."),
    ("text_fusion.", "txtfusion."),
    ("transformer_blocks.", "blocks."),
    ("final_layer.norm.weight", "last.norm.scale"),
    ("final_layer.scale_shift_table", "last.modulation.lin"),
    ("final_layer.", "last."),
    (".attn.to_q.", ".attn.wq."),
    (".attn.to_k.", ".attn.wk."),
    (".attn.to_v.", ".attn.wv."),
    (".attn.to_out.0.", ".attn.wo."),
    (".attn.to_gate.", ".attn.gate."),
    (".attn.norm_q.weight", ".attn.qknorm.qnorm.scale"),
    (".attn.norm_k.weight", ".attn.qknorm.knorm.scale"),
    (".ff.", ".mlp."),
    (".norm1.weight", ".prenorm.scale"),
    (".norm2.weight", ".postnorm.scale"),
    (".scale_shift_table", ".mod.lin"),
)


def original_krea2(state: Tensors) -> Tensors:
    """Krea 2's own names; the six modulations of a block are one row there."""
    out: Tensors = {}
    for name, value in state.items():
        new = name
        for old, short in KREA2:
            new = new.replace(old, short)
        out[new] = value.flatten() if new.endswith(".mod.lin") else value
    return out


def original_qwen3_vl(state: Tensors) -> Tensors:
    return {f"model.{name}": value for name, value in state.items()}

"""Other families than FLUX.1 as the files that ComfyUI takes, written by renamings of the tests' own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from further_parts import BUILDERS
from original_layout import FP8, Tensors, in_precision, original_transformer, original_vae
from original_sd import (
    original_chroma,
    original_clip,
    original_clip_g,
    original_clip_vision,
    original_krea2,
    original_qwen3_vl,
    original_sd3,
    original_unet,
)
from safetensors.torch import save_file

from fastdiffusers.pipelines import tiny

Renaming = Callable[[Tensors], Tensors]
WAN = (
    ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
    ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
    (".add_k_proj.", ".k_img."),
    (".add_v_proj.", ".v_img."),
    (".norm_added_k.", ".norm_k_img."),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".norm2.", ".norm3."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".scale_shift_table", ".modulation"),
)
FLUX2 = (
    ("single_transformer_blocks.", "single_blocks."),
    ("transformer_blocks.", "double_blocks."),
    (".attn.to_qkv_mlp_proj.", ".linear1."),
    (".attn.to_out.0.", ".img_attn.proj."),
    (".attn.to_out.", ".linear2."),
    (".attn.to_add_out.", ".txt_attn.proj."),
    (".attn.to_q.", ".img_attn.qkv."),
    (".attn.add_q_proj.", ".txt_attn.qkv."),
    (".attn.norm_added_q.", ".txt_attn.norm.query_norm."),
    (".attn.norm_added_k.", ".txt_attn.norm.key_norm."),
    (".ff_context.linear_in.", ".txt_mlp.0."),
    (".ff_context.linear_out.", ".txt_mlp.2."),
    (".ff.linear_in.", ".img_mlp.0."),
    (".ff.linear_out.", ".img_mlp.2."),
    ("context_embedder.", "txt_in."),
    ("x_embedder.", "img_in."),
    ("time_guidance_embed.timestep_embedder.linear_1.", "time_in.in_layer."),
    ("time_guidance_embed.timestep_embedder.linear_2.", "time_in.out_layer."),
    ("_modulation_img.linear.", "_modulation_img.lin."),
    ("_modulation_txt.linear.", "_modulation_txt.lin."),
    ("_stream_modulation.linear.", "_stream_modulation.lin."),
    ("norm_out.linear.", "final_layer.adaLN_modulation.1."),
    ("proj_out.", "final_layer.linear."),
)
FLUX2_NORMS = {
    "double_blocks": ("img_attn.norm.query_norm", "img_attn.norm.key_norm"),
    "single_blocks": ("norm.query_norm", "norm.key_norm"),
}
"""What a block calls its norms of queries and keys."""
WAN_VAE = (
    ("mid_block.resnets.0.", "middle.0."),
    ("mid_block.attentions.0.", "middle.1."),
    ("mid_block.resnets.1.", "middle.2."),
    (".norm1.gamma", ".residual.0.gamma"),
    (".conv1.", ".residual.2."),
    (".norm2.gamma", ".residual.3.gamma"),
    (".conv2.", ".residual.6."),
    (".conv_shortcut.", ".shortcut."),
    (".norm_out.gamma", ".head.0.gamma"),
    (".conv_out.", ".head.2."),
    (".conv_in.", ".conv1."),
    ("encoder.down_blocks.", "encoder.downsamples."),
)


def original_zimage(state: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in state.items():
        if ".to_k." in name or ".to_v." in name:
            continue
        if ".to_q." in name:
            value = torch.cat([state[name.replace("to_q", side)] for side in ("to_q", "to_k", "to_v")])
        new = name.replace(".to_q.", ".qkv.").replace(".to_out.0.", ".out.")
        new = new.replace("attention.norm_q", "attention.q_norm").replace("attention.norm_k", "attention.k_norm")
        out[new.replace("all_final_layer.2-1.", "final_layer.").replace("all_x_embedder.2-1.", "x_embedder.")] = value
    return out


def original_flux2(state: Tensors) -> Tensors:
    """FLUX.2's own names and fused layers."""
    out: Tensors = {}
    for name, value in state.items():
        if any(side in name for side in (".to_k.", ".to_v.", ".add_k_proj.", ".add_v_proj.")):
            continue
        if ".to_q." in name or ".add_q_proj." in name:
            value = torch.cat([state[name.replace("q_", f"{s}_").replace("to_q", f"to_{s}")] for s in "qkv"])
        if name == "norm_out.linear.weight":
            value = torch.cat(value.chunk(2)[::-1])
        new = name
        for old, short in FLUX2:
            new = new.replace(old, short)
        for side, norm in zip("qk", FLUX2_NORMS.get(new.split(".")[0], ()), strict=False):
            new = new.replace(f"attn.norm_{side}.", norm + ".")
        if new.endswith(("query_norm.weight", "key_norm.weight")):
            new = new.removesuffix("weight") + "scale"
        out[new] = value
    return out


def original_flux2_vae(state: Tensors) -> Tensors:
    moved = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    return {
        moved.get(name.split(".")[0], name.split(".")[0]) + "." + name.split(".", 1)[1]: value
        for name, value in original_vae(state).items()
    }


def original_wan(state: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in state.items():
        top = {"scale_shift_table": "head.modulation", "proj_out.weight": "head.head.weight"}
        new = top.get(name, name.replace("proj_out.bias", "head.head.bias"))
        for old, short in WAN:
            new = new.replace(old, short)
        out[new] = value
    return out


def original_wan_vae(state: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in state.items():
        if name.startswith(("quant_conv.", "post_quant_conv.")):
            new = ("conv1." if name.startswith("quant") else "conv2.") + name.rsplit(".", 1)[1]
        else:
            new = name
            for old, short in WAN_VAE:
                new = new.replace(old, short)
            # The decoder counts its blocks through: three residual blocks and an upsampler for each level.
            new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda at: f"upsamples.{4 * int(at[1]) + int(at[2])}", new)
            new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda at: f"upsamples.{4 * int(at[1]) + 3}", new)
        out[new] = value
    return out


def original_wan22_vae(state: Tensors) -> Tensors:
    """As Wan 2.1's, with the blocks of a level, three residual ones and what resamples, in a list of their own."""
    out: Tensors = {}
    for name, value in state.items():
        new = name
        for old, short in WAN_VAE[:-1]:
            new = new.replace(old, short)
        layers = {"down": 2, "up": 3}
        for way, count in layers.items():
            new = new.replace(f".{way}sampler.", f".{way}samples.{count}.")
            new = re.sub(rf"{way}_blocks\.(\d)\.resnets\.", rf"{way}samples.\1.{way}samples.", new)
            new = re.sub(rf"{way}_blocks\.(\d)\.", rf"{way}samples.\1.", new)
        out[
            {"quant_conv": "conv1", "post_quant_conv": "conv2"}.get(new.split(".")[0], new.split(".")[0])
            + "."
            + new.split(".", 1)[1]
        ] = value
    return out


def original_qwen25_vl(state: Tensors) -> Tensors:
    names = {
        name: name.replace("model.visual.", "visual.").replace("model.language_model.", "model.") for name in state
    }
    return {names[name]: value for name, value in state.items()}


def original_t5(state: Tensors) -> Tensors:
    return {name: value for name, value in state.items() if name != "encoder.embed_tokens.weight"}


def whole_t5(meant: Tensors) -> Tensors:
    return {**meant, "encoder.embed_tokens.weight": meant["shared.weight"]}


FAMILIES: dict[str, dict[str, tuple[str, Renaming]]] = {
    "zimage": {
        "model": ("transformer", original_zimage),
        "text": ("text_encoder", lambda state: {f"model.{name}": value for name, value in state.items()}),
        "vae": ("vae", original_vae),
    },
    "qwenimage": {
        "model": ("transformer", dict),
        "text": ("text_encoder", original_qwen25_vl),
        "vae": ("vae", original_wan_vae),
    },
    "flux2-klein": {
        "model": ("transformer", original_flux2),
        "text": ("text_encoder", dict),
        "vae": ("vae", original_flux2_vae),
    },
    "wan22-t2v": {
        "model_high_noise": ("transformer", original_wan),
        "model_low_noise": ("transformer_2", original_wan),
        "text": ("text_encoder", original_t5),
        "vae": ("vae", original_wan_vae),
    },
}
FAMILIES |= {
    "flux-fill": {
        "model": ("transformer", original_transformer),
        "text": ("text_encoder", original_clip),
        "text_2": ("text_encoder_2", original_t5),
        "vae": ("vae", original_vae),
    },
    "krea2": {
        "model": ("transformer", original_krea2),
        "text": ("text_encoder", original_qwen3_vl),
        "vae": ("vae", original_wan_vae),
    },
    "chroma": {
        "model": ("transformer", original_chroma),
        "text": ("text_encoder", original_t5),
        "vae": ("vae", original_vae),
    },
    "sdxl": {
        "model": ("unet", original_unet),
        "text": ("text_encoder", original_clip),
        "text_2": ("text_encoder_2", original_clip_g),
        "vae": ("vae", original_vae),
    },
    "sd3": {
        "model": ("transformer", original_sd3),
        "text": ("text_encoder", original_clip),
        "text_2": ("text_encoder_2", original_clip_g),
        "text_3": ("text_encoder_3", original_t5),
        "vae": ("vae", original_vae),
    },
    "wan21-i2v": {
        "model": ("transformer", original_wan),
        "text": ("text_encoder", original_t5),
        "text_of_pictures": ("image_encoder", original_clip_vision),
        "vae": ("vae", original_wan_vae),
    },
    "wan22-5b": {
        "model": ("transformer", original_wan),
        "text": ("text_encoder", original_t5),
        "vae": ("vae", original_wan22_vae),
    },
}
FAMILIES["qwenimage-edit"] = FAMILIES["qwenimage"]
FAMILIES["wan22-i2v"] = FAMILIES["wan22-t2v"]
FAMILIES["flux"] = FAMILIES["flux-kontext"] = FAMILIES["flux-fill"]
MODEL_NAMES = {"qwenimage-edit": "model_edit", "flux2-klein": "model_base", "flux-kontext": "model_kontext"}


def build(family: str) -> Any:
    """The tiny pipeline, with a video VAE of as many blocks as every published one has."""
    import diffusers

    if family in BUILDERS:
        return BUILDERS[family]()
    pipeline = tiny.build(family)
    if family.startswith(("wan", "qwen")):
        torch.manual_seed(3)
        kind = "AutoencoderKLWan" if family.startswith("wan") else "AutoencoderKLQwenImage"
        pipeline.register_modules(vae=getattr(diffusers, kind)(base_dim=8, num_res_blocks=2).eval())
    return pipeline


def write(
    family: str, pipeline: Any, place: Path, precision: str = "float32", encoder: str = "float32"
) -> tuple[dict[str, Path], Path]:
    """The parts of a pipeline in one precision each, and a diffusers folder of the weights that they stand for.

    Configurations and tokenizers lie beside the diffusion model, as no size of it is published.
    """
    twin, files = place / "twin", {}
    for name, (component, original) in FAMILIES[family].items():
        model = getattr(pipeline, component)
        kind = {"text": encoder, "vae": "float32"}.get(name.split("_")[0], precision)
        unscaled = ("shared.weight", "relative_attention_bias.weight", "embed_tokens.weight", "lm_head.weight")
        unscaled += ("_embedding.weight",)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        stored, meant = stored_as(original(before), kind, unscaled)
        model.load_state_dict(restored(before, original, meant))
        file = name.replace("model", MODEL_NAMES.get(family, "model"))
        files[name] = place / f"{file}.safetensors"
        prefix = "model.diffusion_model." if name.startswith("model") and family == "zimage" else ""
        save_file({prefix + key: value.contiguous() for key, value in stored.items()}, files[name])
    pipeline.save_pretrained(twin)
    beside = files[next(iter(files))].with_suffix("")
    for file in twin.glob("*/*"):
        if file.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in file.name:
            (beside / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, beside / file.parent.name / file.name)
    return files, twin


def restored(before: Tensors, original: Renaming, meant: Tensors) -> Tensors:
    """The tensors of a model from those of its file, by the renaming of each position, not by name."""
    positions, start = {}, 0
    for key, value in before.items():
        positions[key] = torch.arange(start, start + value.numel()).view(value.shape)
        start += value.numel()
    flat = torch.cat([value.float().flatten() for value in before.values()])
    for key, where in original(positions).items():
        flat[where.flatten()] = meant[key].float().flatten()
    found = {key: flat[where] for key, where in positions.items()}
    return whole_t5(found) if "shared.weight" in found else found


def stored_as(tensors: Tensors, precision: str, unscaled: tuple[str, ...]) -> tuple[Tensors, Tensors]:
    """As `in_precision`, ComfyUI's newer form of scaled fp8, and the layouts of comfy-kitchen."""
    if precision in LAYOUTS:
        return in_layout(tensors, precision, unscaled)
    if precision != "comfy_quant":
        return in_precision(tensors, precision, unscaled)
    stored, meant = in_precision(tensors, "scaled fp8", unscaled)
    del stored["scaled_fp8"]
    said = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    out: Tensors = {}
    for key, value in stored.items():
        if key.endswith(".scale_weight"):
            layer = key.removesuffix(".scale_weight")
            out |= {f"{layer}.weight_scale": value, f"{layer}.comfy_quant": said.clone()}
        else:
            out[key] = value
    assert any(value.dtype == FP8 for value in out.values())
    return out, meant


LAYOUTS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "nvfp4": ("nvfp4", "TensorCoreNVFP4Layout", {}, 0.2),
    "mxfp8": ("mxfp8", "TensorCoreMXFP8Layout", {}, 0.05),
    "int8": ("int8_tensorwise", "TensorWiseINT8Layout", {}, 0.02),
    "int8 rows": ("int8_tensorwise", "TensorWiseINT8Layout", {"per_channel": True}, 0.02),
    "int8 rotated": (
        "int8_tensorwise",
        "TensorWiseINT8Layout",
        {"per_channel": True, "convrot": True, "convrot_groupsize": 16},
        0.02,
    ),
}
"""Precision -> ComfyUI's name of the format, class in comfy-kitchen, how it quantizes, and largest relative error."""


def in_layout(tensors: Tensors, precision: str, unscaled: tuple[str, ...]) -> tuple[Tensors, Tensors]:
    """Linear weights of whole blocks as comfy-kitchen quantizes them, and what they stand for."""
    import comfy_kitchen.tensor

    kind, class_name, options, error = LAYOUTS[precision]
    layout = getattr(comfy_kitchen.tensor, class_name)
    rotation = {key: value for key, value in options.items() if "convrot" in key}
    said = torch.tensor(list(json.dumps({"format": kind, **rotation}).encode()), dtype=torch.uint8)
    stored, meant = {}, {}
    for key, value in tensors.items():
        blocks = value.ndim == 2 and not any(size % 32 for size in value.shape)
        if not blocks or not key.endswith(".weight") or key.endswith(unscaled):
            stored[key] = meant[key] = value
            continue
        data, params = layout.quantize(value.float().contiguous(), **options)
        stored |= {key + end: held.clone() for end, held in layout.state_dict_tensors(data, params).items()}
        stored[key.removesuffix("weight") + "comfy_quant"] = said.clone()
        meant[key] = layout.dequantize(data, params).float()
        assert (meant[key] - value).norm() <= error * value.norm(), key
    assert len(stored) > len(meant)
    return stored, meant

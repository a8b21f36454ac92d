"""Tiny models that diffusers has as Modular Diffusers, and their components as the files that ComfyUI takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from original_families import original_flux2_vae, original_wan22_vae
from original_layout import Tensors
from safetensors.torch import save_file

from fastdiffusers.pipelines import tiny

FLUX3 = (
    ("attn.to_out.0.", "attn_out."),
    ("attn.to_", ""),
    ("attn.norm_q.weight", "norm.query_norm.scale"),
    ("attn.norm_k.weight", "norm.key_norm.scale"),
    ("ff.linear_", "mlp_"),
)
TOP = {
    "x_embedders": "emb_in",
    "context_embedder": "txt_in",
    "mode_blocks": "content_mode_blocks",
    "single_transformer_blocks": "single_blocks",
    "proj_out": "final_layer.image.linear",
    "norm_out.linear": "final_layer.image.adaLN_modulation.1",
    "timestep_embedder.linear_1": "time_in.in_layer",
    "timestep_embedder.linear_2": "time_in.out_layer",
    "target_timestep_embedder.linear_1": "ref_time_in.in_layer",
    "target_timestep_embedder.linear_2": "ref_time_in.out_layer",
}
MINIMAX = (
    ("transformer_blocks.", "blocks."),
    ("token_refiner.refiner_blocks.", "token_refiner.blocks."),
    ("time_embedder.linear_1.", "time_embedder.proj_in."),
    ("time_embedder.linear_2.", "time_embedder.proj_out."),
    ("audio_proj_in.", "audio_patch_proj."),
    ("context_embedder.", "condition_proj."),
    ("norm_out.norm.", "final_layer.norm."),
    ("norm_out.linear.", "final_layer.adaln_proj.linear."),
    ("audio_proj_out.", "final_layer.audio_out."),
    (".attn.norm_q.", ".attn.q_norm."),
    (".attn.norm_k.", ".attn.k_norm."),
    (".attn.to_out.0.", ".attn.out_proj."),
    (".attn.to_q.", ".attn.qkv_proj."),
    (".ff.net.0.proj.", ".mlp.fc1."),
    (".ff.net.2.", ".mlp.fc2."),
)


def original_flux3(state: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in state.items():
        if name == "norm_out.linear.weight":
            value = torch.cat(value.chunk(2)[::-1])
        new = next((TOP[top] + name.removeprefix(top) for top in TOP if name.startswith(f"{top}.")), name)
        for old, short in FLUX3:
            new = new.replace(old, short)
        if ".q." in new or ".k." in new or ".v." in new:
            side = new.split(".")[-2]
            new = new.replace(f".{side}.", f".{side}_proj.")
        out[new.replace(".linear.weight", ".lin.weight") if "modulations" in new else new] = value
    return out


def original_qwenimage21(state: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in state.items():
        if name.endswith("img_mlp.proj.weight"):
            continue
        if name.endswith("img_mlp.gate_layer.weight"):
            value = torch.cat([value, state[name.replace("gate_layer", "proj")]])
            name = name.replace("gate_layer", "gate_up")
        out[name] = value
    return out


def original_qwenimage21_vae(state: Tensors) -> Tensors:
    """Wan 2.2's names, and convolutions with a place for the time, but for those that resample and attend."""
    flat = ("to_qkv", ".proj.", ".resample.")
    return {
        name: value.unsqueeze(2) if value.ndim == 4 and not any(part in name for part in flat) else value
        for name, value in original_wan22_vae(state).items()
    }


def original_minimax_h3(state: Tensors) -> Tensors:
    out: Tensors = {"rope.inv_freq": torch.ones(2)}
    for name, value in state.items():
        if ".to_k." in name or ".to_v." in name:
            continue
        if ".to_q." in name:
            value = torch.cat([state[name.replace("to_q", side)] for side in ("to_q", "to_k", "to_v")])
        if ".ff.net.0.proj." in name:
            value = torch.cat(value.chunk(2)[::-1])
        top = {"proj_in.": "video_patch_proj.", "proj_out.": "final_layer.video_out."}
        new = next((top[each] + name.removeprefix(each) for each in top if name.startswith(each)), name)
        for old, short in MINIMAX:
            new = new.replace(old, short)
        out[new] = value
    return out


def original_qwen3_vl(state: Tensors) -> Tensors:
    """A level up from transformers' names, as ComfyUI's text encoders call them."""
    names = {"model.language_model.": "model.", "model.visual.": "visual.", "lm_head.": "model.lm_head."}
    return {
        next(new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)): value
        for name, value in state.items()
    }


def flux3() -> Any:
    """With feed-forward layers of 256 channels, as blocks of GGUF take them."""
    pipeline: Any = tiny.build("flux3")
    return _with(pipeline, num_attention_heads=2, attention_head_dim=64, axes_dims_rope=(16, 16, 16, 16), mlp_ratio=2.0)


def minimax_h3() -> Any:
    """With latents of the sound as published: without its VAE the pipeline counts on them."""
    from further_parts import changed

    pipeline: Any = tiny.build("minimax-h3")
    channels = 32
    sizes = {"latent_channels": channels, "latents_mean": [0.1] * channels, "latents_std": [1.2] * channels}
    own = pipeline.audio_vae
    pipeline.update_components(audio_vae=type(own).from_config(changed(own.config, **sizes)).eval())
    return _with(pipeline, ffn_dim=256, audio_in_channels=channels)


def _with(pipeline: Any, **sizes: Any) -> Any:
    from further_parts import changed

    own = pipeline.transformer
    torch.manual_seed(21)
    pipeline.update_components(transformer=type(own).from_config(changed(own.config, **sizes)).eval())
    return pipeline


def qwenimage21() -> Any:
    import diffusers

    from fastdiffusers.pipelines.loading.parts.models.qwenimage import SCHEDULER
    from fastdiffusers.pipelines.tiny.components import WIDTH, qwen3_vl_encoder, qwen3_vl_processor
    from fastdiffusers.pipelines.tiny.tokenizers import qwen_tokenizer

    torch.manual_seed(22)
    transformer = diffusers.QwenImage21Transformer2DModel(
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        axes_dims_rope=(16, 24, 24),
        mlp_ratio=2,
    )
    pipeline = diffusers.QwenImage21ModularPipeline()
    tokenizer = qwen_tokenizer()
    pipeline.update_components(
        text_encoder=qwen3_vl_encoder(3).eval(),
        processor=qwen3_vl_processor(tokenizer),
        vae=diffusers.AutoencoderKLQwenImage21(base_dim=4, decoder_base_dim=4, num_res_blocks=2).eval(),
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER),
    )
    return pipeline


BUILD = {"flux3": flux3, "qwenimage21": qwenimage21, "minimax-h3": minimax_h3}
ORIGINAL: dict[str, dict[str, Any]] = {
    "flux3": {"transformer": original_flux3, "text_encoder": dict, "vae": original_flux2_vae},
    "qwenimage21": {
        "transformer": original_qwenimage21,
        "text_encoder": original_qwen3_vl,
        "vae": original_qwenimage21_vae,
    },
    "minimax-h3": {"transformer": original_minimax_h3},
}


def write_header(path: Path, state: Tensors) -> None:
    """A file of these tensors in bfloat16 of which only the header takes room."""
    entries, end = {}, 0
    for key, value in state.items():
        begin, end = end, end + 2 * value.numel()
        entries[key] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def write_modular(family: str, pipeline: Any, place: Path, name: str = "model") -> dict[str, Path]:
    """Component -> its file; configurations, tokenizers and schedulers lie beside the diffusion model."""
    files = {}
    for component, original in ORIGINAL[family].items():
        state = {key: value.contiguous().clone() for key, value in getattr(pipeline, component).state_dict().items()}
        files[component] = place / f"{name if component == 'transformer' else component}.safetensors"
        save_file({key: value.contiguous() for key, value in original(state).items()}, files[component])
        (place / name / component).mkdir(parents=True)
        if component == "text_encoder":
            pipeline.text_encoder.config.save_pretrained(place / name / component)
        else:
            getattr(pipeline, component).save_config(place / name / component)
    for component in ("tokenizer", "processor"):
        held = pipeline.components.get(component)
        if held is not None and family != "minimax-h3":
            held.save_pretrained(place / name / component)
            getattr(held, "tokenizer", held).save_pretrained(place / name / "tokenizer")
    return files

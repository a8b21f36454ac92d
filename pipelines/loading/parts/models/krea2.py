"""Krea 2 in parts, base and distilled.

Sources of the configurations, all in agreement with what is here:
- diffusers, `Krea2Transformer2DModel`: its defaults; `Krea2Pipeline`: which layers of Qwen3-VL-4B are read, the
  numbers of the scheduler, and that the distilled model ("TDM/turbo") has a shift of its own.
- ComfyUI, `comfy/model_detection.py` and `comfy/ldm/krea2/model.py`: the same sizes, axes and layers.
"""

from __future__ import annotations

from typing import Any

from .. import encoders, vaes
from ..component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

ROPE_AXES = {128: [32, 48, 48]}
"""Size of a head -> how it is divided between the axes, which no shape tells."""
SCHEDULER: Config = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 6400,
}
_DISTILLED = ("turbo", "tdm")
"""What the name of a distilled model's file has in it."""


def _is_krea2(shapes: Shapes) -> bool:
    return all(name in shapes for name in ("txtfusion.projector.weight", "first.weight", "blocks.0.attn.wq.weight"))


def _heads(shapes: Shapes, attention: str) -> tuple[int, int, int]:
    """Size of a head, heads of queries, and heads of keys and values."""
    (size,) = shapes[attention + "qknorm.qnorm.scale"]
    return size, shapes[attention + "wq.weight"][0] // size, shapes[attention + "wk.weight"][0] // size


def _config(shapes: Shapes) -> Config:
    head, heads, key_heads = _heads(shapes, "blocks.0.attn.")
    texts = "txtfusion.layerwise_blocks."
    _, text_heads, text_key_heads = _heads(shapes, texts + "0.attn.")
    return {
        "in_channels": shapes["first.weight"][1],
        "num_layers": count_blocks(shapes, "blocks."),
        "attention_head_dim": head,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": shapes["blocks.0.mlp.gate.weight"][0],
        "timestep_embed_dim": shapes["tmlp.0.weight"][1],
        "text_hidden_dim": shapes["txtmlp.0.scale"][0],
        "num_text_layers": shapes["txtfusion.projector.weight"][1],
        "text_num_attention_heads": text_heads,
        "text_num_key_value_heads": text_key_heads,
        "text_intermediate_size": shapes[texts + "0.mlp.gate.weight"][0],
        "num_layerwise_text_blocks": count_blocks(shapes, texts),
        "num_refiner_text_blocks": count_blocks(shapes, "txtfusion.refiner_blocks."),
        "axes_dims_rope": ROPE_AXES.get(head, []),
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers

    if sum(config.get("axes_dims_rope") or ()) != config.get("attention_head_dim"):
        raise ValueError(f"no configuration is known for heads of {config.get('attention_head_dim')}")
    return dict(convert_krea2_transformer_checkpoint_to_diffusers(dict(weights)))


def _family(distilled: bool) -> PartsFamily:
    def told(shapes: Shapes, name: str) -> bool:
        return _is_krea2(shapes) and any(mark in name.lower() for mark in _DISTILLED) == distilled

    title = f"Krea 2{' turbo' if distilled else ''}"
    usual = f"{title}'s diffusion model{', usually krea2_turbo_fp8_scaled.safetensors' if distilled else ''}"
    components: dict[str, Any] = {
        "transformer": Component("diffusers", "Krea2Transformer2DModel", usual, _is_krea2, _config, _rename),
        "text_encoder": encoders.QWEN3_VL_4B_ENCODER,
        "vae": vaes.QWEN_COMPONENT,
    }
    said = "says" if distilled else "does not say turbo or tdm"
    return PartsFamily(
        title=title,
        told=told,
        pipeline="Krea2Pipeline",
        components=components,
        tokenizers={"tokenizer": encoders.QWEN_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", SCHEDULER),
        note=f"run as the {'distilled' if distilled else 'base'} model, as its name {said}: both have the same tensors",
        settings={"is_distilled": distilled},
    )


FAMILIES = (_family(True), _family(False))

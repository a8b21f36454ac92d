"""What LTX-2 reads its texts with, before its diffusion model: connectors and their projection.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_ltx2_to_diffusers.py`: all of them, and the names, which diffusers reads nowhere else.
- ComfyUI, `comfy/ldm/lightricks`: the same names and sizes; `comfy/text_encoders/lt.py`: what projects
  the texts.
"""

from __future__ import annotations

from typing import Any

from ...component import Component, Config, Shapes, Weights, count_blocks
from .model import CAPTION, CONNECTORS, PROJECTION, renamed, under

HEAD = 128
"""Channels of an attention head without gates, which no shape tells."""
_APART = {side: f"{PROJECTION}{side}_aggregate_embed.weight" for side in ("video", "audio")}
_TOGETHER = f"{PROJECTION}aggregate_embed.weight"
PROJECTIONS = (_TOGETHER, *_APART.values())
_CONNECTOR_NAMES = {
    "video_embeddings_connector.": "video_connector.",
    "audio_embeddings_connector.": "audio_connector.",
    "transformer_1d_blocks.": "transformer_blocks.",
    f"{PROJECTION}aggregate_embed.": "text_proj_in.",
    f"{PROJECTION}video_aggregate_embed.": "video_text_proj_in.",
    f"{PROJECTION}audio_aggregate_embed.": "audio_text_proj_in.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
}


def _connectors_config(shapes: Shapes) -> Config:
    config: Config = {"rope_type": "split"}
    widths = {}
    for side in ("video", "audio"):
        beginning = f"{side}_embeddings_connector."
        block = f"{beginning}transformer_1d_blocks.0.attn1."
        width, gate = shapes[f"{block}to_q.weight"][1], shapes.get(f"{block}to_gate_logits.weight")
        heads = gate[0] if gate else width // HEAD
        registers = shapes.get(f"{beginning}learnable_registers")
        widths[side] = width
        config |= {
            f"{side}_connector_num_attention_heads": heads,
            f"{side}_connector_attention_head_dim": width // heads,
            f"{side}_connector_num_layers": count_blocks(shapes, f"{beginning}transformer_1d_blocks."),
            f"{side}_connector_num_learnable_registers": registers[0] if registers else None,
            f"{side}_gated_attn": gate is not None,
        }
    apart = widths["video"] != widths["audio"] or any(name in shapes for name in _APART.values())
    config |= {
        "per_modality_projections": apart,
        "proj_bias": apart,
        "video_hidden_dim": widths["video"],
        "audio_hidden_dim": widths["audio"],
        "caption_channels": CAPTION if apart else widths["video"],
    }
    projection = shapes.get(_APART["video"] if apart else _TOGETHER)
    config["text_proj_in_factor"] = projection[1] // config["caption_channels"] if projection else 0
    return config


def _connectors_fitted(config: Config, shapes: Shapes) -> Config:
    """Without a projection its place has no weights: texts that come encoded are projected."""
    return {**config, "text_proj_in_factor": 0} if not has_projection(shapes) else config


def has_projection(shapes: Shapes) -> bool:
    """Whether a file holds what projects the texts."""
    return _TOGETHER in shapes or all(name in shapes for name in _APART.values())


def _rename_connectors(weights: Weights, config: Config) -> Weights:
    import torch

    found = renamed(weights, _CONNECTOR_NAMES)
    if config["text_proj_in_factor"] == 0:
        like = found["video_connector.transformer_blocks.0.attn1.to_q.weight"]
        sizes = {"text_proj_in": config["caption_channels"]}
        if config.get("per_modality_projections"):
            sizes = {f"{side}_text_proj_in": config[f"{side}_hidden_dim"] for side in ("video", "audio")}
        for name, size in sizes.items():
            found[f"{name}.weight"] = torch.empty(size, 0, dtype=_plain(like), device=like.device)
            if config.get("proj_bias"):
                found[f"{name}.bias"] = torch.zeros(size, dtype=_plain(like), device=like.device)
    return found


def _plain(tensor: Any) -> Any:
    import torch

    return torch.float32 if tensor.itemsize == 1 else tensor.dtype


def _projection_config(shapes: Shapes) -> Config:
    """Of connectors that are nothing but their projection."""
    config: Config = {}
    for side in ("video", "audio"):
        config |= {f"{side}_connector_num_layers": 0, f"{side}_connector_num_learnable_registers": None}
    if _TOGETHER in shapes:
        out, taken = shapes[_TOGETHER]
        return {**config, "caption_channels": out, "text_proj_in_factor": taken // out}
    sizes = {f"{side}_hidden_dim": shapes[name][0] for side, name in _APART.items()}
    bias = f"{PROJECTION}video_aggregate_embed.bias" in shapes
    apart = {"per_modality_projections": True, "proj_bias": bias, "text_proj_in_factor": 1}
    return {**config, **sizes, **apart, "caption_channels": shapes[_APART["video"]][1]}


def connectors(title: str, usual: str) -> Component:
    """What turns the text encoder's layers into a text for the picture and one for the sound."""
    return Component(
        "ltx2",
        "LTX2TextConnectors",
        f"{title}'s connectors, usually {usual}",
        lambda shapes: all(f"{name}transformer_1d_blocks.0.attn1.to_q.weight" in shapes for name in CONNECTORS[:2]),
        _connectors_config,
        _rename_connectors,
        own=under(CONNECTORS),
        fitted=_connectors_fitted,
    )


def projection(title: str, usual: str) -> Component:
    """What projects the text encoder's layers for the connectors: a part of them."""
    return Component(
        "ltx2",
        "LTX2TextConnectors",
        f"{title}'s text projection, usually {usual}",
        has_projection,
        _projection_config,
        lambda weights, config: renamed(weights, _CONNECTOR_NAMES),
        own=under((PROJECTION,)),
    )

"""FLUX.1 in parts.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_flux_to_diffusers.py`: the transformer is its class's defaults, with `guidance_embeds`
  where the file has a guidance embedder.
- edkamesh/FluX-optimized on GitHub, a copy of black-forest-labs/FLUX.1-schnell's configurations: transformer and
  scheduler; multimodalart/FLUX.1-dev2pro-full on the Hub, a copy of black-forest-labs/FLUX.1-dev's: its scheduler.
"""

from __future__ import annotations

from typing import Any

from . import encoders, vaes
from .component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

ROPE_AXES = {128: [16, 56, 56]}
"""Size of a head -> how it is divided between the axes, which no shape tells."""
_FUSED = "single_blocks.{}.linear1.{}"
_CONVERTERS_WIDTH = 3072
"""The width that diffusers' converter splits fused layers by."""


def is_flux(shapes: Shapes) -> bool:
    """Whether these are the tensors of FLUX.1, whichever variant."""
    wanted = ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight")
    return all(name in shapes for name in wanted)


def is_text_to_image(shapes: Shapes) -> bool:
    """Whether these are the tensors of dev, schnell or Kontext: Fill, Depth and Canny take more channels."""
    return is_flux(shapes) and shapes.get("img_in.weight", (0, 0))[-1] == 64


def _is_dev(shapes: Shapes) -> bool:
    return is_text_to_image(shapes) and "guidance_in.in_layer.weight" in shapes


def _config(shapes: Shapes) -> Config:
    """What the shapes tell, and the axes of the rotary embedding that belong to the size of the heads."""
    head = _with_scales(dict(shapes))["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    return {
        "in_channels": shapes["img_in.weight"][1],
        "num_layers": count_blocks(shapes, "double_blocks."),
        "num_single_layers": count_blocks(shapes, "single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": shapes["img_in.weight"][0] // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": ROPE_AXES.get(head, []),
    }


def _rename(weights: Weights, config: Config) -> Weights:
    import torch
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    if sum(config.get("axes_dims_rope") or ()) != config.get("attention_head_dim"):
        raise ValueError(f"no configuration is known for heads of {config.get('attention_head_dim')}")
    weights = _with_scales(weights)
    width = weights["img_in.bias"].shape[0]
    own: Weights = {}
    if width != _CONVERTERS_WIDTH:
        for number in range(count_blocks(weights, "single_blocks.")):
            for kind in ("weight", "bias"):
                fused = weights[_FUSED.format(number, kind)]
                pieces = torch.split(fused, [width, width, width, fused.shape[0] - 3 * width])
                names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                own |= {
                    f"single_transformer_blocks.{number}.{name}.{kind}": piece
                    for name, piece in zip(names, pieces, strict=True)
                }
                weights[_FUSED.format(number, kind)] = torch.empty(7 * _CONVERTERS_WIDTH, device="meta")
    return dict(convert_flux_transformer_checkpoint_to_diffusers(weights)) | own


def _with_scales(tensors: dict[str, Any]) -> dict[str, Any]:
    """Norms under the names of the published files: ComfyUI calls their scale "weight" in the files that it saves."""
    return {
        key.removesuffix("weight") + "scale" if key.endswith("_norm.weight") else key: value
        for key, value in tensors.items()
    }


def scheduler(guidance: bool) -> Config:
    """Of dev, which embeds its guidance, or of schnell."""
    shared = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
    return {**shared, "shift": 3.0 if guidance else 1.0, "use_dynamic_shifting": guidance}


def _family(title: str, told: Any, pipeline: str, guidance: bool, note: str = "") -> PartsFamily:
    usual = f"{title}'s diffusion model"
    return PartsFamily(
        title=title,
        told=told,
        pipeline=pipeline,
        components={
            "transformer": Component("diffusers", "FluxTransformer2DModel", usual, is_flux, _config, _rename),
            "text_encoder": encoders.CLIP_L_ENCODER,
            "text_encoder_2": encoders.T5_ENCODER,
            "vae": vaes.FLUX_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.CLIP_TOKENIZER, "tokenizer_2": encoders.T5_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", scheduler(guidance)),
        note=note,
    )


FAMILIES = (
    _family(
        "FLUX.1 Kontext",
        lambda shapes, name: _is_dev(shapes) and "kontext" in name.lower(),
        "FluxKontextPipeline",
        True,
        "run as FLUX.1 Kontext, as its name says: dev has the same tensors",
    ),
    _family(
        "FLUX.1 dev",
        lambda shapes, name: _is_dev(shapes),
        "FluxPipeline",
        True,
        "run as FLUX.1 dev, text to image: Kontext has the same tensors, and its name in the name of its file",
    ),
    _family("FLUX.1 schnell", lambda shapes, name: is_text_to_image(shapes), "FluxPipeline", False),
)

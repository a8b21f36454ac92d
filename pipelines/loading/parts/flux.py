"""FLUX.1 in parts: what its files are called, their configurations, and how their names become those of diffusers."""

from __future__ import annotations

from typing import Any

from . import configurations

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, Any]

CLASSES = {
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
USUAL = {
    "text_encoder": "CLIP-L, usually clip_l.safetensors",
    "text_encoder_2": "T5-XXL, usually t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn_scaled.safetensors",
    "vae": "FLUX.1's VAE, usually ae.safetensors",
}
_FUSED = "single_blocks.{}.linear1.{}"
_CONVERTERS_WIDTH = 3072
"""The width that diffusers' converter splits fused layers by."""


def is_flux(shapes: Shapes) -> bool:
    """Whether these are the tensors of FLUX.1, whichever variant."""
    wanted = ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight")
    return all(name in shapes for name in wanted)


def variant(shapes: Shapes) -> str:
    """ "dev" or "schnell"; "" where it is neither: Fill, Depth and Canny take more channels."""
    if shapes.get("img_in.weight", (0, 0))[-1] != 64:
        return ""
    return "dev" if "guidance_in.in_layer.weight" in shapes else "schnell"


def slot_of(shapes: Shapes) -> str:
    """The component of FLUX.1 whose names these are, "" for none. Sizes are compared later."""
    if is_flux(shapes):
        return "transformer" if variant(shapes) else ""
    if "text_model.embeddings.token_embedding.weight" in shapes:
        return "" if "text_model.encoder.layers.12.mlp.fc1.weight" in shapes else "text_encoder"
    if "encoder.block.0.layer.0.SelfAttention.q.weight" in shapes:
        umt5 = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes
        return "" if umt5 else "text_encoder_2"
    latents = shapes.get("decoder.conv_in.weight", ())
    if "decoder.mid.block_1.norm1.weight" in shapes and "post_quant_conv.weight" not in shapes:
        return "vae" if len(latents) == 4 and latents[1] == configurations.FLUX_VAE["latent_channels"] else ""
    return ""


def not_told(slot: str, config: dict[str, Any]) -> str:
    """What a component was taken for that its tensors do not tell, for the report."""
    if slot == "vae":
        numbers = f"scaling factor {config.get('scaling_factor')} and shift {config.get('shift_factor')}"
        return f"; taken as FLUX.1's, {numbers}, to go with the diffusion model: SD3's VAE has the same tensors"
    if slot == "transformer" and config.get("guidance_embeds"):
        return "; run as FLUX.1 dev, text to image: Kontext has the same tensors"
    return ""


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell, and the axes of the rotary embedding that belong to the size of the heads."""
    head = _with_scales(shapes)["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    return {
        "in_channels": shapes["img_in.weight"][1],
        "num_layers": _count(shapes, "double_blocks."),
        "num_single_layers": _count(shapes, "single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": shapes["img_in.weight"][0] // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": variant(shapes) == "dev",
        "axes_dims_rope": configurations.FLUX_ROPE_AXES.get(head, []),
    }


def rename(slot: str, weights: Weights, config: dict[str, Any]) -> Weights:
    """The weights of a part under the names of its class. Any error means that they are another model's."""
    if slot == "transformer":
        return _rename_transformer(weights)
    if slot == "vae":
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        return dict(convert_ldm_vae_checkpoint(weights, config))
    if slot == "text_encoder":
        return _rename_clip(weights)
    table = weights["shared.weight"] if "shared.weight" in weights else weights["encoder.embed_tokens.weight"]
    return {**weights, "shared.weight": table, "encoder.embed_tokens.weight": table}


def _rename_transformer(weights: Weights) -> Weights:
    import torch
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    weights = _with_scales(weights)
    width = weights["img_in.weight"].shape[0]
    own: Weights = {}
    if width != _CONVERTERS_WIDTH:
        for number in range(_count(weights, "single_blocks.")):
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


def _rename_clip(weights: Weights) -> Weights:
    """CLIP's text model, whose own code lost a level of its names in transformers 5.6."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    weights = {
        key: value for key, value in weights.items() if key.startswith("text_model.") and "position_ids" not in key
    }
    with torch.device("meta"):
        small = CLIPTextConfig(
            vocab_size=4, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1
        )
        flat = not hasattr(CLIPTextModel(small), "text_model")
    return {key.removeprefix("text_model.") if flat else key: value for key, value in weights.items()}


def _count(names: Any, beginning: str) -> int:
    return len({name.split(".")[1] for name in names if name.startswith(beginning)})

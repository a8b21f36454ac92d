"""Chroma in parts: a FLUX.1 without CLIP, whose modulations come out of one small network.

Sources of the configurations, all in agreement with what is here:
- diffusers, `ChromaTransformer2DModel`: its defaults; ComfyUI, `comfy/model_detection.py`: the same sizes.
- ostris/ai-toolkit on GitHub, its Chroma model: T5-XXL and FLUX.1's VAE.
- ComfyUI's own workflow for Chroma: steps that are not shifted, as its author meant them; huggingface/diffusers#12112:
  so has the scheduler of lodestones/Chroma1-HD. (ComfyUI's default for the model and ai-toolkit shift, as FLUX.1-dev.)
"""

from __future__ import annotations

from .. import encoders, vaes
from ..component import Component, Config, PartsFamily, Shapes, Weights, count_blocks
from . import flux

_GUIDANCE = "distilled_guidance_layer."


def _is_chroma(shapes: Shapes) -> bool:
    """Chroma Radiance makes pixels and has layers for them besides."""
    wanted = (_GUIDANCE + "in_proj.weight", "double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")
    return all(name in shapes for name in wanted) and "img_in.weight" in shapes


def _config(shapes: Shapes) -> Config:
    head = flux.with_scales(dict(shapes))["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    width, channels = shapes["img_in.weight"]
    return {
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count_blocks(shapes, "double_blocks."),
        "num_single_layers": count_blocks(shapes, "single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": flux.ROPE_AXES.get(head, []),
        "approximator_num_channels": shapes[_GUIDANCE + "in_proj.weight"][1],
        "approximator_hidden_dim": shapes[_GUIDANCE + "in_proj.weight"][0],
        "approximator_layers": count_blocks(shapes, _GUIDANCE + "layers."),
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_chroma_transformer_checkpoint_to_diffusers

    flux.check_axes(config)
    weights, own = flux.split_fused(flux.with_scales(weights))
    return dict(convert_chroma_transformer_checkpoint_to_diffusers(weights)) | own


FAMILIES = (
    PartsFamily(
        title="Chroma",
        told=lambda shapes, name: _is_chroma(shapes),
        pipeline="ChromaPipeline",
        components={
            "transformer": Component(
                "diffusers",
                "ChromaTransformer2DModel",
                "Chroma's diffusion model, usually Chroma1-HD.safetensors",
                _is_chroma,
                _config,
                _rename,
            ),
            "text_encoder": encoders.T5_ENCODER,
            "vae": vaes.FLUX_COMPONENT,
        },
        tokenizers={"tokenizer": encoders.T5_TOKENIZER},
        scheduler=("FlowMatchEulerDiscreteScheduler", flux.scheduler(guidance=False)),
        note="its steps are not shifted, as in ComfyUI's own workflow for it and in Chroma1-HD's scheduler",
    ),
)

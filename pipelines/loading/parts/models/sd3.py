"""Stable Diffusion 3 and 3.5 in parts: medium, large and large turbo.

Sources of the configurations, all in agreement with what is here:
- ComfyUI, `comfy/model_detection.py`: heads of 64, the size of the position embeddings, which layers look twice;
  `comfy/supported_models.py`: the shift of 3.
- diffusers, `SD3Transformer2DModel` and `FlowMatchEulerDiscreteScheduler`: their defaults, but for what the shapes tell
  and the shift; `scripts/convert_sd3_to_diffusers.py`: the norms of 3.5, and its sample size.
"""

from __future__ import annotations

import math
import re

from .. import clips, encoders, vaes
from ..component import Component, Config, PartsFamily, Shapes, Weights, count_blocks

HEAD = 64
"""Channels of an attention head of every published size, which no shape tells."""
_TWICE = re.compile(r"joint_blocks\.(\d+)\.x_block\.attn2\.qkv\.weight")
_NORM = "joint_blocks.0.x_block.attn.ln_q.weight"


def _is_sd3(shapes: Shapes) -> bool:
    wanted = ("joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight", "pos_embed")
    return all(name in shapes for name in wanted) and "context_processor.layers.0.attn.qkv.weight" not in shapes


def _config(shapes: Shapes) -> Config:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": count_blocks(shapes, "joint_blocks."),
        "attention_head_dim": HEAD,
        "num_attention_heads": width // HEAD,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": sorted(int(found[1]) for key in shapes if (found := _TWICE.fullmatch(key))),
        "qk_norm": "rms_norm" if _NORM in shapes else None,
    }


def _rename(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    return dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(weights)))


FAMILIES = (
    PartsFamily(
        title="Stable Diffusion 3",
        told=lambda shapes, name: _is_sd3(shapes),
        pipeline="StableDiffusion3Pipeline",
        components={
            "transformer": Component(
                "diffusers",
                "SD3Transformer2DModel",
                "SD 3's diffusion model, usually sd3.5_medium.safetensors or sd3.5_large.safetensors",
                _is_sd3,
                _config,
                _rename,
            ),
            "text_encoder": clips.CLIP_L_OF_SD3,
            "text_encoder_2": clips.CLIP_G_ENCODER,
            "text_encoder_3": encoders.T5_ENCODER,
            "vae": vaes.SD3_COMPONENT,
        },
        tokenizers={
            "tokenizer": clips.CLIP_TOKENIZER,
            "tokenizer_2": clips.CLIP_G_TOKENIZER,
            "tokenizer_3": encoders.T5_TOKENIZER,
        },
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        note="its steps are shifted by 3; turbo has the tensors of large, and runs with 4 steps and guidance 1",
    ),
)

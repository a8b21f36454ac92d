"""CLIP's encoders of texts and pictures, as ComfyUI's users have them as files, and their tokenizers.

Sources of the configurations, all in agreement with what is here:
- edkamesh/FluX-optimized on GitHub, a copy of black-forest-labs/FLUX.1-schnell's configurations: CLIP-L;
  DeveloperRadleighPompei/sdxl on GitHub, a copy of stabilityai/stable-diffusion-xl-base-1.0's: CLIP-G.
- ComfyUI, `comfy/sd1_clip_config.json`, `comfy/clip_config_bigg.json` and `comfy/clip_vision_config_h.json`: the same
  sizes; `comfy/sdxl_clip.py`: that CLIP-G is padded with token 0, which is "!".
- diffusers, `loaders/single_file_utils.py`: that SD 3's CLIP-L is not projected (its projection is the identity).
- diffusers, `scripts/convert_wan_to_diffusers.py`: that Wan 2.1 reads pictures with CLIP-H, whose pictures are prepared
  by transformers' `CLIPImageProcessor` as it comes.
"""

from __future__ import annotations

from typing import Any

from .component import Component, Config, Shapes, Tokenizer, Weights
from .encoders import published

CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
"""`eos_token_id` as the published configurations have it: the pooled output is that of the largest id."""

CLIP_G: Config = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}

CLIP_H_VISION: Config = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "projection_dim": 1024,
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 14,
}

_FOLDER, _OPTIONS = "comfy/sd1_tokenizer", {"model_max_length": 77}
CLIP_TOKENIZER = Tokenizer("CLIPTokenizer", _FOLDER, {**_OPTIONS, "pad_token": "<|endoftext|>"})
CLIP_G_TOKENIZER = Tokenizer("CLIPTokenizer", _FOLDER, {**_OPTIONS, "pad_token": "!"})

_LAYER = "text_model.encoder.layers.{}.mlp.fc1.weight"
_PROJECTION = "text_projection.weight"


def _is_clip_l(shapes: Shapes) -> bool:
    return "text_model.embeddings.token_embedding.weight" in shapes and _LAYER.format(12) not in shapes


def _is_clip_g(shapes: Shapes) -> bool:
    return "text_model.embeddings.token_embedding.weight" in shapes and _LAYER.format(12) in shapes


def _is_clip_vision(shapes: Shapes) -> bool:
    return "vision_model.embeddings.class_embedding" in shapes and "vision_model.post_layernorm.weight" in shapes


def _flat() -> bool:
    """Whether CLIP's own code has lost a level of its names, as in transformers 5.6."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        small = CLIPTextConfig(
            vocab_size=4, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1
        )
        return not hasattr(CLIPTextModel(small), "text_model")


def _model_of(weights: Weights, beginning: str, flat: bool) -> Weights:
    return {
        key.removeprefix(beginning) if flat else key: value
        for key, value in weights.items()
        if key.startswith(beginning) and "position_ids" not in key
    }


def _rename_text(weights: Weights, config: Config) -> Weights:
    return _model_of(weights, "text_model.", _flat())


def _rename_vision(weights: Weights, config: Config) -> Weights:
    return _model_of(weights, "vision_model.", _flat())


def _rename_projected(weights: Weights, config: Config) -> Weights:
    return {**_model_of(weights, "text_model.", False), _PROJECTION: weights[_PROJECTION]}


def _rename_not_projected(weights: Weights, config: Config) -> Weights:
    import torch

    model = _model_of(weights, "text_model.", False)
    norm = model["text_model.final_layer_norm.weight"]
    projection = torch.eye(norm.shape[0], dtype=torch.float32 if norm.itemsize == 1 else norm.dtype, device=norm.device)
    return {**model, _PROJECTION: projection}


def _clip(class_name: str, usual: str, told: Any, config: Config, rename: Any) -> Component:
    return Component("transformers", class_name, usual, told, published(config), rename)


_L = "CLIP-L, usually clip_l.safetensors"
CLIP_L_ENCODER = _clip("CLIPTextModel", _L, _is_clip_l, CLIP_L, _rename_text)
CLIP_L_OF_SD3 = _clip("CLIPTextModelWithProjection", _L, _is_clip_l, CLIP_L, _rename_not_projected)
CLIP_G_ENCODER = _clip(
    "CLIPTextModelWithProjection", "CLIP-G, usually clip_g.safetensors", _is_clip_g, CLIP_G, _rename_projected
)
CLIP_VISION_ENCODER = _clip(
    "CLIPVisionModel", "CLIP-H, usually clip_vision_h.safetensors", _is_clip_vision, CLIP_H_VISION, _rename_vision
)

"""The text encoders of the architectures in their published sizes, to count their weights: nothing here runs.

Sizes from ComfyUI's own configurations of the same files: `comfy/text_encoders/llama.py` (Qwen3_4BConfig,
Qwen25_7BVLI_Config), `comfy/text_encoders/qwen_vl.py`, `comfy/text_encoders/umt5_config_xxl.json`,
`comfy/text_encoders/t5_config_xxl.json`, `comfy/sd1_clip_config.json`.
"""

from __future__ import annotations

from typing import Any

CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
UMT5_XXL: dict[str, Any] = {**T5_XXL, "vocab_size": 256384}
QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
QWEN25_VL_7B_TEXT: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
QWEN25_VL_7B_SIGHT: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
}


def flux() -> dict[str, Any]:
    """CLIP-L and T5-XXL."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L)),
        "text_encoder_2": T5EncoderModel(T5Config(**T5_XXL)),
    }


def qwen_image() -> dict[str, Any]:
    """Qwen2.5-VL 7B."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(text_config=QWEN25_VL_7B_TEXT, vision_config=QWEN25_VL_7B_SIGHT)
    return {"text_encoder": Qwen2_5_VLForConditionalGeneration(config)}


def z_image() -> dict[str, Any]:
    """Qwen3 4B."""
    from transformers import Qwen3Config, Qwen3Model

    return {"text_encoder": Qwen3Model(Qwen3Config(**QWEN3_4B))}


def wan() -> dict[str, Any]:
    """UMT5-XXL."""
    from transformers import UMT5Config, UMT5EncoderModel

    return {"text_encoder": UMT5EncoderModel(UMT5Config(**UMT5_XXL))}

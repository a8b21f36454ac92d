"""The text encoders of the architectures in their published sizes, to count their weights: nothing here runs."""

from __future__ import annotations

from typing import Any

from ..pipelines.loading.parts.encoders import CLIP_L, QWEN3_4B, QWEN25_VL_7B, T5_XXL, UMT5_XXL


def flux() -> dict[str, Any]:
    """CLIP-L and T5-XXL."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(CLIP_L)),
        "text_encoder_2": T5EncoderModel(T5Config.from_dict(T5_XXL)),
    }


def qwen_image() -> dict[str, Any]:
    """Qwen2.5-VL 7B."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return {"text_encoder": Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(QWEN25_VL_7B))}


def z_image() -> dict[str, Any]:
    """Qwen3 4B."""
    from transformers import Qwen3Config, Qwen3Model

    return {"text_encoder": Qwen3Model(Qwen3Config.from_dict(QWEN3_4B))}


def wan() -> dict[str, Any]:
    """UMT5-XXL."""
    from transformers import UMT5Config, UMT5EncoderModel

    return {"text_encoder": UMT5EncoderModel(UMT5Config.from_dict(UMT5_XXL))}

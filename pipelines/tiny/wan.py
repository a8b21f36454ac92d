"""The embedded tiny Wans: 2.2 with two experts, from text or from a first frame; 2.1 with one; VACE."""

from __future__ import annotations

from typing import Any

from .components import WIDTH, umt5_encoder, wan_scheduler, wan_vae
from .tokenizers import t5_tokenizer


def _expert(in_channels: int) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        text_dim=WIDTH,
        freq_dim=WIDTH,
        ffn_dim=2 * WIDTH,
        num_layers=2,
    )


def wan_one_expert() -> Any:
    """Wan 2.1's kind: one expert for all of the steps."""
    from diffusers import WanPipeline

    return WanPipeline(**_around(), transformer=_expert(16), transformer_2=None, boundary_ratio=None)


def wan_vace() -> Any:
    """Wan VACE: a clip, its mask and reference pictures go in beside the prompt."""
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    transformer = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        text_dim=WIDTH,
        freq_dim=WIDTH,
        ffn_dim=2 * WIDTH,
        num_layers=2,
        vace_layers=[0, 1],
        vace_in_channels=96,
    )
    return WanVACEPipeline(**_around(), transformer=transformer)


def _around() -> dict[str, Any]:
    """What every Wan has beside its experts."""
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": umt5_encoder(),
        "vae": wan_vae(),
        "scheduler": wan_scheduler(),
    }


def wan(image_to_video: bool) -> Any:
    from diffusers import WanImageToVideoPipeline, WanPipeline

    # Image-to-video: 16 noisy channels, 16 of the encoded first frame, 4 of the mask.
    channels = 36 if image_to_video else 16
    pipeline_class = WanImageToVideoPipeline if image_to_video else WanPipeline
    return pipeline_class(
        **_around(),
        transformer=_expert(channels),
        transformer_2=_expert(channels),
        boundary_ratio=0.9 if image_to_video else 0.875,
    )

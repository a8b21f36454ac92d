"""Small pipelines with random weights whose guidance is a component of its own, with a `guider_config.json`."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers import guiders

from fastdiffusers.pipelines.tiny import components, tokenizers

TEXT = components.WIDTH
VISION = 16
GUIDED = (
    "HunyuanVideo15Pipeline",
    "HunyuanVideo15ImageToVideoPipeline",
    "HunyuanImagePipeline",
    "HunyuanImageRefinerPipeline",
    "MotifVideoPipeline",
    "MotifVideoImage2VideoPipeline",
)


def build_guided(class_name: str) -> Any:
    """One of `GUIDED`, in evaluation mode; the same weights every time."""
    torch.manual_seed(0)
    build = _motif_video if "Motif" in class_name else _hunyuan_video if "Video" in class_name else _hunyuan_image
    pipeline = getattr(diffusers, class_name)(**build(class_name))
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _hunyuan_video(class_name: str) -> dict[str, Any]:
    parts = _glyph_encoder() | {
        "text_encoder": transformers.Qwen2_5_VLTextModel(components.qwen25_vl_encoder().config.text_config),
        "tokenizer": tokenizers.qwen_tokenizer(),
        "scheduler": components.flow_euler(shift=7.0),
        "guider": guiders.ClassifierFreeGuidance(guidance_scale=3.0),
        "vae": diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ),
        "transformer": diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=TEXT,
            text_embed_2_dim=TEXT,
            image_embed_dim=VISION,
            rope_axes_dim=(2, 2, 4),
            target_size=16,
            task_type="i2v" if "Image" in class_name else "t2v",
        ),
    }
    if "Image" in class_name:
        parts["image_encoder"] = transformers.SiglipVisionModel(_vision(patches=27))
        parts["feature_extractor"] = _vision_processor(27 * 4)
    return parts


def _hunyuan_image(class_name: str) -> dict[str, Any]:
    refiner = "Refiner" in class_name
    shared = {
        "text_encoder": components.qwen25_vl_encoder(),
        "tokenizer": tokenizers.qwen_tokenizer(),
        "scheduler": components.flow_euler(shift=7.0),
        "guider": guiders.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        "transformer": diffusers.HunyuanImageTransformer2DModel(
            in_channels=16 if refiner else 4,
            out_channels=8 if refiner else 4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1, 1) if refiner else (1, 1),
            text_embed_dim=TEXT,
            text_embed_2_dim=None if refiner else TEXT,
            rope_axes_dim=(2, 2, 4) if refiner else (4, 4),
        ),
    }
    if refiner:
        sizes: dict[str, Any] = {"spatial_compression_ratio": 8, "temporal_compression_ratio": 2}
        widths = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "latent_channels": 4}
        return shared | {"vae": diffusers.AutoencoderKLHunyuanImageRefiner(**sizes, **widths)}
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        scaling_factor=0.5,
        spatial_compression_ratio=8,
        sample_size=64,
    )
    return shared | _glyph_encoder() | {"vae": vae, "ocr_guider": guiders.AdaptiveProjectedMixGuidance()}


def _motif_video(class_name: str) -> dict[str, Any]:
    text = transformers.T5Gemma2TextConfig(
        hidden_size=TEXT,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=TEXT,
        vocab_size=tokenizers.GEMMA_VOCABULARY,
        max_position_embeddings=128,
        head_dim=16,
        num_key_value_heads=2,
        dropout_rate=0.0,
    )
    config = transformers.T5Gemma2EncoderConfig(text_config=text, vision_config=_vision(patches=4))
    return {
        "text_encoder": transformers.T5Gemma2Encoder(config),
        "tokenizer": tokenizers.gemma_tokenizer(),
        "scheduler": components.flow_euler(shift=7.0),
        "guider": guiders.AdaptiveProjectedGuidance(),
        "vae": components.wan_vae(),
        "feature_extractor": _vision_processor(16),
        "transformer": diffusers.MotifVideoTransformer3DModel(
            in_channels=33,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=TEXT,
            image_embed_dim=VISION,
            rope_axes_dim=(4, 4, 4),
        ),
    }


def _glyph_encoder() -> dict[str, Any]:
    """What reads the words that are to be written in the picture, byte by byte."""
    config = components.t5_encoder().config
    config.vocab_size = 384
    return {"text_encoder_2": transformers.T5EncoderModel(config), "tokenizer_2": transformers.ByT5Tokenizer()}


def _vision(patches: int) -> Any:
    return transformers.SiglipVisionConfig(
        hidden_size=VISION,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * VISION,
        image_size=4 * patches,
        patch_size=4,
    )


def _vision_processor(size: int) -> Any:
    return transformers.SiglipImageProcessor(size={"height": size, "width": size})

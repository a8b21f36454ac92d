"""Small models with random weights that diffusers has in modular form alone, or first: saved as folders."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from modular_twins import save

from fastdiffusers.pipelines.tiny.components import (
    WIDTH,
    dynamic_flow_euler,
    flow_euler,
    flux2_vae,
    qwen3_encoder,
    qwen_vae,
)
from fastdiffusers.pipelines.tiny.tokenizers import (
    CHAT_TEMPLATE,
    QWEN_SPECIALS,
    QWEN_VOCABULARY,
    qwen_tokenizer,
    t5_tokenizer,
)

_MEAN, _STD = [0.1, -0.2, 0.3, 0.0], [1.5, 0.8, 1.1, 0.9]


def qwen3_vl(layers: int, whole: bool = True) -> Any:
    """Qwen3-VL with `layers` layers, as language model with vision or as the plain model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

    token = {name: 256 + index for index, name in enumerate(QWEN_SPECIALS)}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": QWEN_VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.1,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 4,
            "out_hidden_size": WIDTH,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
    )
    return Qwen3VLForConditionalGeneration(config) if whole else Qwen3VLModel(config)


def qwen3_vl_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    sizes: dict[str, Any] = {"size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 32 * 32}}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, **sizes),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def _krea2() -> tuple[str, dict[str, Any]]:
    transformer = diffusers.Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=12,
        text_num_attention_heads=4,
        text_num_key_value_heads=4,
        text_intermediate_size=64,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    parts = {"text_encoder": qwen3_vl(36, whole=False), "tokenizer": qwen_tokenizer(), "vae": qwen_vae()}
    return "Krea2ModularPipeline", parts | {"transformer": transformer, "scheduler": dynamic_flow_euler(shift=1.0)}


def _anima() -> tuple[str, dict[str, Any]]:
    from diffusers.models.condition_embedders.condition_embedder_anima import AnimaTextConditioner

    transformer = diffusers.CosmosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
    )
    conditioner = AnimaTextConditioner(
        source_dim=WIDTH,
        target_dim=WIDTH,
        model_dim=WIDTH,
        num_layers=1,
        num_attention_heads=4,
        target_vocab_size=len(t5_tokenizer()),
        min_sequence_length=16,
    )
    return "AnimaModularPipeline", {
        "text_encoder": qwen3_encoder(layers=2, causal=False),
        "tokenizer": qwen_tokenizer(),
        "t5_tokenizer": t5_tokenizer(),
        "text_conditioner": conditioner,
        "transformer": transformer,
        "scheduler": flow_euler(shift=3.0),
        "vae": qwen_vae(),
    }


def _flux3() -> tuple[str, dict[str, Any]]:
    transformer = diffusers.Flux3Transformer2DModel(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8 * WIDTH,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return "Flux3ModularPipeline", {
        "text_encoder": qwen3_vl(34),
        "tokenizer": qwen3_vl_processor(qwen_tokenizer()),
        "vae": flux2_vae(),
        "transformer": transformer,
    }


def _minimax_h3() -> tuple[str, dict[str, Any]]:
    vae = diffusers.AutoencoderKLMiniMaxH3(
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        spatial_downsample_factors=(2, 2),
        temporal_downsample_factors=(2, 2),
        norm_num_groups=8,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=8,
        decoder_num_register_tokens=2,
        decoder_ffn_mult=2,
        latents_mean=_MEAN,
        latents_std=_STD,
    )
    audio_vae = diffusers.AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4,
        encoder_rates=(2, 2),
        latent_dim=32,
        latent_channels=8,
        num_attention_heads=2,
        decoder_dim=16,
        decoder_rates=(2, 2),
        decoder_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3), (1, 3)),
        sampling_rate=32_000,
        latents_mean=[0.1] * 8,
        latents_std=[1.2] * 8,
    )
    transformer = diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=8,
        text_dim=WIDTH,
        freq_dim=8,
        time_embed_hidden_dim=24,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    tokenizer = qwen_tokenizer()
    return "MiniMaxH3ModularPipeline", {
        "text_encoder": qwen3_vl(52),
        "tokenizer": tokenizer,
        "processor": qwen3_vl_processor(tokenizer),
        "vae": vae,
        "audio_vae": audio_vae,
        "transformer": transformer,
        "scheduler": diffusers.MiniMaxH3Scheduler(shift=12.0),
        "audio_scheduler": diffusers.MiniMaxH3Scheduler(shift=3.0),
    }


def _qwenimage21() -> tuple[str, dict[str, Any]]:
    transformer = diffusers.QwenImage21Transformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=WIDTH, axes_dims_rope=(4, 6, 6)
    )
    vae = diffusers.AutoencoderKLQwenImage21(base_dim=4, decoder_base_dim=4, num_res_blocks=1)
    tokenizer = qwen_tokenizer()
    return "QwenImage21ModularPipeline", {
        "text_encoder": qwen3_vl(3),
        "processor": qwen3_vl_processor(tokenizer),
        "vae": vae,
        "transformer": transformer,
        "scheduler": dynamic_flow_euler(shift=1.0),
    }


BUILDERS: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "krea2": _krea2,
    "anima": _anima,
    "flux3": _flux3,
    "minimax-h3": _minimax_h3,
    "qwenimage21": _qwenimage21,
}


def save_model(name: str, folder: Path) -> Path:
    """Build and save one of `BUILDERS`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        class_name, parts = BUILDERS[name]()
        for part in parts.values():
            for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
                if not parameter.data.any() or not parameter.data.isfinite().all():
                    parameter.data.normal_(std=0.02)
    return save(getattr(diffusers, class_name)(), parts, folder)

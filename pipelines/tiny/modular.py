"""The embedded tiny pipelines that diffusers has as Modular Diffusers alone: FLUX.3, and MiniMax-H3 with its sound."""

from __future__ import annotations

from typing import Any

from .components import WIDTH, flux2_vae, qwen3_vl_encoder, qwen3_vl_processor
from .tokenizers import qwen_tokenizer

VIDEO_CHANNELS, AUDIO_CHANNELS = 24, 8
"""Of MiniMax-H3's latents: those of the video as the real model has them, so that ComfyUI's previews know them."""
SOUND_RATE = 32_000
"""Samples per second of MiniMax-H3's sound."""


def flux3() -> Any:
    """FLUX.3 without the language model that rewrites a prompt: it may be left out of the real one too."""
    import diffusers

    # Its text encoder's hidden states 1 to 33 are read, every few of them.
    text_encoder = qwen3_vl_encoder(layers=34)
    transformer = diffusers.Flux3Transformer2DModel(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8 * WIDTH,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return _made_of(
        "Flux3ModularPipeline",
        text_encoder=text_encoder,
        tokenizer=qwen3_vl_processor(qwen_tokenizer()),
        vae=flux2_vae(),
        transformer=transformer,
    )


def minimax_h3() -> Any:
    """MiniMax-H3: video and sound from one sequence, its VAE with the strides of the real one, and the denoiser that
    reads references."""
    import diffusers
    import torch

    transformer = _video_transformer()
    tokenizer = qwen_tokenizer()
    pipeline = _made_of(
        "MiniMaxH3ModularPipeline",
        text_encoder=qwen3_vl_encoder(layers=52),  # the hidden state 50 is read
        tokenizer=tokenizer,
        processor=qwen3_vl_processor(tokenizer),
        vae=_video_vae(),
        audio_vae=_audio_vae(),
        transformer=transformer,
        scheduler=diffusers.MiniMaxH3Scheduler(shift=12.0),
        audio_scheduler=diffusers.MiniMaxH3Scheduler(shift=3.0),
        # The geometry of references: the real one, 2048 pixels and 768, is much for a processor.
        reference_image_short_edge=64,
        canvas_short_edge=32,
        canvas_max_pixels=32 * 64,
    )
    with torch.random.fork_rng(devices=[]):  # the weights of the others do not depend on it
        pipeline.update_components(transformer_ref=_video_transformer())
    return pipeline


def _video_transformer() -> Any:
    import diffusers

    transformer: Any = diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=VIDEO_CHANNELS,
        audio_in_channels=AUDIO_CHANNELS,
        text_dim=WIDTH,
        freq_dim=8,
        time_embed_hidden_dim=24,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    return transformer


def _video_vae() -> Any:
    import diffusers

    vae: Any = diffusers.AutoencoderKLMiniMaxH3(
        latent_channels=VIDEO_CHANNELS,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        spatial_downsample_factors=(2, 2, 2, 2),
        temporal_downsample_factors=(1, 2, 2, 1),
        norm_num_groups=4,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=8,
        decoder_num_register_tokens=2,
        decoder_ffn_mult=2,
        # Statistics that are not 0 and 1, or a test could not tell which side applies them.
        latents_mean=[0.1 * (index % 5 - 2) for index in range(VIDEO_CHANNELS)],
        latents_std=[0.8 + 0.1 * (index % 7) for index in range(VIDEO_CHANNELS)],
    )
    return vae


def _audio_vae() -> Any:
    import diffusers

    vae: Any = diffusers.AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4,
        encoder_rates=(8, 10, 10),
        latent_dim=32,
        latent_channels=AUDIO_CHANNELS,
        num_attention_heads=2,
        decoder_dim=32,
        decoder_rates=(10, 10, 8),
        decoder_kernel_sizes=(20, 20, 16),
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3), (1, 3)),
        sampling_rate=SOUND_RATE,
        latents_mean=[0.1] * AUDIO_CHANNELS,
        latents_std=[1.2] * AUDIO_CHANNELS,
    )
    return vae


def _made_of(class_name: str, **parts: Any) -> Any:
    import diffusers

    pipeline = getattr(diffusers, class_name)()
    pipeline._blocks.sub_blocks.pop("prompt_upsampler", None)  # its model is not there
    pipeline.update_components(**parts)
    return pipeline

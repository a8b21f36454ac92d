"""Configurations of the published models, for files that hold weights only.

Sources, all in agreement with what is here:
- diffusers, `scripts/convert_flux_to_diffusers.py`: the transformer is its class's defaults, with `guidance_embeds`
  where the file has a guidance embedder; the VAE is SD3's with scaling factor 0.3611 and shift 0.1159.
- edkamesh/FluX-optimized on GitHub, a copy of black-forest-labs/FLUX.1-schnell's configurations: transformer, VAE,
  CLIP-L, T5-XXL, scheduler.
- multimodalart/FLUX.1-dev2pro-full on the Hub, a copy of black-forest-labs/FLUX.1-dev: the scheduler of dev; the other
  configurations of dev are those of schnell but for `guidance_embeds`.
- ComfyUI, `comfy/sd1_clip_config.json` and `comfy/text_encoders/t5_config_xxl.json`: the same sizes.
Sizes that a file's shapes tell are taken from there.
"""

from __future__ import annotations

from typing import Any

FLUX_ROPE_AXES = {128: [16, 56, 56]}
"""Size of a head -> how it is divided between the axes, which no shape tells."""

FLUX_VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

CLIP_L: dict[str, Any] = {
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
"""`eos_token_id` as the published configurations of FLUX.1 have it: the pooled output is that of the largest id."""

T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}


def flux_scheduler(guidance: bool) -> dict[str, Any]:
    """Of dev, which embeds its guidance, or of schnell."""
    shared = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
    return {**shared, "shift": 3.0 if guidance else 1.0, "use_dynamic_shifting": guidance}

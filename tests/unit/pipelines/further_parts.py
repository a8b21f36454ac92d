"""Tiny pipelines of the families in parts that the embedded ones leave out. Their feed-forward layers are 256 wide
inside, so that the K-quants of GGUF fit them."""

from __future__ import annotations

from typing import Any

import torch

from fastdiffusers.pipelines import tiny

WIDTH = 32
"""Of every tiny text encoder."""


def changed(config: Any, **sizes: Any) -> dict[str, Any]:
    """A configuration with other sizes. What was left to defaults when it was made would go before them."""
    return {name: value for name, value in config.items() if name != "_use_default_values"} | sizes


def clip(projection: bool, layers: int = 3) -> Any:
    """A tiny CLIP; one with more than twelve layers is told as CLIP-G."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    small = tiny.build("sd3").text_encoder.config.to_dict()
    config = CLIPTextConfig.from_dict(small | {"num_hidden_layers": layers})
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def ltx23() -> Any:
    """LTX-2 in the form of LTX-2.3: its connectors project the text for picture and sound apart."""
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    small: Any = tiny.build("ltx2-t2v")
    sizes = small.transformer.config
    widths = {"video_hidden_dim": sizes.cross_attention_dim, "audio_hidden_dim": sizes.audio_cross_attention_dim}
    apart = {"per_modality_projections": True, "proj_bias": True, "video_gated_attn": True, "audio_gated_attn": True}
    apart |= {"audio_connector_attention_head_dim": sizes.audio_cross_attention_dim // 2}
    torch.manual_seed(14)
    connectors = LTX2TextConnectors.from_config(changed(small.connectors.config, **apart, **widths)).eval()
    modulated = {"use_prompt_embeddings": False, "cross_attn_mod": True, "audio_cross_attn_mod": True}
    transformer = diffusers.LTX2VideoTransformer3DModel.from_config(changed(sizes, **modulated)).eval()
    with torch.no_grad():  # so that the text tells in so small a model
        for projection in (connectors.video_text_proj_in, connectors.audio_text_proj_in):
            projection.weight.mul_(8)
    small.register_modules(connectors=connectors, transformer=transformer)
    return small


def flux_fill() -> Any:
    import diffusers

    small = tiny.build("flux")
    sizes = {"in_channels": 384, "out_channels": 64, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
    config = changed(small.transformer.config, **sizes)
    torch.manual_seed(11)
    transformer = diffusers.FluxTransformer2DModel.from_config(config).eval()
    kept = {name: part for name, part in small.components.items() if part is not None}
    return diffusers.FluxFillPipeline(**{**kept, "transformer": transformer})


def chroma() -> Any:
    import diffusers

    small = tiny.build("flux")
    torch.manual_seed(12)
    transformer = diffusers.ChromaTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 12, 12),
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=small.scheduler,
        vae=small.vae,
        text_encoder=small.text_encoder_2,
        tokenizer=small.tokenizer_2,
        transformer=transformer.eval(),
    )


def sdxl() -> Any:
    from diffusers import UNet2DConditionModel

    pipeline: Any = tiny.build("sdxl")
    torch.manual_seed(13)
    unet = UNet2DConditionModel.from_config(changed(pipeline.unet.config, block_out_channels=(16, 64)))
    pipeline.register_modules(unet=unet.eval(), text_encoder_2=clip(True, 13))
    return pipeline


def sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    pipeline: Any = tiny.build("sd3")
    torch.manual_seed(14)
    config = changed(pipeline.transformer.config, attention_head_dim=32, caption_projection_dim=64)
    pipeline.register_modules(
        transformer=SD3Transformer2DModel.from_config(config).eval(), text_encoder_2=clip(True, 13)
    )
    pipeline.text_encoder.text_projection.weight.data = torch.eye(WIDTH)  # SD 3's CLIP-L is not projected
    return pipeline


def _wan(transformer: dict[str, Any], seed: int) -> tuple[Any, Any]:
    from diffusers import WanTransformer3DModel

    small: Any = tiny.build("wan21-t2v")
    torch.manual_seed(seed)
    config = changed(small.transformer.config, ffn_dim=256, attention_head_dim=16, **transformer)
    return small, WanTransformer3DModel.from_config(config).eval()


def wan21_i2v() -> Any:
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    small, transformer = _wan({"in_channels": 36, "out_channels": 16, "image_dim": 32, "added_kv_proj_dim": 32}, 15)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return diffusers.WanImageToVideoPipeline(
        tokenizer=small.tokenizer,
        text_encoder=small.text_encoder,
        scheduler=small.scheduler,
        vae=diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=2).eval(),
        transformer=transformer,
        image_encoder=CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=224, patch_size=14)).eval(),
        image_processor=CLIPImageProcessor(),
    )


def wan22_5b() -> Any:
    import diffusers

    small, transformer = _wan({"in_channels": 48, "out_channels": 48}, 16)
    from fastdiffusers.pipelines.loading.parts.wan22_vae import WAN22_VAE

    vae = diffusers.AutoencoderKLWan.from_config({**WAN22_VAE, "base_dim": 8, "decoder_base_dim": 8})
    return diffusers.WanPipeline(
        tokenizer=small.tokenizer,
        text_encoder=small.text_encoder,
        scheduler=diffusers.UniPCMultistepScheduler.from_config({**small.scheduler.config, "flow_shift": 5.0}),
        vae=vae.eval(),
        transformer=transformer,
        expand_timesteps=True,
    )


def krea2() -> Any:
    """All of the 36 layers of its text encoder, of which every third is read."""
    import diffusers
    from transformers import Qwen3VLConfig, Qwen3VLModel

    small: Any = tiny.build("zimage")
    sizes = {"vocab_size": small.text_encoder.config.vocab_size, "hidden_size": WIDTH, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 36, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    torch.manual_seed(17)
    config = Qwen3VLConfig(
        text_config={**sizes, "rope_theta": 5e6, "rope_scaling": rope, "initializer_range": 0.1}, vision_config=vision
    )
    transformer = diffusers.Krea2Transformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=256,
        text_hidden_dim=WIDTH,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=64,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    for name, value in transformer.named_parameters():
        if "norm" in name or "scale_shift" in name:
            value.data.normal_(std=0.1)
    return diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
        ),
        vae=diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=2).eval(),
        text_encoder=Qwen3VLModel(config).eval(),
        tokenizer=small.tokenizer,
        transformer=transformer,
    )


BUILDERS = {
    "krea2": krea2,
    "flux-fill": flux_fill,
    "chroma": chroma,
    "sdxl": sdxl,
    "sd3": sd3,
    "wan21-i2v": wan21_i2v,
    "wan22-5b": wan22_5b,
}

"""The embedded tiny pipelines that make pictures: Flux, Flux.2, SDXL, SD3, Qwen-Image, Z-Image."""

from __future__ import annotations

from typing import Any

from .components import (
    FLUX_SCALING,
    FLUX_SHIFT,
    SD3_SCALING,
    SD3_SHIFT,
    SDXL_SCALING,
    WIDTH,
    clip_encoder,
    dynamic_flow_euler,
    flow_euler,
    flux2_vae,
    image_vae,
    qwen3_encoder,
    qwen25_vl_encoder,
    qwen_processor,
    qwen_vae,
    t5_encoder,
)
from .tokenizers import clip_tokenizer, qwen_tokenizer, t5_tokenizer


def flux(pipeline_class: str = "FluxPipeline") -> Any:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return getattr(diffusers, pipeline_class)(
        scheduler=dynamic_flow_euler(shift=3.0, base_image_seq_len=256, max_image_seq_len=4096),
        vae=image_vae(16, FLUX_SCALING, FLUX_SHIFT),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def flux2_klein() -> Any:
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

    # The pipeline stacks the hidden states 9, 18 and 27 of its encoder unless a call says otherwise. Layers of this
    # width are cheap: with 28 of them, every call is the one that the real model gets.
    text_encoder = qwen3_encoder(layers=28, causal=True)
    transformer = Flux2Transformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return Flux2KleinPipeline(
        scheduler=dynamic_flow_euler(shift=3.0, base_image_seq_len=256, max_image_seq_len=4096),
        vae=flux2_vae(),
        text_encoder=text_encoder,
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
        is_distilled=False,
    )


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return StableDiffusionXLPipeline(
        vae=image_vae(4, SDXL_SCALING, quant=True),
        text_encoder=clip_encoder(),
        text_encoder_2=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
    )


def sd3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=128,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=192,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_euler(shift=3.0),
        vae=image_vae(16, SD3_SCALING, SD3_SHIFT),
        text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def qwenimage(edit: bool = False) -> Any:
    from diffusers import QwenImageEditPipeline, QwenImagePipeline, QwenImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    components: dict[str, Any] = {
        "scheduler": dynamic_flow_euler(shift=1.0, base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=0.02),
        "vae": qwen_vae(),
        "text_encoder": qwen25_vl_encoder(),
        "tokenizer": tokenizer,
        "transformer": QwenImageTransformer2DModel(
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
    }
    if edit:
        return QwenImageEditPipeline(**components, processor=qwen_processor(tokenizer))
    return QwenImagePipeline(**components)


def zimage() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[1024, 512, 512],
    )
    return ZImagePipeline(
        scheduler=flow_euler(shift=3.0),
        vae=image_vae(16, FLUX_SCALING, FLUX_SHIFT),
        text_encoder=qwen3_encoder(layers=3, causal=False),
        tokenizer=qwen_tokenizer(),
        transformer=transformer,
    )

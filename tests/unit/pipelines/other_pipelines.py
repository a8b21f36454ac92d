"""Tiny real pipelines outside the table of families: random weights, and the components of the embedded ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.tiny.components import WIDTH, clip_encoder, flow_euler, image_vae, t5_encoder, umt5_encoder
from fastdiffusers.pipelines.tiny.tokenizers import GEMMA_VOCABULARY, clip_tokenizer, gemma_tokenizer, t5_tokenizer
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey


def _betas(name: str, **config: Any) -> Any:
    return getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **config)


def stable_diffusion() -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
    )
    return diffusers.StableDiffusionPipeline(
        vae=image_vae(4, 0.18215, quant=True),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=_betas("PNDMScheduler", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixart() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=image_vae(4, 0.13025),
        transformer=transformer,
        scheduler=_betas("DPMSolverMultistepScheduler"),
    )


def aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=WIDTH,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(),
        vae=image_vae(4, 0.13025),
        transformer=transformer,
        scheduler=flow_euler(shift=1.73),
    )


def chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow_euler(shift=3.0, use_dynamic_shifting=True),
        vae=image_vae(16, 0.3611, 0.1159),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    return diffusers.LTXPipeline(
        scheduler=flow_euler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )


def _gemma(name: str) -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"head_dim": 8, "num_key_value_heads": 2}
    config = getattr(transformers, f"{name}Config")(vocab_size=GEMMA_VOCABULARY, **sizes, **heads)
    return getattr(transformers, f"{name}Model")(config)


def lumina() -> Any:
    """Lumina-Next: it counts its time from noise to picture, and its scheduler's `num_train_timesteps` with it."""
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=2 * WIDTH,
        num_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=WIDTH,
    )
    return diffusers.LuminaPipeline(
        transformer=transformer,
        scheduler=flow_euler(),
        vae=image_vae(4, 0.13025),
        text_encoder=_gemma("Gemma"),
        tokenizer=gemma_tokenizer(),
    )


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=16,
        hidden_size=WIDTH,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow_euler(shift=6.0),
        vae=image_vae(16, 0.3611, 0.1159),
        text_encoder=_gemma("Gemma2"),
        tokenizer=gemma_tokenizer(),
    )


def cogvideox(pipeline_class: str = "CogVideoXPipeline") -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=16,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return getattr(diffusers, pipeline_class)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def wan_5b() -> Any:
    """Wan 2.2's small model: one expert, a VAE with 48 channels that reads patches, timesteps per token."""
    vae = diffusers.AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        latents_mean=[0.1 * index - 2 for index in range(48)],
        latents_std=[1 + 0.02 * index for index in range(48)],
    )
    pipeline: Any = tiny.build("wan22-t2v")
    transformer = type(pipeline.transformer).from_config(pipeline.transformer.config, in_channels=48, out_channels=48)
    return diffusers.WanPipeline(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        vae=vae,
        scheduler=pipeline.scheduler,
        transformer=transformer,
        expand_timesteps=True,
    )


def around(family: str, pipeline_class: str) -> Any:
    """The models of an embedded tiny pipeline in another class of diffusers."""
    return getattr(diffusers, pipeline_class)(**tiny.build(family).components)


BUILDERS: dict[str, Callable[[], Any]] = {
    "aura_flow": aura_flow,
    "chroma": chroma,
    "cogvideox": cogvideox,
    "ltx": ltx,
    "lumina": lumina,
    "lumina2": lumina2,
    "pixart": pixart,
    "stable_diffusion": stable_diffusion,
    "wan_5b": wan_5b,
}


def build(name: str | Callable[[], Any]) -> Any:
    """One of `BUILDERS`, or what a function builds: always the same weights, ready to run on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = BUILDERS[name]() if isinstance(name, str) else name()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def loaded(pipeline: Any) -> LoadedPipeline:
    """A pipeline as the cache would hold it."""
    return LoadedPipeline(LoadKey("test"), pipeline, family_of(pipeline), torch.device("cpu"), torch.float32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

"""Tiny, randomly initialised, real pipelines, built without a network, a download or a tokenizer file.

Each has the classes, the components and the latent layout of its big model, in a few megabytes: the demo, the tests and
the embedded example workflow run through exactly the code that the big models run through. The pictures are patterns.

Weights depend on the family's name and the seed alone, so that two processes build the same pipeline.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
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
    umt5_encoder,
    wan_scheduler,
    wan_vae,
)
from .ltx2 import ltx2
from .tokenizers import clip_tokenizer, qwen_tokenizer, t5_tokenizer

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

PIPELINE_CLASSES = {
    "flux": "FluxPipeline",
    "flux-kontext": "FluxKontextPipeline",
    "flux2-klein": "Flux2KleinPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "qwenimage": "QwenImagePipeline",
    "qwenimage-edit": "QwenImageEditPipeline",
    "zimage": "ZImagePipeline",
    "wan22-t2v": "WanPipeline",
    "wan22-i2v": "WanImageToVideoPipeline",
    "ltx2-t2v": "LTX2Pipeline",
    "ltx2-i2v": "LTX2ImageToVideoPipeline",
}
"""Tiny family -> class in diffusers."""
TINY_SOUND_FAMILIES = ("ltx2-t2v", "ltx2-i2v")
"""Those that give video with sound; older releases of diffusers do not have them."""
TINY_FAMILIES = tuple(name for name in PIPELINE_CLASSES if name not in TINY_SOUND_FAMILIES)


def build(name: str, seed: int = 0, dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """Build one tiny pipeline on the CPU, in evaluation mode.

    Args:
        name: one of `TINY_FAMILIES` or `TINY_SOUND_FAMILIES`.
        seed: chooses the random weights. The global random state is left as it was.
        dtype: of all weights; float32 when None.

    Raises:
        InputError: `name` is not a tiny family, or the installed diffusers is too old for it.
    """
    if name not in _BUILDERS:
        raise InputError("tiny pipeline", name, "there is none of that name", f"choose one of: {', '.join(_BUILDERS)}")
    import diffusers
    import torch

    if not hasattr(diffusers, PIPELINE_CLASSES[name]):
        reason = f"diffusers {diffusers.__version__} has no {PIPELINE_CLASSES[name]}"
        raise InputError("tiny pipeline", name, reason, "update diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        pipeline = _BUILDERS[name]()
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                _spread_weights(component)
                component.eval().requires_grad_(False)
                if dtype not in (None, torch.float32):
                    component.to(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Build and save as a diffusers folder that `from_pretrained` reads back; returns the folder."""
    path = Path(folder)
    pipeline: Any = build(name, seed)
    pipeline.save_pretrained(path)
    return path


def _spread_weights(module: torch.nn.Module) -> None:
    """Fill the parameters that libraries leave at zero or unset, so that no part of a model is switched off.

    Zero is what training starts from, but a zeroed gate hides mistakes from a test, and `torch.empty` pad tokens
    would differ between two processes.
    """
    for name, parameter in module.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf.endswith("pad_token"):
            parameter.data.zero_()
        elif leaf != "bias" and not parameter.data.any():
            parameter.data.normal_(std=0.02)


# --- families ---------------------------------------------------------------------------------------------------------


def _flux(pipeline_class: str = "FluxPipeline") -> Any:
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


def _flux2_klein() -> Any:
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


def _sdxl() -> Any:
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
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
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


def _sd3() -> Any:
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


def _qwenimage(edit: bool = False) -> Any:
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


def _zimage() -> Any:
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


def _wan_expert(in_channels: int) -> Any:
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


def _wan(image_to_video: bool) -> Any:
    from diffusers import WanImageToVideoPipeline, WanPipeline

    # Image-to-video: 16 noisy channels, 16 of the encoded first frame, 4 of the mask.
    channels = 36 if image_to_video else 16
    pipeline_class = WanImageToVideoPipeline if image_to_video else WanPipeline
    return pipeline_class(
        tokenizer=t5_tokenizer(),
        text_encoder=umt5_encoder(),
        vae=wan_vae(),
        scheduler=wan_scheduler(),
        transformer=_wan_expert(channels),
        transformer_2=_wan_expert(channels),
        boundary_ratio=0.9 if image_to_video else 0.875,
    )


_BUILDERS: dict[str, Callable[[], Any]] = {
    "flux": _flux,
    "flux-kontext": lambda: _flux("FluxKontextPipeline"),
    "flux2-klein": _flux2_klein,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "qwenimage": _qwenimage,
    "qwenimage-edit": lambda: _qwenimage(edit=True),
    "zimage": _zimage,
    "wan22-t2v": lambda: _wan(image_to_video=False),
    "wan22-i2v": lambda: _wan(image_to_video=True),
    "ltx2-t2v": lambda: ltx2("LTX2Pipeline"),
    "ltx2-i2v": lambda: ltx2("LTX2ImageToVideoPipeline"),
}

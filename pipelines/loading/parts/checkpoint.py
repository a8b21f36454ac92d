"""Configurations and tokenizers of whole checkpoints in one file, for which diffusers else asks the Hub.

Sources of the configurations, all in agreement with what is here:
- AUTOMATIC1111's and Stability's `sd_xl_base.yaml` and `v1-inference.yaml` as diffusers reads them
  (`create_unet_diffusers_config_from_ldm`), and the copies of stabilityai/stable-diffusion-xl-base-1.0 and
  runwayml/stable-diffusion-v1-5 on GitHub (DeveloperRadleighPompei/sdxl, HDRJ-One/runwayml-stable-diffusion-v1-5).
- ComfyUI, `comfy/supported_models.py`, `comfy/clip_config_bigg.json`, `comfy/sdxl_clip.py`: widths, depths, scaling
  factors, and that the second encoder of SDXL is padded with token 0.
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from . import encoders
from .component import Config

CLIP_G: Config = {
    **encoders.CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_VAE: Config = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}
_BETAS: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

PUBLISHED: dict[str, dict[str, tuple[str, str, Config]]] = {
    "xl_base": {
        "unet": (
            "diffusers",
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "attention_head_dim": [5, 10, 20],
                "transformer_layers_per_block": [1, 2, 10],
                "use_linear_projection": True,
                "cross_attention_dim": 2048,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        "vae": (
            "diffusers",
            "AutoencoderKL",
            {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        ),
        "text_encoder": ("transformers", "CLIPTextModel", encoders.CLIP_L),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", CLIP_G),
        "scheduler": ("diffusers", "EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading"}),
    },
    "v1": {
        "unet": (
            "diffusers",
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
                "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
                "attention_head_dim": 8,
                "cross_attention_dim": 768,
            },
        ),
        "vae": ("diffusers", "AutoencoderKL", {**_VAE, "sample_size": 512, "scaling_factor": 0.18215}),
        "text_encoder": ("transformers", "CLIPTextModel", encoders.CLIP_L),
        "scheduler": ("diffusers", "PNDMScheduler", {**_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False}),
    },
}
"""diffusers' name for a kind of checkpoint -> component -> library, class, configuration."""
TOKENIZERS = {"xl_base": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}, "v1": {"tokenizer": "<|endoftext|>"}}
"""Kind of checkpoint -> tokenizer -> what a prompt is filled up with. "!" is token 0."""
_ABSENT = {"v1": ("safety_checker", "feature_extractor", "image_encoder"), "xl_base": ()}


def write_configurations(kind: str, tensors: Container[str], pipeline: str, comfyui: str, folder: Path) -> bool:
    """Write the configurations and tokenizers of a diffusers folder, as `from_single_file` takes them.

    Args:
        kind: diffusers' name for it.
        tensors: names in the file: some models mark there that they predict the velocity.
        pipeline: class in diffusers.
        comfyui: folder of the ComfyUI whose tokenizer is used.

    Returns:
        whether it is a kind that is known, and the tokenizer is there.
    """
    source = Path(comfyui) / encoders.CLIP_TOKENIZER.folder
    if not comfyui or kind not in PUBLISHED or not (source / "vocab.json").is_file():
        return False
    index: dict[str, Any] = {"_class_name": pipeline, **{name: [None, None] for name in _ABSENT[kind]}}
    for name, (library, class_name, config) in PUBLISHED[kind].items():
        index[name] = [library, class_name]
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        written = {**config, "_class_name": class_name}
        if name == "scheduler":
            written |= prediction(tensors)
        (folder / name).mkdir()
        (folder / name / file).write_text(json.dumps(written), encoding="utf-8")
    from transformers import CLIPTokenizer

    for name, pad in TOKENIZERS[kind].items():
        index[name] = ["transformers", "CLIPTokenizer"]
        options = {**encoders.CLIP_TOKENIZER.options, "pad_token": pad}
        CLIPTokenizer.from_pretrained(source, local_files_only=True, **options).save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return True


def prediction(tensors: Container[str]) -> Config:
    """What a checkpoint's own marks say of its scheduler, as ComfyUI reads them."""
    if "v_pred" not in tensors:
        return {}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in tensors else {}
    return {"prediction_type": "v_prediction", **zero}

"""What the blocks of a modular model do not say: which classical entry it shares, its sizes, frames and latents.

Steps, guidance and clip lengths that are not here are the defaults of the blocks themselves. Sources are the files of
diffusers' `modular_pipelines` that are named beside the entries.
"""

from __future__ import annotations

from typing import Any

SCALE = "guidance_scale"

CLASSICAL = {
    "Flux2KleinBaseModularPipeline": "Flux2KleinPipeline",
    "Flux2KleinModularPipeline": "Flux2KleinPipeline",
    "Flux2ModularPipeline": "Flux2Pipeline",
    "FluxKontextModularPipeline": "FluxKontextPipeline",
    "FluxModularPipeline": "FluxPipeline",
    "QwenImageEditModularPipeline": "QwenImageEditPipeline",
    "QwenImageEditPlusModularPipeline": "QwenImageEditPlusPipeline",
    "QwenImageModularPipeline": "QwenImagePipeline",
    "StableDiffusion3ModularPipeline": "StableDiffusion3Pipeline",
    "StableDiffusionXLModularPipeline": "StableDiffusionXLPipeline",
    "Wan22Image2VideoModularPipeline": "WanImageToVideoPipeline",
    "Wan22ModularPipeline": "WanPipeline",
    "WanImage2VideoModularPipeline": "WanImageToVideoPipeline",
    "WanModularPipeline": "WanPipeline",
    "ZImageModularPipeline": "ZImagePipeline",
}
"""Modular class -> classical class of the same model."""

_MEGAPIXEL: dict[str, Any] = {"width": 1024, "height": 1024, "size_multiple": 16}
_WAN_VAE: dict[str, Any] = {"latent_channels": 16, "latent_stride": 8, "comfy_format": "Wan21"}
"""The VAE of Qwen-Image is that of Wan 2.1 for pictures."""
_FLUX2_VAE: dict[str, Any] = {
    "layout": "patches",
    "latent_channels": 128,
    "latent_stride": 16,
    "comfy_format": "Flux2",
}
# flux3/before_denoise.py (default sizes, divisibility), flux3/prompt_upsampler.py (MAX_REFERENCES)
_FLUX3 = _MEGAPIXEL | _FLUX2_VAE | {"images": "optional", "max_images": 10}
# anima/modular_pipeline.py (default_sample_size), anima/before_denoise.py (divisibility), anima/decoders.py
_ANIMA = _MEGAPIXEL | _WAN_VAE | {"name": "anima", "layout": "video", "images": "none", "max_images": 0}
# krea2/modular_pipeline.py (default sizes, patch size), krea2/decoders.py
_KREA2 = _MEGAPIXEL | _WAN_VAE | {"layout": "packed"}
# qwenimage21/before_denoise.py: output_resolution, multiples of 32; qwenimage21/decoders.py
_QWEN21 = {
    "width": 1024,
    "height": 1024,
    "size_multiple": 32,
    "images": "optional",
    "max_images": 8,
    "alpha": True,
    "layout": "normalized",
    "latent_channels": 64,
    "latent_stride": 16,
}
# minimax_h3/modular_pipeline.py: 24 frames a second, 17n + 5 frames, 5 to 15 seconds, a canvas of 768 x 1344, multiples
# of 32; minimax_h3/before_denoise.py: a schedule of N timesteps is N - 1 evaluations
_MINIMAX_H3 = {
    "name": "minimax-h3",
    "width": 1344,
    "height": 768,
    "size_multiple": 32,
    "most_aspect": 4.0,
    "min_steps": 2,
    "steps_less": 1,
    "num_frames": 124,
    "frame_step": 17,
    "frame_rest": 5,
    "min_frames": 124,
    "max_frames": 345,
    "frame_rate": 24.0,
    "frame_rate_assumed": False,
    "images": "optional",
    "sound": True,
    "layout": "normalized",
    "row_patch": 2,
    "latent_channels": 24,
    "latent_stride": 16,
    "temporal_stride": 4,
    "comfy_format": "MiniMaxH3Video",
}
# ltx/modular_pipeline.py, ltx2/modular_pipeline.py, echo/modular_pipeline.py: a VAE of 32 pixels and 8 frames a cell
_LTX: dict[str, Any] = {"size_multiple": 32, "frame_step": 8}
_LTX2 = _LTX | {"num_frames": 121}
"""Without a number of frames a head that guesses the length would be needed; this is the classical form's."""
# wan/before_denoise.py; the rate is the classical Wan's
_WAN: dict[str, Any] = {
    "width": 832,
    "height": 480,
    "size_multiple": 16,
    "frame_step": 4,
    "frame_rate": 16.0,
    "frame_rate_assumed": False,
}

MODELS: dict[str, dict[str, Any]] = {
    "AnimaModularPipeline": _ANIMA,
    # cosmos/before_denoise.py
    "Cosmos3DistilledModularPipeline": {"size_multiple": 16, "frame_step": 4},
    "Cosmos3OmniModularPipeline": {"size_multiple": 16, "frame_step": 4},
    "EchoModularPipeline": _LTX,
    # ernie_image/modular_pipeline.py
    "ErnieImageModularPipeline": _MEGAPIXEL,
    "Flux3DistilledModularPipeline": _FLUX3 | {"name": "flux3-distilled"},
    "Flux3ModularPipeline": _FLUX3 | {"name": "flux3"},
    # hunyuan_video1_5/modular_pipeline.py; without a size the pipeline takes its own from the model's
    "HunyuanVideo15ModularPipeline": {"size_multiple": 16, "frame_step": 4},
    # ideogram4/modular_pipeline.py; its default guidance is a list for 48 steps
    "Ideogram4ModularPipeline": {
        "width": 2048,
        "height": 2048,
        "size_multiple": 16,
        "guidance_argument": "guidance_schedule",
    },
    "Krea2ModularPipeline": _KREA2 | {"name": "krea2"},
    "Krea2TurboModularPipeline": _KREA2 | {"name": "krea2-turbo"},
    "LTX25ModularPipeline": _LTX2,
    "LTX2ModularPipeline": _LTX2,
    "LTXModularPipeline": _LTX,
    "MiniMaxH3ModularPipeline": _MINIMAX_H3,
    "QwenImage21ModularPipeline": _QWEN21 | {"name": "qwenimage21"},
    "QwenImage21TurboModularPipeline": _QWEN21 | {"name": "qwenimage21-turbo"},
    "Wan22VaceModularPipeline": _WAN,
}
"""Modular class -> fields of its `Family`."""

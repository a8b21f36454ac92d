"""What the blocks of a modular model do not say: which classical entry it shares, its sizes, frames and rates."""

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

MODELS: dict[str, dict[str, Any]] = {}
"""Modular class -> fields of its `Family`."""

"""The variants of a family: what a checkpoint's own configuration says about how it is to be called."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .families import Family


def variant_of(family: Family, pipeline: Any) -> Family:
    """The family with the recommendations that belong to this checkpoint, read from its configuration."""
    config = pipeline.config
    if family.name == "flux" and not pipeline.transformer.config.guidance_embeds:
        return replace(family, steps=4, guidance=0.0, guidance_argument="")
    if family.name == "flux2-klein" and config.get("is_distilled"):
        return replace(family, steps=4, guidance=1.0)
    if family.name == "zimage" and pipeline.scheduler.config.get("shift", 3.0) > 3.0:
        return replace(family, steps=50, guidance=4.0)
    if family.name in ("wan-t2v", "wan-i2v"):
        return _wan_variant(family, config)
    if family.layout == "tokens" and not pipeline.transformer.config.get("cross_attn_mod"):
        # LTX-2.0; the pipeline's defaults are those of 2.3 and later.
        extra = (("spatio_temporal_guidance_blocks", (29,)), ("use_cross_timestep", False))
        return replace(family, steps=40, extra=extra)
    return family


def _wan_variant(family: Family, config: Any) -> Family:
    if config.get(
        "expand_timesteps"
    ):  # the 5B model with its own VAE: 48 channels, 16 pixels a cell, 24 frames a second
        return replace(
            family,
            second_guidance=False,
            width=1280,
            height=704,
            size_multiple=32,
            num_frames=121,
            frame_rate=24.0,
            latent_channels=48,
            latent_stride=16,
            comfy_format="Wan22",
        )
    if config.get("boundary_ratio") is None:
        return replace(family, second_guidance=False)
    if family.name == "wan-i2v":
        return replace(family, steps=40, guidance=3.5)
    return replace(family, steps=40, guidance=4.0, guidance_2=3.0)

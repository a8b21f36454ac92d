"""Which family a pipeline belongs to, and which variant of it this checkpoint is.

A class that is not in the table still runs: what can be known of it is read from its call signature.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from .families import FAMILIES, Family

_BY_CLASS = {name: family for family in FAMILIES for name in family.classes}


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline object, a pipeline class, or a class name; generic for a class that is not in the table.

    An object also tells which variant it is, and with that the recommended steps, guidance and size: a distilled Flux
    takes 4 steps, a two-expert Wan two guidance scales.
    """
    if isinstance(pipeline, str):
        if pipeline in _BY_CLASS:
            return _BY_CLASS[pipeline]
        import diffusers

        found = getattr(diffusers, pipeline, None)
        return _from_signature(found) if isinstance(found, type) else Family(pipeline, (pipeline,), size_multiple=8)
    pipeline_class = pipeline if isinstance(pipeline, type) else type(pipeline)
    family = _BY_CLASS.get(pipeline_class.__name__) or _from_signature(pipeline_class)
    return family if isinstance(pipeline, type) else _variant_of(family, pipeline)


def _from_signature(pipeline_class: type) -> Family:
    """What the call of an unknown class says about itself: its arguments and their defaults.

    A default of None stays None: what it stands for is the pipeline's to decide, by its models' configuration.
    """
    parameters = inspect.signature(pipeline_class.__call__).parameters

    def default(name: str) -> Any:
        value = parameters[name].default if name in parameters else None
        return None if value is inspect.Parameter.empty or isinstance(value, list | tuple) else value

    guidance = next((name for name in ("guidance_scale", "true_cfg_scale") if name in parameters), "")
    scale = default(guidance)
    missing = [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    frames = next((name for name in ("num_frames", "frames") if name in parameters), "")
    rate = default("frame_rate") or default("fps")
    name = pipeline_class.__name__
    return Family(
        name,
        (name,),
        guidance_argument=guidance,
        second_guidance="guidance_scale_2" in parameters,
        negative_prompt="negative_prompt" in parameters,
        steps=int(default("num_inference_steps") or 28),
        empty_negative="" if name.startswith("EasyAnimate") else None,  # it fails with None
        guidance=None if scale is None else float(scale),
        width=int(default("width") or 0),
        height=int(default("height") or 0),
        size_multiple=8,
        video=bool(frames),
        num_frames=int(default(frames) or 0) if frames else 1,
        frame_rate=float(rate or 16.0) if frames else None,
        frames_argument=frames or "num_frames",
        required=tuple(name for name in missing if name not in ("self", "prompt", "image")),
        max_frames=4096 if frames else 1,
        images="required" if "image" in missing else "optional" if "image" in parameters else "none",
        max_images=1 if "image" in parameters else 0,
        last_image="last_image" in parameters,
    )


def small(family: Family) -> Family:
    """The family with recommendations for its embedded tiny pipeline, which a CPU can follow."""
    extra = dict(family.extra)
    if family.name == "flux-kontext":
        extra["_auto_resize"] = False  # it would enlarge its reference image to a megapixel
    if family.layout == "tokens":
        extra["spatio_temporal_guidance_blocks"] = (1,)  # there are two, not 48
    frames = 9 if family.video else 1
    return replace(family, steps=4, width=128, height=128, num_frames=frames, extra=tuple(extra.items()))


def _variant_of(family: Family, pipeline: Any) -> Family:
    """The family with the recommendations that belong to this checkpoint, read from its configuration."""
    config = pipeline.config
    family = _as_built(family, pipeline)
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


def _as_built(family: Family, pipeline: Any) -> Family:
    """The family with this checkpoint's own VAE: the channels of its latents, and their stride."""
    if family.layout not in ("plain", "packed", "video") or pipeline.vae is None:
        return family
    config = pipeline.vae.config
    stride = getattr(pipeline, "vae_scale_factor_spatial", None) or getattr(pipeline, "vae_scale_factor", None)
    channels = config.get("z_dim") or config.get("latent_channels")
    return replace(
        family,
        latent_channels=int(channels or family.latent_channels),
        latent_stride=int(stride or family.latent_stride),
    )


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

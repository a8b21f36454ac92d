"""Which family a pipeline belongs to, and which variant of it this checkpoint is.

A class that is not in the table still runs: what can be known of it is read from its call signature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..optimizations.components import is_modular_class
from .classes.guidance import GUIDER, guidance_of_model
from .classes.models import nets_in, with_models
from .classes.signature import family_from_signature
from .families import FAMILIES, NETS, Family
from .modular.family import classical_class, modular_family

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
        return family_of(found) if isinstance(found, type) else Family(pipeline, (pipeline,), size_multiple=8)
    pipeline_class = pipeline if isinstance(pipeline, type) else type(pipeline)
    family = _of_class(pipeline_class)
    if isinstance(pipeline, type):
        return family
    parts = {name: _configuration(part) for name, part in pipeline.components.items() if part is not None}
    return _variant_of(_as_built(family, pipeline), pipeline_class, pipeline.config, parts)


def _of_class(pipeline_class: type) -> Family:
    if is_modular_class(pipeline_class) and getattr(pipeline_class, "default_blocks_name", None):  # not the base class
        return modular_family(pipeline_class, _BY_CLASS.get(classical_class(pipeline_class)))
    return _BY_CLASS.get(pipeline_class.__name__) or family_from_signature(pipeline_class)


def family_of_configuration(
    pipeline_class: type, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
) -> Family:
    """The family, and its variant, of a pipeline that is not loaded.

    Args:
        config: of the pipeline: what its `model_index.json` holds.
        parts: name of each component that is there -> its configuration, {} where it is not read.
    """
    family = _of_class(pipeline_class)
    return _variant_of(family, pipeline_class, config, parts)


def _configuration(part: Any) -> Mapping[str, Any]:
    config = getattr(part, "config", None)
    nets = nets_in(part)
    return {NETS: nets} if nets else config if isinstance(config, Mapping) else {}


def small(family: Family, trained: bool = False, one_expert: bool = False) -> Family:
    """The family with recommendations for its embedded tiny pipeline, which a CPU can follow.

    Args:
        trained: its weights are; the size and the steps are those that it was trained for.
        one_expert: of a class that may have two, it has one.
    """
    if one_expert:
        family = replace(family, second_guidance=False)
    extra = dict(family.extra)
    if family.name == "flux-kontext":
        extra["_auto_resize"] = False  # it would enlarge its reference image to a megapixel
    if family.layout == "tokens":
        extra["spatio_temporal_guidance_blocks"] = (1,)  # there are two, not 48
    frames = max(9, family.min_frames) if family.video else 1
    steps, edge = (8, 192) if trained else (4, 128)
    return replace(family, steps=steps, width=edge, height=edge, num_frames=frames, extra=tuple(extra.items()))


def _variant_of(
    family: Family, pipeline_class: type, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
) -> Family:
    """The family with the recommendations that belong to this checkpoint, read from its configuration."""
    return with_models(_trained(family, pipeline_class, config, parts), pipeline_class.__name__, parts)


def _trained(
    family: Family, pipeline_class: type, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
) -> Family:
    """The family with what this checkpoint was trained for."""
    model, scheduler = parts.get("transformer", {}), parts.get("scheduler", {})
    if not family.known and is_modular_class(pipeline_class):
        return family
    if not family.known or family.scheduling is not None:  # outside the table
        return _unknown_variant(family, pipeline_class, config, model)
    if family.name == "flux" and not model.get("guidance_embeds"):  # both forms of it
        return replace(family, steps=4, guidance=0.0, guidance_argument="")
    if family.name == "sdxl":
        return _of_trained_size(family, parts.get("unet", {}), parts.get("vae", {}))
    if family.name == "flux2-klein" and config.get("is_distilled"):
        return replace(family, steps=4, guidance=1.0, negative_above=math.inf)  # no guidance makes it run twice
    if family.name == "zimage" and scheduler.get("shift", 3.0) > 3.0:
        # The classical form adds the difference to the guided side: 4 there is 5 here.
        return replace(family, steps=50, guidance=5.0 if family.guidance_argument == GUIDER else 4.0)
    if family.name in ("wan-t2v", "wan-i2v"):
        return _wan_variant(family, config)
    if family.layout == "tokens":
        family = _with_frame_step(family, parts.get("vae", {}))
    if family.layout == "tokens" and not model.get("cross_attn_mod"):
        # LTX-2.0; the pipeline's defaults are those of 2.3 and later.
        extra = (("spatio_temporal_guidance_blocks", (29,)), ("use_cross_timestep", False))
        return replace(family, steps=40, extra=extra)
    return family


def _with_frame_step(family: Family, vae: Mapping[str, Any]) -> Family:
    """The family with the frames that a VAE of LTX-2's kind makes of one latent frame."""
    stages = vae.get("spatio_temporal_scaling")
    step = vae.get("temporal_compression_ratio")
    if step is None and isinstance(stages, list | tuple):
        step = vae.get("patch_size_t", 1) * 2 ** sum(map(bool, stages))
    if not isinstance(step, int) or step < 1:
        return family
    return replace(family, frame_step=step, temporal_stride=step)


def _of_trained_size(family: Family, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Family:
    """The family with the size that the UNet says it was trained for: SDXL Turbo makes pictures of half the edge."""
    cells, blocks = unet.get("sample_size"), vae.get("block_out_channels")
    if not isinstance(cells, int) or not blocks:
        return family
    edge = min(family.max_size, cells * 2 ** (len(blocks) - 1))
    return replace(family, width=edge, height=edge)


def _unknown_variant(
    family: Family, pipeline_class: type, config: Mapping[str, Any], model: Mapping[str, Any]
) -> Family:
    argument = guidance_of_model(pipeline_class, model.get("guidance_embeds"), family.guidance_argument)
    if argument != family.guidance_argument:
        own = None if argument in ("", GUIDER) else family.guidance
        family = replace(family, guidance_argument=argument, guidance=own)
    if family.second_guidance and config.get("boundary_ratio") is None:
        family = replace(family, second_guidance=False)
    if family.name.startswith("CogVideoX") and model.get("patch_size_t") is not None:
        family = replace(family, frame_rate=16.0)  # CogVideoX 1.5
    return family


def _as_built(family: Family, pipeline: Any) -> Family:
    """The family with this checkpoint's own VAE: the channels of its latents, and their stride."""
    if family.layout not in ("plain", "packed", "patches", "tokens", "video", "normalized") or pipeline.vae is None:
        return family
    config = pipeline.vae.config
    stride = getattr(pipeline, "vae_scale_factor_spatial", None) or getattr(pipeline, "vae_scale_factor", None)
    stride = stride or getattr(pipeline.vae, "spatial_compression_ratio", None)
    channels = config.get("z_dim") or config.get("latent_channels")
    patch = 2 if family.layout == "patches" else 1  # Flux.2's cells are 2 x 2 of its VAE's
    return replace(
        family,
        latent_channels=int(channels) * patch**2 if channels else family.latent_channels,
        latent_stride=int(stride) * patch if stride else family.latent_stride,
    )


def _wan_variant(family: Family, config: Mapping[str, Any]) -> Family:
    if config.get("expand_timesteps"):  # the 5B model: its own VAE, 48 channels, 16 pixels a cell, 24 frames a second
        text = family.name == "wan-t2v"
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
            images="optional" if text else family.images,
            max_images=1,
            image_to_video="WanImageToVideoPipeline" if text else "",
            last_image=False,  # the image-to-video class takes one, and never reads it for this model
        )
    if config.get("boundary_ratio") is None:
        return replace(family, second_guidance=False)
    if family.name == "wan-i2v":
        return replace(family, steps=40, guidance=3.5)
    return replace(family, steps=40, guidance=4.0, guidance_2=3.0)

"""Wan 2.2's own VAE, that of its 5B model: 16 pixels a cell, 48 channels.

Sources of the configuration, both in agreement with what is here:
- diffusers, `scripts/convert_wan_to_diffusers.py`: its configuration and its names, which diffusers' reader of single
  files does not know.
- ComfyUI, `comfy.latent_formats.Wan22`: the same means and deviations.
"""

from __future__ import annotations

import re

from .component import Component, Config, Shapes, Weights

MEANS = """
-0.2289 -0.0052 -0.1323 -0.2339 -0.2799 0.0174 0.1838 0.1557 -0.1382 0.0542 0.2813 0.0891
0.1570 -0.0098 0.0375 -0.1825 -0.2246 -0.1207 -0.0698 0.5109 0.2665 -0.2108 -0.2158 0.2502
-0.2055 -0.0322 0.1109 0.1567 -0.0729 0.0899 -0.2799 -0.1230 -0.0313 -0.1649 0.0117 0.0723
-0.2839 -0.2083 -0.0520 0.3748 0.0152 0.1957 0.1433 -0.2944 0.3573 -0.0548 -0.1681 -0.0667
"""
DEVIATIONS = """
0.4765 1.0364 0.4514 1.1677 0.5313 0.4990 0.4818 0.5013 0.8158 1.0344 0.5894 1.0901
0.6885 0.6165 0.8454 0.4978 0.5759 0.3523 0.7135 0.6804 0.5833 1.4146 0.8986 0.5659
0.7069 0.5338 0.4889 0.4917 0.4069 0.4999 0.6866 0.4093 0.5709 0.6065 0.6415 0.4944
0.5726 1.2042 0.5458 1.6887 0.3971 1.0600 0.3943 0.5537 0.5444 0.4089 0.7468 0.7744
"""
WAN22_VAE: Config = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "clip_output": False,
    "latents_mean": [float(value) for value in MEANS.split()],
    "latents_std": [float(value) for value in DEVIATIONS.split()],
}
_TOP = {"conv1.": "quant_conv.", "conv2.": "post_quant_conv."}
_HALVES = {
    ".conv1.": ".conv_in.",
    ".head.0.": ".norm_out.",
    ".head.2.": ".conv_out.",
    ".middle.0.": ".mid_block.resnets.0.",
    ".middle.1.": ".mid_block.attentions.0.",
    ".middle.2.": ".mid_block.resnets.1.",
    ".downsamples.": ".down_blocks.",
    ".upsamples.": ".up_blocks.",
}
"""The file's name of a layer of the encoder or decoder -> diffusers'."""
_BLOCK = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_INNER = re.compile(r"(.*)\.(down|up)samples\.(\d+)\.(.*)")


def _is_wan22_vae(shapes: Shapes) -> bool:
    first = shapes.get("decoder.conv1.weight", ())
    return "decoder.upsamples.0.upsamples.0.residual.0.gamma" in shapes and len(first) == 5 and first[1] == 48


def _rename(weights: Weights, config: Config) -> Weights:
    return {renamed(key): value for key, value in weights.items()}


def renamed(key: str) -> str:
    """diffusers' name of a tensor."""
    half, dot, rest = key.partition(".")
    if half not in ("encoder", "decoder"):
        return next((new + key.removeprefix(old) for old, new in _TOP.items() if key.startswith(old)), key)
    rest = dot + rest
    begin = next((old for old in _HALVES if rest.startswith(old)), "")
    name = half + _HALVES.get(begin, "") + rest.removeprefix(begin)
    for old, new in _BLOCK.items():
        name = name.replace("." + old, "." + new)
    if inner := _INNER.fullmatch(name):
        outer, way, number, layer = inner.groups()
        resamples = layer.startswith(("resample.", "time_conv."))
        name = f"{outer}.{way}sampler.{layer}" if resamples else f"{outer}.resnets.{number}.{layer}"
    return name


WAN22_COMPONENT = Component(
    "diffusers",
    "AutoencoderKLWan",
    "Wan 2.2's VAE, usually wan2.2_vae.safetensors",
    _is_wan22_vae,
    lambda shapes: dict(WAN22_VAE),
    _rename,
)

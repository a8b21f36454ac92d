"""VAEs that ComfyUI's users have as files.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_flux_to_diffusers.py`: FLUX.1's VAE is SD3's with scaling factor 0.3611 and shift 0.1159;
  edkamesh/FluX-optimized on GitHub, a copy of black-forest-labs/FLUX.1-schnell's configurations.
- diffusers, `AutoencoderKLFlux2`: FLUX.2's VAE is its defaults; `scripts/convert_flux2_to_diffusers.py`: its names.
- diffusers, `AutoencoderKLWan` and `AutoencoderKLQwenImage`: their defaults are the published models', means and
  deviations included; ComfyUI's `comfy.latent_formats.Wan21` has the same.
- diffusers, `scripts/convert_wan_to_diffusers.py`: Wan 2.2's 5B model; `comfy.latent_formats.Wan22`: the same numbers.
"""

from __future__ import annotations

from .component import Component, Config, Shapes, Weights

FLUX_VAE: Config = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

FLUX2_VAE: Config = {
    **{name: FLUX_VAE[name] for name in ("down_block_types", "up_block_types", "block_out_channels")},
    "layers_per_block": 2,
    "latent_channels": 32,
}


def _latent_channels(shapes: Shapes, name: str, dimensions: int) -> int:
    shape = shapes.get(name, ())
    return shape[1] if len(shape) == dimensions else 0


def _is_flux_vae(shapes: Shapes) -> bool:
    plain = "decoder.mid.block_1.norm1.weight" in shapes and "post_quant_conv.weight" not in shapes
    return plain and _latent_channels(shapes, "decoder.conv_in.weight", 4) == 16


def _is_wan_vae(shapes: Shapes) -> bool:
    return "decoder.middle.0.residual.0.gamma" in shapes and _latent_channels(shapes, "decoder.conv1.weight", 5) == 16


def _rename_ldm(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return dict(convert_ldm_vae_checkpoint(weights, config))


def _rename_wan(weights: Weights, config: Config) -> Weights:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    return dict(convert_wan_vae_to_diffusers(weights))


def _is_flux2_vae(shapes: Shapes) -> bool:
    return "bn.running_mean" in shapes and _latent_channels(shapes, "decoder.conv_in.weight", 4) == 32


def _rename_flux2(weights: Weights, config: Config) -> Weights:
    """Latent diffusion's names, the statistics of the latents besides, and two layers inside of the halves."""
    import torch

    inner = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
    plain: Weights = {}
    for key, value in weights.items():
        beginning = next((each for each in inner if key.startswith(each)), "")
        plain[inner.get(beginning, "") + key.removeprefix(beginning)] = value
    renamed = _rename_ldm(plain, config)
    renamed |= {key: value for key, value in plain.items() if key.startswith("bn.")}
    return renamed | {"bn.num_batches_tracked": torch.zeros((), dtype=torch.long)}


def _flux_not_told(config: Config) -> str:
    numbers = f"scaling factor {config.get('scaling_factor')} and shift {config.get('shift_factor')}"
    return f"; taken as FLUX.1's, {numbers}, to go with the diffusion model: SD3's VAE has the same tensors"


def _wan_not_told(other: str) -> str:
    return f"; taken as the VAE of the diffusion model: that of {other} has the same tensors"


FLUX_COMPONENT = Component(
    "diffusers",
    "AutoencoderKL",
    "FLUX.1's VAE, usually ae.safetensors",
    _is_flux_vae,
    lambda shapes: dict(FLUX_VAE),
    _rename_ldm,
    _flux_not_told,
)
FLUX2_COMPONENT = Component(
    "diffusers",
    "AutoencoderKLFlux2",
    "FLUX.2's VAE, usually flux2-vae.safetensors",
    _is_flux2_vae,
    lambda shapes: dict(FLUX2_VAE),
    _rename_flux2,
)
WAN_COMPONENT = Component(
    "diffusers",
    "AutoencoderKLWan",
    "Wan 2.1's VAE, usually wan_2.1_vae.safetensors",
    _is_wan_vae,
    lambda shapes: {},
    _rename_wan,
    lambda config: _wan_not_told("Qwen-Image"),
)
QWEN_COMPONENT = Component(
    "diffusers",
    "AutoencoderKLQwenImage",
    "Qwen-Image's VAE, usually qwen_image_vae.safetensors",
    _is_wan_vae,
    lambda shapes: {},
    _rename_wan,
    lambda config: _wan_not_told("Wan 2.1"),
)

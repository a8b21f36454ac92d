"""A LATENT of the sampler in ComfyUI's own VAE Decode, with the same VAE in ComfyUI's own form.

The VAEs have the full architecture, which ComfyUI's loader insists on, with random weights, at a small resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from core_vaes import SIZES, autoencoder, wan_weights
from safetensors.torch import save_file

from fastdiffusers.pipelines import tiny

if TYPE_CHECKING:
    from pathlib import Path

    from comfy_client import Client


def image_vae(pipeline: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """An AutoencoderKL with this pipeline's scaling; ComfyUI reads its diffusers keys itself."""
    config = pipeline.vae.config
    vae = autoencoder(config.latent_channels)
    vae.register_to_config(scaling_factor=config.scaling_factor, shift_factor=config.shift_factor)
    return vae, vae.state_dict()


def flux2_vae(pipeline: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """An AutoencoderKLFlux2, whose latents are normalised by the statistics of its batch norm."""
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(**SIZES, latent_channels=pipeline.vae.config.latent_channels).eval()
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    return vae, vae.state_dict()


def wan_vae(pipeline: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """An AutoencoderKLWan or AutoencoderKLQwenImage with those weights, and the weights."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.device("meta"):
        vae = type(pipeline.vae)().eval()
    vae.load_state_dict(convert_wan_vae_to_diffusers(dict(wan_weights())), assign=True)
    return vae, wan_weights()


BUILDERS: dict[str, Callable[[Any], tuple[Any, dict[str, torch.Tensor]]]] = {
    "sdxl": image_vae,
    "flux": image_vae,
    "sd3": image_vae,
    "zimage": image_vae,
    "flux2-klein": flux2_vae,
    "qwenimage": wan_vae,
    "wan22-t2v": wan_vae,
}


@pytest.fixture
def model(server: Client, core: Any, request: pytest.FixtureRequest) -> str:
    """A saved pipeline of the family with a full-size VAE, and that VAE among ComfyUI's; the name of both."""
    family = request.param
    torch.manual_seed(0)
    pipeline = tiny.build(family)
    pipeline.vae, weights = BUILDERS[family](pipeline)
    name = f"full-vae-{family}"
    folder: Path = server.base / "models"
    pipeline.save_pretrained(folder / "diffusers" / name)
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "vae" / f"{name}.safetensors")
    return name


@pytest.mark.parametrize("model", BUILDERS, indirect=True)
def test_vae_decode_of_comfyui_gives_the_sampler_s_pictures(server: Client, model: str) -> None:
    small = {"width": 32, "height": 32, "steps": 2, "vae_tiling": "off", "attention": "sdpa"}
    prompt = server.sampling(model, **small)
    if "wan" in model:
        prompt["sample"]["inputs"]["num_frames"] = 5
    prompt["vae"] = server.node("VAELoader", vae_name=f"{model}.safetensors")
    prompt["core"] = server.node("VAEDecode", samples=["sample", 1], vae=["vae", 0])
    prompt["fast"] = server.node("FastDiffusersVAEDecode", samples=["sample", 1], vae=["vae", 0], tiling="whole")
    for name in ("core", "fast"):
        prompt[f"save_{name}"] = server.node("SaveImage", images=[name, 0], filename_prefix=name)
    entry = server.succeed(prompt)
    ours, core, fast = (server.images(entry, node) for node in ("save", "save_core", "save_fast"))
    assert core.std() > 1, "the VAE draws something"
    assert ours.shape == core.shape
    assert np.abs(ours.astype(int) - core).max() <= 1, "equal but for the rounding of two implementations"
    assert np.array_equal(fast, core)

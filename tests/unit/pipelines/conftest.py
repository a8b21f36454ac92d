"""Small randomly initialised 3D VAEs of diffusers, with latents for them and their own decode to compare with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

WAN_SHAPE = {"z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
LTX_SHAPE = {"latent_channels": 8, "block_out_channels": (8, 16, 32, 32), "layers_per_block": (1,) * 5}


def _build_vae(name: str) -> Any:
    """ "wan21", "wan22-patched", "qwenimage", "hunyuan15", "ltx2" and "ltx"; these two also as "-causal"."""
    import diffusers

    torch.manual_seed(0)
    if name == "wan21":
        vae = diffusers.AutoencoderKLWan(base_dim=8, **WAN_SHAPE)
    elif name == "wan22-patched":
        patched = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        vae = diffusers.AutoencoderKLWan(
            base_dim=8, decoder_base_dim=8, scale_factor_spatial=16, **patched, **WAN_SHAPE
        )
    elif name == "qwenimage":
        vae = diffusers.AutoencoderKLQwenImage(base_dim=8, **WAN_SHAPE)
    elif name == "hunyuan15":
        vae = diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=8, block_out_channels=(16, 16, 32, 32, 32), layers_per_block=1
        )
    elif name in ("ltx2", "ltx2-causal"):
        decoder = {"decoder_block_out_channels": (8, 16, 32), "decoder_layers_per_block": (1, 2, 1, 1)}
        vae = diffusers.AutoencoderKLLTX2Video(**LTX_SHAPE, **decoder, decoder_causal=name.endswith("causal"))
    else:
        decoder = {"decoder_block_out_channels": (8, 16, 32, 32), "decoder_layers_per_block": (1, 2, 1, 1, 1)}
        vae = diffusers.AutoencoderKLLTXVideo(**LTX_SHAPE, **decoder, decoder_causal=name.endswith("causal"))
    return vae.eval()


def _latents_for(vae: Any, frames: int, height: int = 4, width: int = 6, batch: int = 1) -> torch.Tensor:
    channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
    latents = torch.randn(batch, channels, frames, height, width, generator=torch.Generator().manual_seed(1))
    return latents.to(vae.dtype)


def _plain_decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(latents).sample


@pytest.fixture
def build_vae() -> Callable[[str], Any]:
    return _build_vae


@pytest.fixture
def latents_for() -> Callable[..., torch.Tensor]:
    """(vae, frames, height=4, width=6, batch=1) -> the same random latents every time, in the VAE's dtype."""
    return _latents_for


@pytest.fixture
def plain_decode() -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """What diffusers gives."""
    return _plain_decode

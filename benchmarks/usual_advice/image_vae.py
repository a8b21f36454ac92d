"""Tiling, slicing, channels-last and half precision on the image VAE of FLUX.1, full size with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ...comparison.architectures import flux_vae
from .interleave import measure

SIDE, TILE = 256, 128


def run(rounds: int, small: bool) -> dict[str, Any]:
    """Rows for a picture, whole and in tiles, and rows for two pictures, at once and one by one."""
    torch.manual_seed(0)
    vae = flux_vae(not small).eval()
    relaid = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    z, two = torch.randn(1, 16, SIDE // 8, SIDE // 8), torch.randn(2, 16, TILE // 8, TILE // 8)

    def decode(latent: torch.Tensor, prepare: Callable[[], object] = lambda: None, own: Any = vae) -> torch.Tensor:
        vae.disable_tiling()
        vae.disable_slicing()
        prepare()
        made: torch.Tensor = own.decode(latent, return_dict=False)[0]
        return made

    def tiles() -> None:
        vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // 8
        vae.enable_tiling()

    one = {
        "whole": lambda: decode(z),
        f"tiles of {TILE}": lambda: decode(z, tiles),
        "channels_last": lambda: decode(z, own=relaid),
    }
    batch = {"two at once": lambda: decode(two), "one by one": lambda: decode(two, vae.enable_slicing)}
    return {
        "size": f"a picture of {SIDE}x{SIDE}; two of {TILE}x{TILE}",
        "rows": measure(one, rounds),
        "batch": measure(batch, rounds),
    }

"""Decoders that mirror their input at its edges, as LTX-2.0's does: a single latent cell has nothing to be mirrored.

diffusers' tiled decode begins a tile at every stride, so the last one can be a single cell, for 480 rows in its own
tiles say, and then it fails. Another row or column, cut off again from the picture, gives that tile a second cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import InputError

if TYPE_CHECKING:
    import torch

EDGES = {3: "height", 4: "width"}
"""Axis of a latent -> how the VAE's attributes call it."""


def decode_at_any_size(vae: Any, latent: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """`vae.decode(latent, *arguments)`, whole or in tiles as the VAE is set, for every VAE and every size of latent.

    Raises:
        InputError: the tiles advance by one latent cell, so that the last one always is a single cell.
    """
    mirrors = vae.config.get("decoder_spatial_padding_mode") == "reflect"
    widened = _widened(vae, latent) if mirrors else latent
    pixels: torch.Tensor = vae.decode(widened, *arguments, return_dict=False)[0]
    if widened is latent:
        return pixels
    height, width = (cells * vae.spatial_compression_ratio for cells in latent.shape[3:])
    return pixels[..., :height, :width]


def _widened(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """The latent [B, C, T, h, w], its last row and column repeated where the decode would meet a single cell."""
    import torch

    tiled = _is_tiled(vae, latent)
    for axis, edge in EDGES.items():
        cells = latent.shape[axis]
        step = getattr(vae, f"tile_sample_stride_{edge}") // vae.spatial_compression_ratio if tiled else cells + 1
        if step == 1:
            size = getattr(vae, f"tile_sample_min_{edge}")
            reason = "this decoder mirrors at its edges, and the last tile would be a single latent cell"
            raise InputError("vae_tiling", f"tiles of {size} px", reason, "use larger tiles, or less overlap")
        if cells % step == 1:
            latent = torch.cat((latent, latent.narrow(axis, cells - 1, 1)), dim=axis)
    return latent


def _is_tiled(vae: Any, latent: torch.Tensor) -> bool:
    pixels = {edge: latent.shape[axis] * vae.spatial_compression_ratio for axis, edge in EDGES.items()}
    return bool(vae.use_tiling) and any(pixels[edge] > getattr(vae, f"tile_sample_min_{edge}") for edge in pixels)

"""Spatial tiles, each streamed in time: diffusers' tiled decode of Wan and Qwen-Image with frames kept off the card.

diffusers keeps every decoded tile of every frame on the device until the last one is there. Here a tile's frames leave
the device as they are made, and only one row of finished tiles is held, on the CPU, where they are blended by the VAE's
own blending. Geometry, order and arithmetic are diffusers', so the result is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks
from . import wan
from .streaming import STREAMING_FORMS, bring_to_device
from .wan import decoder_runs, finish_pixels

if TYPE_CHECKING:
    import torch

    from .sharing import MakeTile, TileSharing


@dataclass(frozen=True)
class TileGrid:
    """Tile geometry of one axis pair, as the VAE's own attributes give it.

    Attributes: tile and stride in latent units, (rows, columns); kept and blend in decoder output units (pixels, or
    patches for a VAE that decodes to patches).
    """

    tile: tuple[int, int]
    stride: tuple[int, int]
    kept: tuple[int, int]
    blend: tuple[int, int]

    @classmethod
    def of(cls, vae: Any) -> TileGrid:
        ratio = vae.spatial_compression_ratio
        patch = getattr(vae.config, "patch_size", None) or 1
        size = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        stride = (vae.tile_sample_stride_height, vae.tile_sample_stride_width)
        kept = (stride[0] // patch, stride[1] // patch)
        return cls(
            tile=(size[0] // ratio, size[1] // ratio),
            stride=(stride[0] // ratio, stride[1] // ratio),
            kept=kept,
            blend=(size[0] // patch - kept[0], size[1] // patch - kept[1]),
        )


def refuse_tiles(vae: Any, latents: torch.Tensor) -> str:
    """Why `vae.decode(latents)` is not made of tiles that this module makes, as one phrase, or ""."""
    if not getattr(vae, "use_tiling", False):
        return "vae_tiling is off"
    form = STREAMING_FORMS.get(type(vae).__name__)
    if form is None or form.stream is not wan.stream:
        return f"diffusers makes the tiles of {type(vae).__name__} itself"
    grid = TileGrid.of(vae)
    if latents.ndim != 5 or (latents.shape[3] <= grid.tile[0] and latents.shape[4] <= grid.tile[1]):
        return "one tile holds the whole picture"
    return ""


def decode_tiles_streaming(
    vae: Any, latents: torch.Tensor, *, callbacks: Callbacks = SILENT, sharing: TileSharing | None = None
) -> torch.Tensor:
    """Decode [B, C, T, h, w] in tiles, each streamed in time.

    Args:
        vae: a VAE for which `refuse_tiles(vae, latents)` is "".
        latents: as `vae.decode` takes them.
        callbacks: ticked as stage "decode" once per tile; a cancel also stops between two latent frames of a tile.
        sharing: other processes that make some of the tiles; the result is the same.

    Returns:
        [B, 3, T_pixels, H, W] in -1..1 on the CPU, in the VAE's dtype; equal to `vae.decode` bit for bit on the CPU.
    """
    import torch

    grid = TileGrid.of(vae)
    tiles = tile_makers(vae, latents, callbacks)
    with torch.no_grad(), closing(sharing.made(vae, latents, tiles) if sharing else _alone(tiles)) as made:
        pixels = _blended(vae, latents, grid, made, len(tiles), callbacks)
        return finish_pixels(vae, pixels).clamp(-1.0, 1.0)


def tile_makers(vae: Any, latents: torch.Tensor, callbacks: Callbacks) -> list[MakeTile]:
    """What makes each tile of the latents, row by row from the top left. To be called under `torch.no_grad()`."""
    grid = TileGrid.of(vae)
    bring_to_device(vae)
    return [
        partial(_decode_tile, vae, latents[..., top : top + grid.tile[0], left : left + grid.tile[1]], callbacks)
        for top in range(0, latents.shape[3], grid.stride[0])
        for left in range(0, latents.shape[4], grid.stride[1])
    ]


def _alone(tiles: list[MakeTile]) -> Generator[torch.Tensor, None, None]:
    for make in tiles:
        yield make()


def _blended(
    vae: Any, latents: torch.Tensor, grid: TileGrid, made: Iterator[torch.Tensor], total: int, callbacks: Callbacks
) -> torch.Tensor:
    """The decoder's output for the whole, of its tiles: two rows of them are held at a time."""
    import torch

    done = 0
    above: list[torch.Tensor] = []
    finished: list[torch.Tensor] = []
    for _ in range(0, latents.shape[3], grid.stride[0]):
        row: list[torch.Tensor] = []
        kept: list[torch.Tensor] = []
        for index, _ in enumerate(range(0, latents.shape[4], grid.stride[1])):
            tile = next(made)
            if above:
                tile = vae.blend_v(above[index], tile, grid.blend[0])
            if row:
                tile = vae.blend_h(row[-1], tile, grid.blend[1])
            row.append(tile)
            kept.append(tile[:, :, :, : grid.kept[0], : grid.kept[1]])
            done += 1
            callbacks.tick("decode", done, total)
        finished.append(torch.cat(kept, dim=-1))
        above = row
    patch = getattr(vae.config, "patch_size", None) or 1
    height = latents.shape[3] * vae.spatial_compression_ratio // patch
    width = latents.shape[4] * vae.spatial_compression_ratio // patch
    return torch.cat(finished, dim=3)[:, :, :, :height, :width]


def _decode_tile(vae: Any, crop: torch.Tensor, callbacks: Callbacks) -> torch.Tensor:
    """All frames of one tile, collected on the CPU."""
    import torch

    # Frame by frame, as diffusers does it here: a convolution over another shape may round differently.
    hidden = torch.cat([vae.post_quant_conv(crop[:, :, k : k + 1]) for k in range(crop.shape[2])], dim=2)
    runs = []
    for pixels in decoder_runs(vae, hidden, 1):
        runs.append(pixels.cpu())
        callbacks.check_cancel()
    return torch.cat(runs, dim=2)

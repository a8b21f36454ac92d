"""The numbers by which a diffusers VAE tiles: what its attributes mean, and which tiles it can really make.

The classes name the same few numbers in half a dozen ways. One table says what each attribute means, so that a class
with any mixture of them is served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SquareTiles:
    """Square tiles. Attributes: size, overlap in pixels, multiples of ratio; ratio: pixels per latent element."""

    size: int
    overlap: int
    ratio: int


_VALUES: dict[str, Callable[[SquareTiles], float]] = {
    "tile_sample_min": lambda tiles: tiles.size,
    "tile_latent_min": lambda tiles: tiles.size // tiles.ratio,
    "tile_sample_stride": lambda tiles: tiles.size - tiles.overlap,
    "tile_sample_min_overlap": lambda tiles: tiles.overlap,
    "tile_overlap_factor": lambda tiles: tiles.overlap / tiles.size,
}
"""What a VAE's attribute of this name means; it may end in `_size`, `_height`, `_width` or stand alone."""
_ATTRIBUTES = {name + ending: value for name, value in _VALUES.items() for ending in ("", "_size", "_height", "_width")}
_SWITCHES = ("use_tiling", "use_slicing", "use_framewise_decoding")
_SWITCH_ONLY = frozenset({"AutoencoderKLCosmos", "AutoencoderKLKVAEVideo", "ConsistencyDecoderVAE"})
"""Classes with a switch for tiles that their decode does not look at."""
TILES_ONLY = frozenset({"AutoencoderKLAllegro"})
"""Classes that raise NotImplementedError when they are to decode or encode the whole."""
_LEAST_OVERLAP = {"AutoencoderTiny": 2}
"""Latent elements that tiles of a class must share; with a single one this class divides zero by zero."""


def refuse_tiling(vae: Any) -> str:
    """Why this VAE cannot work in tiles, as one phrase, or ""."""
    name = type(vae).__name__
    if not hasattr(vae, "use_tiling") or name in _SWITCH_ONLY:
        return f"{name} has no tiled decode"
    if name == "AutoencoderTiny" and vae.config.latent_channels != 4:
        return f"{name} encodes to 4 channels in tiles, and here there are {vae.config.latent_channels}"
    if name == "AutoencoderTiny" and 2 ** (len(vae.config.encoder_block_out_channels) - 1) != vae.spatial_scale_factor:
        scale = 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        return f"{name} cuts tiles for a latent {vae.spatial_scale_factor} times as small, and here it is {scale} times"
    return ""


def can_choose_tiles(vae: Any) -> bool:
    """Whether the VAE takes another size of tiles than its own."""
    return any(name in _ATTRIBUTES for name in values_of(vae))


def possible_tiles(vae: Any, size: int, overlap: int) -> SquareTiles:
    """Tiles near the wished ones that this VAE can really make.

    Everything is a whole number of latent elements, the overlap at most half a tile (a quarter where none was asked
    for), because beyond that three tiles would lie over each other.
    """
    ratio, least = ratio_of(vae), _LEAST_OVERLAP.get(type(vae).__name__, 0)
    latent = max(2, 2 * least, size // ratio)
    most = latent // 2
    wanted = -(-overlap // ratio) if overlap else max(1, latent // 4)
    latent_overlap = min(max(wanted, least), most)
    if any(name.startswith("tile_overlap_factor") for name in values_of(vae)):
        latent_overlap = expressible_overlap(latent, ratio, latent_overlap, least)
    return SquareTiles(latent * ratio, latent_overlap * ratio, ratio)


def expressible_overlap(latent: int, ratio: int, overlap: int, least: int = 0) -> int:
    """The overlap nearest to `overlap`, of `least` or more, that survives diffusers' arithmetic, in latent elements.

    VAEs with an overlap *factor* cut tiles every int(latent * (1 - factor)) elements and blend int(size * factor)
    pixels: where rounding makes the two disagree, the picture comes out in the wrong size.
    """
    for candidate in sorted(range(least, latent // 2 + 1), key=lambda o: (abs(o - overlap), -o)):
        factor = candidate / latent
        if int(latent * (1 - factor)) == latent - candidate and int(latent * ratio * factor) == candidate * ratio:
            return candidate
    return 0


def ratio_of(vae: Any) -> int:
    """Pixels per latent element along an edge."""
    ratio = vae.__dict__.get("spatial_compression_ratio") or vae.config.get("spatial_compression_ratio")
    if ratio is None and isinstance(getattr(type(vae), "spatial_compression_ratio", None), property):
        ratio = vae.spatial_compression_ratio
    if ratio is None:
        channels = vae.config.get("block_out_channels") or (0,) * 4
        ratio = 2 ** (len(channels) - 1)
    return int(ratio)


def tile_in_use(vae: Any) -> int:
    """Edge of the tiles that the VAE makes when it tiles, in pixels; 0 when it does not say."""
    names = ("tile_sample_min_size", "tile_sample_min_height", "tile_sample_min_width")
    sizes = [getattr(vae, name) for name in names if getattr(vae, name, None)]
    return int(max(sizes)) if sizes else 0


def turn_on(vae: Any, tiles: SquareTiles | None = None) -> None:
    """Let the VAE tile: with `tiles`, or with its own numbers; in time too where it can."""
    set_value(vae, "use_tiling", True)
    if hasattr(vae, "_temporal_tiled_decode"):
        set_value(vae, "use_framewise_decoding", True)
    if tiles is not None:
        for name in values_of(vae):
            if name in _ATTRIBUTES:
                set_value(vae, name, _ATTRIBUTES[name](tiles))


def values_of(vae: Any) -> dict[str, Any]:
    """The VAE's attributes that tiling and slicing use, with their values now."""
    return {name: vae.__dict__[name] for name in (*_ATTRIBUTES, *_SWITCHES) if name in vae.__dict__}


def write_values(vae: Any, values: dict[str, Any]) -> None:
    """Put back what `values_of` gave."""
    for name in values_of(vae):
        if name in values:
            set_value(vae, name, values[name])


def set_value(vae: Any, name: str, value: Any) -> None:
    """Only what changes is written: compiled code looks at these attributes."""
    if vae.__dict__.get(name) != value:
        setattr(vae, name, value)

"""What each way to decode a clip leaves of it: `python . benchmarks.clip_quality`.

The embedded video VAE, which was trained on drawn scenes that move, encodes the embedded clip of two seconds, and
decodes that one latent whole in float32, and in every other way. PSNR, SSIM, the largest difference and `seam` are
those between the two clips, as in `picture_quality.py`; PSNR is that of all frames together, `least` the worst frame's.

Convolutions by blocks of frames begin at more channels than this VAE has. The rows that name them let them begin at
one, wherever the shape allows it and without measuring that it is faster; `blocks` counts how often they ran.
"""

from __future__ import annotations

import argparse
import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from ..cache_folder import cache_folder
from ..commands.libraries import prepare_libraries
from ..commands.media import read_frames
from ..optimizations.tuning.quality import quality
from ..vae import VaeSettings, decode, embedded_video_vae, encode, load_video_vae
from ..vae.embedded import CLIP_FILE, TRAINED, TRAINED_FILE
from ..vae.kernels.temporal_choice import TemporalChoice
from ..vae.network import temporal, winograd
from ..vae.network.convolution import torch_conv3d
from .common import store, table
from .picture_quality import seam


@dataclass(frozen=True)
class Row:
    """Attributes: settings: of the decode; dtype: of the VAE's weights; blocks: convolve by blocks of frames."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    blocks: bool = False


class Always(TemporalChoice):
    """The largest block that is allowed, and how often it was asked."""

    asked = 0

    def most(self, x: torch.Tensor, weight: torch.Tensor, allowed: int) -> int:
        self.asked += 1
        return allowed


def everywhere(choice: Always) -> Any:
    """Convolutions by blocks of frames wherever the shape allows it."""
    return patch.multiple(temporal, FEWEST_CHANNELS=1, FEWEST_CELLS=1, CHOICE=choice)


def tiles(size: int, overlap: int) -> Row:
    how = {"mode": "tiles", "tile_size": size, "tile_overlap": overlap}
    return Row(f"video VAE, tiles of {size}, overlap {overlap}", how)


WHOLE: dict[str, Any] = {"mode": "whole"}
ROWS = (
    Row("video VAE, exact strips, 3 rows, 2 columns", {"mode": "exact", "strips": (3, 2)}),
    Row("video VAE, one latent frame at a time", {**WHOLE, "temporal_slice": 1}),
    Row("video VAE, float16", WHOLE, "float16"),
    Row("video VAE, bfloat16", WHOLE, "bfloat16"),
    Row("video VAE, blocks of 4 frames", WHOLE, blocks=True),
    Row("video VAE, float16, fast: blocks of 2 frames", {**WHOLE, "convolution": "fast"}, "float16", blocks=True),
    Row("video VAE, bfloat16, fast: blocks of 4 frames", {**WHOLE, "convolution": "fast"}, "bfloat16", blocks=True),
    tiles(64, 16),
    tiles(96, 48),
    tiles(128, 64),
    tiles(160, 64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=33, help="of the clip")
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    torch.set_num_threads(1)
    clip = read_frames(CLIP_FILE)[0][None, : args.frames]
    latents, _ = encode(load("float32"), clip)
    plain, _ = decode(load("float32"), latents, VaeSettings(**WHOLE))
    chosen = [row for row in ROWS if not args.rows or any(part in row.name for part in args.rows)]
    found = [measure(Row("what went in"), clip, plain)]
    print(table(found), flush=True)
    for row in chosen:
        choice = Always(torch_conv3d, winograd.convolution)
        with everywhere(choice) if row.blocks else nullcontext():
            made = decode(load(row.dtype), latents, VaeSettings(**row.settings))[0]
        found.append(measure(row, made, plain) | ({"blocks": choice.asked} if row.blocks else {}))
        print(table(found[-1:]), flush=True)
    if not args.no_store:
        data = {"model": f"{TRAINED}, {digest()}", "size": "{2}x{1}x{0}".format(*clip.shape[1:4])}
        came_back, rows = found[0], found[1:]
        print(f"stored in {store('clip_quality', {**data, 'came_back': came_back, 'rows': rows}, 'cpu')}")


def digest() -> str:
    """What tells the weights from others, as 12 hexadecimal digits."""
    return hashlib.sha256(TRAINED_FILE.read_bytes()).hexdigest()[:12]


def load(dtype: str) -> Any:
    return load_video_vae(embedded_video_vae(TRAINED, cache_folder()), dtype=dtype, device="cpu")


def measure(row: Row, made: torch.Tensor, plain: torch.Tensor) -> dict[str, Any]:
    """A clip [1, T, H, W, 3] against the plain one."""
    found = quality(made, plain)
    frames = [quality(one, other).psnr_db for one, other in zip(made[0], plain[0], strict=True)]
    noisy = [each for each in frames if each is not None]
    return {
        "row": row.name,
        "psnr_db": None if found.psnr_db is None else round(found.psnr_db, 2),
        "psnr_db_least": round(min(noisy), 2) if noisy else None,
        "ssim": round(found.ssim or 0.0, 4),
        "max_difference": round(found.max_difference or 0.0, 4),
        "seam": round(max(seam(one - other) for one, other in zip(made[0], plain[0], strict=True)), 2),
    }


if __name__ == "__main__":
    main()

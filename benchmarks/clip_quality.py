"""What each way to decode a clip leaves of it: `python . benchmarks.clip_quality`.

The embedded video VAE, which was trained on drawn scenes that move, encodes the embedded clip of two seconds, and
decodes that one latent whole in float32, and in every other way. PSNR, SSIM, the largest difference and `seam` are
those between the two clips, as in `picture_quality.py`; PSNR is that of all frames together, `least` the worst frame's.

Fast convolutions are left out: they begin at more channels than this VAE has, so they change nothing here.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cache_folder import cache_folder
from ..commands.libraries import prepare_libraries
from ..commands.media import read_frames
from ..optimizations.tuning.quality import quality
from ..vae import VaeSettings, decode, embedded_video_vae, encode, load_video_vae
from ..vae.embedded import CLIP_FILE, TRAINED, TRAINED_FILE
from .common import store, table
from .picture_quality import seam


@dataclass(frozen=True)
class Row:
    """Attributes: settings: of the decode; dtype: of the VAE's weights."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"


def tiles(size: int, overlap: int) -> Row:
    how = {"mode": "tiles", "tile_size": size, "tile_overlap": overlap}
    return Row(f"video VAE, tiles of {size}, overlap {overlap}", how)


WHOLE: dict[str, Any] = {"mode": "whole"}
ROWS = (
    Row("video VAE, exact strips, 3 rows, 2 columns", {"mode": "exact", "strips": (3, 2)}),
    Row("video VAE, one latent frame at a time", {**WHOLE, "temporal_slice": 1}),
    Row("video VAE, float16", WHOLE, "float16"),
    Row("video VAE, bfloat16", WHOLE, "bfloat16"),
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
        found.append(measure(row, decode(load(row.dtype), latents, VaeSettings(**row.settings))[0], plain))
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

"""The video VAE and the length of a clip: memory at full resolution (counted without data), seconds per frame."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ...memory import LiveBytes
from ...vae import VaeConfig, VaeSettings, VideoVAE, decode_raw, from_state_dict
from ...vae.planner import decoding, make_plan
from ..plain_video_vae import PlainVideoVae, formula_weights
from ..vae_decode import full_size_shapes
from .interleave import measure

HEIGHT, WIDTH = 720, 1248
GIB = 2**30
PLANES = {"whole planes": (HEIGHT, WIDTH), "a tile of 1024": (1024, 1024), "a tile of 512": (512, 512)}
BUDGETS = {"a card of 24 GB": 20, "a card of 12 GB": 9, "a card of 6 GB": 4}
"""GiB that are left for activations, beside the weights, the desktop and the frames."""


def run(rounds: int, small: bool) -> dict[str, Any]:
    """Peaks in float16, times in float32 on planes of 64 x 64 pixels."""
    counts = (1, 3) if small else (3, 6, 21)
    return {
        "size": f"{WIDTH}x{HEIGHT} in float16, counted; 64x64 in float32, timed",
        "weights": {"row": "weights in float16", "gib": round(weight_bytes() / GIB, 2)},
        "plain": [row for count in counts for row in plain_peaks(count)],
        "planned": [row for count in counts for row in planned_peaks(count)],
        "time": lengths(rounds, small),
    }


def weight_bytes() -> int:
    """Of the decoder and the encoder, in float16."""
    return 2 * sum(torch.Size(shape).numel() for shape in full_size_shapes().values())


def plain_peaks(latent_frames: int) -> list[dict[str, Any]]:
    """GiB of live tensors that a decode of the whole clip takes above weights and frames, by size of the plane."""
    shapes = {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in full_size_shapes().items()}
    plain, frames = PlainVideoVae(shapes), VaeConfig().frames(latent_frames)
    found = []
    for name, (height, width) in PLANES.items():
        z = torch.empty(1, 16, latent_frames, height // 8, width // 8, device="meta", dtype=torch.float16)
        with torch.no_grad(), LiveBytes() as live:
            made = plain.decode(z)
        peak = live.peak - made.numel() * made.element_size()
        found.append({"row": f"plain, {name}, {frames} frames", "gib": round(peak / GIB, 2)})
    return found


def planned_peaks(latent_frames: int) -> list[dict[str, Any]]:
    """The same of what this VAE plans for a whole plane, by the memory that it may use."""
    shapes = {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in full_size_shapes().items()}
    vae, frames = from_state_dict(shapes), VaeConfig().frames(latent_frames)
    found = []
    for name, gib in BUDGETS.items():
        plan = make_plan(
            vae, decoding(vae.config), (16, latent_frames, HEIGHT // 8, WIDTH // 8), VaeSettings(), gib * GIB
        )
        row = {"row": f"this VAE, {name}, {frames} frames", "gib": round(plan.peak / GIB, 2)}
        found.append({**row, "tiles": len(plan.tiles), "plan": plan.reason})
    return found


def lengths(rounds: int, small: bool) -> list[dict[str, Any]]:
    """Milliseconds per frame for clips of several lengths; the first frames are the same in all of them."""
    config = VaeConfig(block_out_channels=(32, 32, 64, 64)) if small else VaeConfig()
    with torch.device("meta"):
        names = {key: tuple(tensor.shape) for key, tensor in VideoVAE(config).state_dict().items()}
    vae = from_state_dict(formula_weights(names))
    settings = VaeSettings(mode="whole", temporal_slice=1)
    counts = (1, 2, 3, 5)
    clip = torch.randn(1, 16, counts[-1], 8, 8, generator=torch.Generator().manual_seed(0))

    def decode(count: int) -> torch.Tensor:
        return decode_raw(vae, clip[:, :, :count], settings)[0][:, :, :1]

    rows = measure({f"clip of {config.frames(count)}": partial(decode, count) for count in counts}, rounds)
    return [
        {"row": row["row"], "ms_per_frame": round(row["milliseconds"] / config.frames(count), 1), **row}
        for row, count in zip(rows, counts, strict=True)
    ]

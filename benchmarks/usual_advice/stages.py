"""Where a plain decode of the video VAE takes its memory and its time, stage by stage.

Memory at full resolution, counted on tensors without data; what counts is the most that is alive during a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...memory import LiveBytes
from ..plain_video_vae import PlainVideoVae
from ..vae_decode import full_size_shapes
from .clips import GIB, HEIGHT, WIDTH

FRAMES = 2
"""Latent frames: the first with four more."""


class Watched(PlainVideoVae):
    """Tells a block of code's name and lets it run, for each stage of the decoder."""

    def __init__(self, tensors: dict[str, torch.Tensor], watch: Callable[[str], Any]) -> None:
        super().__init__(tensors)
        self._watch = watch

    def mid(self, block: str, x: torch.Tensor) -> torch.Tensor:
        with self._watch("mid block"):
            return super().mid(block, x)

    def resnets(self, block: str, x: torch.Tensor) -> torch.Tensor:
        if block.endswith("mid_block"):
            return super().resnets(block, x)
        with self._watch(f"residual blocks {block[-1]}"):
            return super().resnets(block, x)

    def upsample(self, name: str, x: torch.Tensor) -> torch.Tensor:
        with self._watch(f"upsampler {name.split('.')[2]}"):
            return super().upsample(name, x)

    def conv(self, name: str, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if name not in ("decoder.conv_in", "decoder.conv_out"):
            return super().conv(name, x, *arguments, **options)
        with self._watch(name.removeprefix("decoder.")):
            return super().conv(name, x, *arguments, **options)


def run(rounds: int, small: bool) -> dict[str, Any]:
    """One row per stage; nothing is timed."""
    height, width = (64, 64) if small else (HEIGHT, WIDTH)
    shapes = {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in full_size_shapes().items()}
    found: dict[str, float] = {}
    live = LiveBytes()

    @contextmanager
    def watch(stage: str) -> Iterator[None]:
        before, live.peak = live.peak, live.now
        yield
        found[stage] = round(live.peak / GIB, 2)
        live.peak = max(before, live.peak)

    z = torch.empty(1, 16, FRAMES, height // 8, width // 8, device="meta", dtype=torch.float16)
    with torch.no_grad(), live:
        Watched(shapes, watch).decode(z)
    highest = max(found.values())
    rows = [{"row": stage, "gib": gib, "of_highest": round(gib / highest, 2)} for stage, gib in found.items()]
    return {"size": f"{width}x{height} in float16, 5 frames at once", "rows": rows}

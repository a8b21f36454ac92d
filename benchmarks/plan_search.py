"""Whether `auto` cuts a decode as the fastest of all ways does, on a processor: `python . benchmarks.plan_search`.

The full-size video VAE with random weights, in float32. Every size of slices is tried with every way to cut planes and
every number of frames at the end; the fastest of them with and without blocks of frames in convolutions, and with
weights in both memory layouts; and the fastest of all are run in turns with `auto`, where the median of the ratios
within a round counts. With one thread, time is the processor's, which holds beside other work; with more it is the
clock's. What `auto` spends on measuring what is fast here is counted in the first decode of each shape, and the next.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch

from ..vae import VaeSettings, VideoVAE, decode_raw, from_state_dict, planner
from ..vae.kernels.saved_choices import SavedChoices
from ..vae.kernels.temporal_choice import TemporalChoice
from ..vae.network.execution import Layout
from ..vae.processor_layouts import Cut, WorkspaceChoice
from .common import store, table
from .plain_video_vae import formula_weights
from .vae_ablation import contiguous_weights
from .vae_decode import full_size_shapes

SHAPES = ((2, 8, 8), (5, 8, 8), (2, 16, 16))
"""Latents: frames, height, width."""
WORKSPACES = (16, 64, 256)
"""MiB of temporaries per strip."""
STRIPS = ((2, 1), (4, 1), (2, 2), (4, 4))
"""Rows and columns."""
TAILS = (0, 1, 4)
"""Frames at a time at full resolution, 0 for all of a slice."""
BLOCKS = (4, 2, 0)
"""Frames of the largest block of a convolution over time, 0 for none."""
SIZES = (1, 2, 4)
"""Latent frames of a slice."""
FINALISTS = 4


@dataclass
class Way:
    """One way to cut a decode. Attributes: cut: None for what `auto` chooses; seconds: of each run."""

    cut: Cut | None
    layout: str
    seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        if self.cut is None:
            return "auto"
        size, how = self.cut
        planes = f"{how.rows} x {how.columns} strips" if how.rows else "whole planes"
        planes = planes if how.workspace is None else f"strips of {how.workspace >> 20} MiB"
        end = f"{how.tail_frames} frames at the end" if how.tail_frames else "no cut at the end"
        return f"slices of {size}, {planes}, {end}, blocks of {how.block_frames}, weights {self.layout}"


class Decoder:
    """Decodes one latent in given ways.

    Args:
        vaes: by the memory layout of their weights.
        z: latent.
    """

    def __init__(self, vaes: dict[str, VideoVAE], z: torch.Tensor) -> None:
        self._vaes = vaes
        self.layouts = tuple(vaes)
        self._z = z
        self._warm: set[tuple[str, int]] = set()
        self._clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def seconds(self, way: Way) -> float:
        """Seconds of one decode, whose transformed kernels are there already."""
        kernels = (way.layout, -1 if way.cut is None else way.cut.layout.block_frames)
        if kernels not in self._warm:
            self._warm.add(kernels)
            self.once(way)
        return self.once(way)

    def once(self, way: Way) -> float:
        with ExitStack() as stack:
            if (cut := way.cut) is not None:
                stack.enter_context(patch.object(planner, "cuts", lambda *_: iter([cut])))
            started = self._clock()
            decode_raw(self._vaes[way.layout], self._z, VaeSettings())
            return self._clock() - started


def cuts(frames: int) -> list[Cut]:
    """Every size of slices of so many latent frames, way to cut planes and number of frames at the end."""
    planes: list[dict[str, Any]] = [{}]
    planes += [{"workspace": mib << 20} for mib in WORKSPACES]
    planes += [{"rows": rows, "columns": columns} for rows, columns in STRIPS]
    sizes = sorted({min(size, max(1, frames - 1)) for size in SIZES})
    blocks = BLOCKS[0]
    return [
        Cut(size, Layout(**how, tail_frames=tail, block_frames=blocks))
        for size in sizes
        for how in planes
        for tail in TAILS
    ]


@contextmanager
def choosing() -> Iterator[Callable[[], float]]:
    """Count the seconds in which `auto` measures what is fast, as on a machine where nothing is remembered."""
    total, depth = 0.0, 0

    def timed(choose: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal total, depth
            started = time.perf_counter()
            depth += 1
            try:
                return choose(*args)
            finally:
                depth -= 1
                total += 0.0 if depth else time.perf_counter() - started

        return run

    with ExitStack() as stack:
        for place, name in ((TemporalChoice, "_choose"), (WorkspaceChoice, "_choose")):
            stack.enter_context(patch.object(place, name, timed(getattr(place, name))))
        stack.enter_context(patch.object(SavedChoices, "get", lambda *_: None))
        stack.enter_context(patch.object(SavedChoices, "put", lambda *_: None))
        yield lambda: total


def first_decodes(decoder: Decoder, auto: Way) -> dict[str, float]:
    """What choosing took in the first decode of a shape, and in the one after it."""
    with choosing() as spent:
        first, chosen = decoder.once(auto), spent()
        second, again = decoder.once(auto), spent() - chosen
    return {
        "first_seconds": round(first, 2),
        "choosing_seconds": round(chosen, 2),
        "choosing_percent": round(100 * chosen / first, 1),
        "second_seconds": round(second, 2),
        "choosing_again_seconds": round(again, 3),
    }


def fastest(decoder: Decoder, tried: list[Way]) -> list[Way]:
    """Run every way once; the fastest of them, the fastest first."""
    for way in tried:
        way.seconds.append(decoder.seconds(way))
    return sorted(tried, key=lambda way: way.seconds[-1])[:FINALISTS]


def search(decoder: Decoder, auto: Way, every: list[Cut], rounds: int) -> tuple[list[Way], int]:
    """The fastest ways, run in turns with `auto`, and how many were tried."""
    first = [Way(cut, auto.layout) for cut in every]
    further = [
        Way(Cut(way.cut.size, replace(way.cut.layout, block_frames=block)), layout)
        for way in fastest(decoder, first)
        if way.cut is not None
        for block in BLOCKS
        for layout in decoder.layouts
    ]
    near = fastest(decoder, further)
    for way in (auto, *near):
        way.seconds.clear()
    for _ in range(rounds):
        for way in (auto, *near):
            way.seconds.append(decoder.seconds(way))
    return near, len(first) + len(further)


def rows(auto: Way, near: list[Way]) -> list[dict[str, Any]]:
    """`auto` and the fastest ways as data: how many times as long `auto` takes, 1 or less where it is the fastest."""
    found = []
    for way in (auto, *near):
        ratios = [mine / other for mine, other in zip(auto.seconds, way.seconds, strict=True)]
        found.append(
            {
                "row": way.name,
                "seconds": round(statistics.median(way.seconds), 3),
                "auto_takes": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--small", action="store_true", help="one tiny latent, few ways: does it run at all")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = formula_weights(full_size_shapes())
    vaes = {
        "in channels_last": from_state_dict(weights),
        "contiguous": contiguous_weights(from_state_dict(weights)),
    }
    cases = []
    with torch.inference_mode():
        for frames, height, width in ((1, 2, 2),) if args.small else SHAPES:
            z = torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(0))
            decoder, auto = Decoder(vaes, z), Way(None, "in channels_last")
            case: dict[str, Any] = {"case": f"{frames} x {height} x {width} latent", **first_decodes(decoder, auto)}
            near, tried = search(decoder, auto, cuts(frames)[: 3 if args.small else None], args.rounds)
            case |= {"tried": tried, "rows": rows(auto, near)}
            print({key: value for key, value in case.items() if key != "rows"}, flush=True)
            print(table(case["rows"]), flush=True)
            cases.append(case)
            if not (args.no_store or args.small):
                print(f"stored in {store('plan_search', {'threads': args.threads, 'cases': cases}, 'cpu')}")


if __name__ == "__main__":
    main()

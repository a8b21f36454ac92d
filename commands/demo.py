"""`fastdiffusers demo`: the embedded tiny pipeline, plain and with everything on, side by side. Needs no download.

What counts is that all three agree, and the reports, which list each optimization as applied or say why it is not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from ..callbacks import Callbacks
from ..optimizations.settings import CompileSettings, OptimizationSettings, PrecisionSettings, TilingSettings
from .files import check_folder_target, make_folder, write_text
from .libraries import prepare_libraries
from .media import write_picture
from .options import add_dtype_option, path_argument
from .terminal import TerminalProgress

if TYPE_CHECKING:
    import torch

    from ..pipelines.types import SampleResult

HELP = "run the embedded tiny pipeline, plain and with everything on, and show the report"

PROMPT = "a red lighthouse at dusk, calm sea"
LOSSLESS = OptimizationSettings(
    attention="auto",
    torch_compile="on",
    compile=CompileSettings(headroom_gib=0.0),
    vae_tiling=TilingSettings(mode="off", slicing="on"),
    precision=PrecisionSettings(tf32="auto", cudnn_benchmark="auto", channels_last="auto"),
)
"""Everything that is meant to leave the picture as it is."""
EVERYTHING = replace(LOSSLESS, vae_tiling=TilingSettings(mode="on", tile_size=160, overlap=64, slicing="on"))
"""The VAE in tiles as well. Each tile is normalised by itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", default="flux", metavar="NAME", help="tiny pipeline to build (default: flux)")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="denoising steps (default: 8)")
    parser.add_argument("--output", type=path_argument, default=Path("demo_output"), metavar="FOLDER")
    add_dtype_option(parser, default="float32")
    parser.add_argument("--device", default="auto", metavar="NAME")


def run(args: argparse.Namespace) -> None:
    check_folder_target("output", args.output)
    prepare_libraries(args.verbose)

    settings = {"plain": OptimizationSettings.plain(), "optimized": LOSSLESS, "and tiled": EVERYTHING}
    with TerminalProgress(args.quiet) as callbacks:
        # Twice each: the first plain run loads the model, the first optimized one compiles it.
        runs = {name: [sample(args, chosen, callbacks) for _ in range(2)] for name, chosen in settings.items()}
    results = {name: second.result for name, (_, second) in runs.items()}
    make_folder(args.output)
    picture = args.output / f"{args.family}_plain_optimized_tiled.png"
    write_picture(side_by_side(list(results.values())), picture)
    for name, result in results.items():
        write_text(args.output / f"report_{name.replace(' ', '_')}.json", result.report.as_json())
    if not args.quiet:
        print(results["and tiled"].report.as_table())
        print()
        steps = {name: median(result.step_seconds) * 1e3 for name, result in results.items()}
        for name, (first, second) in runs.items():
            print(
                f"{name:9}  first run {first.seconds:6.2f} s, second {second.seconds:6.2f} s, {steps[name]:6.1f} ms a "
                f"step, {agreement(frames_of(second.result), frames_of(results['plain']), 'plain')}"
            )
        print(f"from left to right in {picture}: {', '.join(results)}")
        print(faster(steps["plain"], steps["optimized"]))
        print(seen(args.family))


def agreement(result: torch.Tensor, reference: torch.Tensor, name: str) -> str:
    """How close a result is to the one of that name, in words: its PSNR, and its largest difference."""
    from ..optimizations.tuning.quality import quality

    found = quality(result, reference)
    if found.identical or found.psnr_db is None:
        return f"the same as {name}" if found.identical else found.problem
    return f"{found.psnr_db:.1f} dB from {name} (largest difference {found.max_difference:.1e})"


def seen(family: str) -> str:
    """What there is to see in the pictures, in words."""
    from ..pipelines import tiny

    if tiny.trained_folder(family) is not None:
        return f"they were drawn from {PROMPT!r}"
    return "the weights are random, so all three are noise; tiles, each normalised by itself, differ from the whole"


def faster(plain: float, optimized: float) -> str:
    """Which steps were the faster ones, in words, from the time that one takes either way."""
    if optimized < plain:
        return f"optimized steps take {1 - optimized / plain:.0%} less time than plain ones"
    return (
        "plain steps are the faster ones here: everything is switched on to show that it works, and a model this small "
        "gains nothing; 'auto' measures, and leaves out what is slower"
    )


class Run(NamedTuple):
    """What a run gave, and its wall time in seconds, loading included."""

    result: SampleResult
    seconds: float


def sample(args: argparse.Namespace, settings: OptimizationSettings, callbacks: Callbacks) -> Run:
    """One run of the tiny pipeline."""
    from ..pipelines.generate import generate
    from ..pipelines.loading.loader import resolve
    from ..pipelines.types import PipelineHandle, SampleRequest

    handle = PipelineHandle(resolve(f"tiny:{args.family}", dtype=args.dtype, device=args.device))
    start = time.perf_counter()
    result = generate(handle, SampleRequest(PROMPT, steps=args.steps), settings, callbacks)
    return Run(result, time.perf_counter() - start)


def frames_of(result: SampleResult) -> torch.Tensor:
    """The decoded frames [B, T, H, W, 3] of a run that was asked to decode."""
    if result.frames is None:
        raise RuntimeError("the run decoded nothing")
    return result.frames


def side_by_side(results: Sequence[SampleResult], edge: int = 384) -> torch.Tensor:
    """The first frame of each, in a row with gaps, [H, W, 3], enlarged without smoothing so that pixels can be seen."""
    import torch

    frames = [frames_of(result)[0, 0] for result in results]
    gap = torch.ones(frames[0].shape[0], max(2, frames[0].shape[1] // 32), 3)
    row = torch.cat([part for frame in frames for part in (gap, frame)][1:], dim=1)
    times = max(1, edge // row.shape[0])
    return row.repeat_interleave(times, 0).repeat_interleave(times, 1)

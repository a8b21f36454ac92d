"""`fastdiffusers demo`: the embedded tiny pipeline, plain and with everything on, side by side. Needs no download.

The model is real in structure but its weights are random: the picture is a pattern. What counts is that both halves
agree, and the report, which lists each optimization as applied or says why it is not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ..callbacks import Callbacks
from ..optimizations.settings import CompileSettings, OptimizationSettings, PrecisionSettings, TilingSettings
from .files import check_writable, write_text
from .libraries import prepare_libraries
from .media import write_png
from .options import DTYPES
from .terminal import TerminalProgress

if TYPE_CHECKING:
    import torch

    from ..pipelines.types import SampleResult

HELP = "run the embedded tiny pipeline, plain and with everything on, and show the report"

PROMPT = "a lighthouse in the fog, and a ship that passes by"
EVERYTHING = OptimizationSettings(
    attention="auto",
    torch_compile="on",
    compile=CompileSettings(headroom_gib=0.0),
    vae_tiling=TilingSettings(mode="on", slicing="on"),
    precision=PrecisionSettings(tf32="auto", cudnn_benchmark="auto", channels_last="auto"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", default="flux", metavar="NAME", help="tiny pipeline to build (default: flux)")
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="denoising steps (default: 8)")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), metavar="FOLDER")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="auto", metavar="NAME")


def run(args: argparse.Namespace) -> None:
    check_writable("output", args.output)
    prepare_libraries(args.verbose)
    with TerminalProgress(args.quiet) as callbacks:
        plain, plain_seconds = sample(args, OptimizationSettings.plain(), callbacks)
        fast, fast_seconds = sample(args, EVERYTHING, callbacks)
    args.output.mkdir(exist_ok=True)
    picture = args.output / f"{args.family}_plain_and_optimized.png"
    write_png(side_by_side(plain, fast), picture)
    write_text(args.output / "plain.json", plain.report.as_json())
    write_text(args.output / "optimized.json", fast.report.as_json())
    comparison = {
        "family": args.family,
        "steps": args.steps,
        "plain_seconds": round(plain_seconds, 3),
        "optimized_seconds": round(fast_seconds, 3),
        "plain_step_seconds": median(plain.step_seconds),
        "optimized_step_seconds": median(fast.step_seconds),
        "largest_difference": largest_difference(plain, fast),
    }
    write_text(args.output / "comparison.json", json.dumps(comparison, indent=2))
    if not args.quiet:
        print(fast.report.as_table())
        print()
        print(f"plain:     {plain_seconds:7.2f} s, {comparison['plain_step_seconds'] * 1e3:7.1f} ms a step")
        print(f"optimized: {fast_seconds:7.2f} s, {comparison['optimized_step_seconds'] * 1e3:7.1f} ms a step")
        print("           (the first optimized run compiles; a tiny model gains nothing from it)")
        print(f"largest difference of a pixel (range 0..1): {comparison['largest_difference']:.2e}")
        print(f"left plain, right optimized: {picture}")


def sample(
    args: argparse.Namespace, settings: OptimizationSettings, callbacks: Callbacks
) -> tuple[SampleResult, float]:
    """One run of the tiny pipeline, and its wall time in seconds."""
    from ..pipelines.generate import generate
    from ..pipelines.loader import resolve
    from ..pipelines.types import PipelineHandle, SampleRequest

    handle = PipelineHandle(resolve(f"tiny:{args.family}", dtype=args.dtype, device=args.device))
    start = time.perf_counter()
    result = generate(handle, SampleRequest(PROMPT, steps=args.steps), settings, callbacks)
    return result, time.perf_counter() - start


def frames_of(result: SampleResult) -> torch.Tensor:
    """The decoded frames [B, T, H, W, 3] of a run that was asked to decode."""
    if result.frames is None:
        raise RuntimeError("the run decoded nothing")
    return result.frames


def side_by_side(left: SampleResult, right: SampleResult, edge: int = 384) -> torch.Tensor:
    """The first frame of both, [H, 2W + gap, 3], enlarged without smoothing so that every pixel can be seen."""
    import torch

    first, second = frames_of(left)[0, 0], frames_of(right)[0, 0]
    gap = torch.ones(first.shape[0], max(2, first.shape[1] // 32), 3)
    row = torch.cat([first, gap, second], dim=1)
    times = max(1, edge // first.shape[0])
    return row.repeat_interleave(times, 0).repeat_interleave(times, 1)


def largest_difference(left: SampleResult, right: SampleResult) -> float:
    return float((frames_of(left) - frames_of(right)).abs().max())

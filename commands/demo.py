"""`fastdiffusers demo`: the embedded tiny pipeline, plain and with everything on, side by side. Needs no download.

What counts is that all three agree, and the reports, which list each optimization as applied or say why it is not. The
same for a clip of two seconds, which the embedded video VAE decodes whole, in exact strips and in tiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from ..callbacks import Callbacks
from ..optimizations.settings import CompileSettings, OptimizationSettings, PrecisionSettings, TilingSettings
from .files import check_folder_target, make_folder, write_text
from .libraries import prepare_libraries
from .media import read_frames, write_frames, write_picture
from .options import add_dtype_option, path_argument
from .terminal import TerminalProgress

if TYPE_CHECKING:
    import torch

    from ..pipelines.types import SampleResult

HELP = "run the embedded tiny pipeline, plain and with everything on, and the video VAE; show what differs"

PROMPT, SEED = "a red lighthouse at dusk, calm sea", 8
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
CLIP_FRAMES = 33
"""Two seconds."""
CLIP_WAYS: dict[str, dict[str, Any]] = {
    "whole": {"mode": "whole"},
    "exact": {"mode": "exact", "strips": (3, 2)},
    "tiles": {"mode": "tiles", "tile_size": 160, "tile_overlap": 64},
}
"""How the clip is decoded: settings of the video VAE."""
DIFFERENCE = 10
"""How many times a difference is enlarged."""


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
        clips = decoded_clips(args, callbacks)
    results = {name: second.result for name, (_, second) in runs.items()}
    make_folder(args.output)
    picture = args.output / f"{args.family}_plain_optimized_tiled.png"
    write_picture(side_by_side([frames_of(result)[0, 0] for result in results.values()]), picture)
    film = args.output / f"clip_{'_'.join(clips.made)}_difference.mp4"
    write_frames(in_a_row(clips), film, clips.rate)
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
        print()
        whole = clips.made["whole"]
        for name, frames in clips.made.items():
            other, said = (clips.clip, "what went in") if frames is whole else (whole, "whole")
            print(f"clip, {name}  decoded in {clips.seconds[name]:6.2f} s, {agreement(frames, other, said)}")
        print(
            f"from left to right in {film}: {', '.join(clips.made)}, and tiles less whole, {DIFFERENCE} times as strong"
        )


class Clips(NamedTuple):
    """A clip and what the video VAE makes of it.

    Attributes: clip, made: frames [1, T, H, W, 3] in 0..1, the latter by way; seconds: of each decode; rate: frames a
    second.
    """

    clip: torch.Tensor
    made: dict[str, torch.Tensor]
    seconds: dict[str, float]
    rate: float | None


def decoded_clips(args: argparse.Namespace, callbacks: Callbacks) -> Clips:
    """The embedded clip through the embedded video VAE, decoded in all `CLIP_WAYS`."""
    from ..cache_folder import cache_folder
    from ..vae import VaeSettings, decode, embedded_video_vae, encode, load_video_vae
    from ..vae.embedded import CLIP_FILE, TRAINED

    frames, rate = read_frames(CLIP_FILE)
    clips = Clips(frames[None, :CLIP_FRAMES], {}, {}, rate)
    vae = load_video_vae(embedded_video_vae(TRAINED, cache_folder()), dtype=args.dtype, device=args.device)
    latents, _ = encode(vae, clips.clip, callbacks=callbacks)
    for name, how in CLIP_WAYS.items():
        start = time.perf_counter()
        clips.made[name], _ = decode(vae, latents, VaeSettings(**how), callbacks)
        clips.seconds[name] = time.perf_counter() - start
    return clips


def in_a_row(clips: Clips) -> torch.Tensor:
    """What was decoded, side by side, and the difference of tiles from the whole: frames [1, T, H', W', 3]."""
    import torch

    shown = [made[0] for made in clips.made.values()]
    shown.append(((clips.made["tiles"] - clips.made["whole"])[0].abs() * DIFFERENCE).clamp(0, 1))
    return torch.stack([side_by_side(frames) for frames in zip(*shown, strict=True)])[None]


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
    result = generate(handle, SampleRequest(PROMPT, steps=args.steps, seed=SEED), settings, callbacks)
    return Run(result, time.perf_counter() - start)


def frames_of(result: SampleResult) -> torch.Tensor:
    """The decoded frames [B, T, H, W, 3] of a run that was asked to decode."""
    if result.frames is None:
        raise RuntimeError("the run decoded nothing")
    return result.frames


def side_by_side(frames: Sequence[torch.Tensor], edge: int = 384) -> torch.Tensor:
    """Frames [H, W, 3] in a row with gaps, enlarged without smoothing so that pixels can be seen: [H', W', 3]."""
    import torch

    gap = torch.ones(frames[0].shape[0], max(2, frames[0].shape[1] // 32), 3)
    row = torch.cat([part for frame in frames for part in (gap, frame)][1:], dim=1)
    times = max(1, edge // row.shape[0])
    return row.repeat_interleave(times, 0).repeat_interleave(times, 1)

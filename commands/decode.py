"""`fastdiffusers decode`: a latent file to pictures or video, with a pipeline's VAE or with the video VAE."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from ..callbacks import Callbacks
from ..errors import InputError
from ..optimizations.settings import OptimizationSettings
from ..pipelines.decoding.exactness import BIT_IDENTICAL, EXACTNESS_CHOICES
from ..pipelines.decoding.padding import without_padding
from ..report import log_run
from .declared import add_tiling_options, declared_by, refuse_given
from .files import check_file_target, write_text
from .keeping import write_or_keep
from .latent_file import latent_shape, read_latent, read_sound
from .libraries import prepare_libraries
from .media import check_output, frame_forms
from .options import (
    MODEL_HELP,
    add_device_options,
    add_model_options,
    path_argument,
    pipeline_handle,
    tiling_settings,
    vae_compile_settings,
)
from .prompts.request import rate_left_out
from .terminal import TerminalProgress, print_written
from .video_vae import VAE_HELP, add_own_options, add_video_vae_options, compiling, load, vae_settings

if TYPE_CHECKING:
    import torch

    from ..report import OptimizationReport

HELP = "turn a latent file into pictures or video"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="PATH_OR_ID", help=MODEL_HELP)
    source.add_argument("--vae", type=path_argument, metavar="FILE", help=VAE_HELP)
    parser.add_argument("--latents", required=True, type=path_argument, metavar="FILE.safetensors")
    parser.add_argument(
        "--output", required=True, type=path_argument, metavar="FILE", help="picture.png, video.mp4 or a folder"
    )
    parser.add_argument(
        "--report", type=path_argument, metavar="FILE.json", help="write what was active, and the timings"
    )
    parser.add_argument("--frame-rate", type=float, metavar="FPS", help="default: the latent file's, else 24")
    _add_exactness(parser)
    add_tiling_options(parser.add_argument_group("tiling"))
    add_video_vae_options(parser)
    add_model_options(parser)


def _add_exactness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exactness",
        choices=EXACTNESS_CHOICES,
        default=BIT_IDENTICAL,
        help="clips with --model: diffusers' bits, or fast where that is measured to be close and faster",
    )


def _check_options(args: argparse.Namespace) -> None:
    """Refuse what the chosen kind of VAE would not follow."""
    if args.vae is None:
        wanted, ignored = "--vae", declared_by(add_own_options)
    else:
        both = declared_by(add_device_options)
        of_pipelines = declared_by(_add_exactness) | declared_by(add_model_options)
        wanted = "--model"
        ignored = {name: option for name, option in of_pipelines.items() if name not in both}
        switch = {name: option for name, option in declared_by(add_tiling_options).items() if name == "vae_tiling"}
        refuse_given(args, switch, "--mode says how the video VAE is cut", "leave it out; --mode tiles makes tiles")
    refuse_given(args, ignored, f"it goes with {wanted}", "leave it out")


def _rate_in(metadata: dict[str, str]) -> float | None:
    """Frames per second that a latent's file says; None where it says none."""
    try:
        return float(metadata["frame_rate"])
    except (KeyError, ValueError):
        return None


def run(args: argparse.Namespace) -> None:
    from ..pipelines.conditions.rates import check_rate
    from ..pipelines.latents import check_kind

    _check_options(args)
    if args.report is not None:
        check_file_target("report", args.report, (".json",))
    shape = latent_shape(args.latents)
    video = len(shape) == 5 and shape[2] > 1
    check_output(args.output, video)
    latent, metadata = read_latent(args.latents)
    check_kind("latents", latent)
    sound = read_sound(args.latents)
    made_for = _rate_in(metadata)
    frame_rate = (made_for or 24.0) if args.frame_rate is None else args.frame_rate
    check_rate(frame_rate)
    if sound is not None and made_for is not None and made_for != frame_rate:
        reason = f"the sound in the latent's file goes with {made_for:g} frames per second, and would be out of step"
        raise InputError("frame_rate", frame_rate, reason, "leave --frame-rate out")
    prepare_libraries(args.verbose)
    with TerminalProgress(args.quiet) as callbacks:
        decode = decode_with_pipeline if args.vae is None else decode_with_video_vae
        frames, report = decode(args, latent, callbacks)
    frames = without_padding(frames, latent.shape, metadata, report)
    for note in rate_left_out(args.frame_rate, args.output):
        report.note(note)
    written = write_or_keep(args.output, frame_forms(frames, args.output, frame_rate if video else None, sound))
    log_run("decode", report)
    if args.report is not None:
        write_text(args.report, report.as_json())
    if not args.quiet:
        print(report.as_text())
        print_written([*written, args.report])


def decode_with_pipeline(
    args: argparse.Namespace, latent: torch.Tensor, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Frames [B, T, H, W, 3] in 0..1 on the CPU from the VAE of `--model`."""
    from ..pipelines.generate import decode

    settings = OptimizationSettings(vae_tiling=tiling_settings(args))
    if how := vae_compile_settings(args):
        settings = replace(settings, torch_compile="on", compile=how)
    return decode(pipeline_handle(args, callbacks), latent, settings, callbacks, exactness=args.exactness)


def decode_with_video_vae(
    args: argparse.Namespace, latent: torch.Tensor, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Frames [B, T, H, W, 3] in 0..1 on the CPU from the VAE in `--vae`."""
    from ..vae import decode

    settings = vae_settings(args)
    with compiling(args):
        return decode(load(args), latent, settings, callbacks)

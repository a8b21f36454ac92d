"""`fastdiffusers generate`: prompt in, picture or video out."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..report import log_run
from .files import check_file_target, write_text
from .keeping import ResultMovedError, write_or_keep
from .latent_file import latent_forms
from .libraries import prepare_libraries
from .media import check_output, frame_forms, left_out, read_picture
from .options import (
    FLOW_SHIFT_HELP,
    MODEL_HELP,
    add_lora_option,
    add_model_options,
    add_optimization_options,
    lora_specs,
    optimization_settings,
    path_argument,
    pipeline_handle,
    work_options,
    written_text,
)
from .terminal import TerminalProgress, print_written

if TYPE_CHECKING:
    from ..pipelines.types import SampleRequest, SampleResult

HELP = "make pictures or video from a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="PATH_OR_ID", help=MODEL_HELP)
    model.add_argument(
        "--diffusion-model",
        type=path_argument,
        metavar="FILE",
        help="a model from the files that ComfyUI takes, with --text-encoder and --vae",
    )
    parser.add_argument(
        "--text-encoder",
        action="append",
        default=[],
        type=path_argument,
        metavar="FILE",
        help="with --diffusion-model: a text encoder; repeat for several, in any order",
    )
    parser.add_argument("--vae", type=path_argument, metavar="FILE", help="with --diffusion-model: its VAE")
    parser.add_argument(
        "--second-expert",
        type=path_argument,
        metavar="FILE",
        help="with --diffusion-model, where it is Wan 2.2's expert for much noise: that for little noise",
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT")
    parser.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="FILE",
        help="picture.png, video.mp4 (with sound where the model makes it), a folder for png files, or "
        "latent.safetensors to skip the decode",
    )
    parser.add_argument(
        "--report", type=path_argument, metavar="FILE.json", help="write what was active, and the timings"
    )

    group = parser.add_argument_group("sampling (left out: what the model's family recommends)")
    group.add_argument("--steps", type=int, metavar="N")
    group.add_argument("--guidance", type=float, metavar="SCALE")
    group.add_argument("--guidance-2", type=float, metavar="SCALE", help="second expert of Wan 2.2")
    group.add_argument("--width", type=int, metavar="PIXELS")
    group.add_argument("--height", type=int, metavar="PIXELS")
    group.add_argument("--num-frames", type=int, metavar="N")
    group.add_argument("--frame-rate", type=float, metavar="FPS")
    group.add_argument("--flow-shift", type=float, metavar="SHIFT", help=FLOW_SHIFT_HELP)
    group.add_argument("--seed", type=int, default=0, metavar="N")
    group.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="results to make, with seeds N, N+1, ...: out.png becomes out_0.png, out_1.png, ...",
    )
    group.add_argument(
        "--scheduler",
        default="model default",
        metavar="NAME",
        help="euler, dpm++ 2m, unipc ... or a diffusers scheduler class",
    )
    group.add_argument(
        "--image",
        action="append",
        default=[],
        type=path_argument,
        metavar="FILE",
        help="reference image; repeat for several",
    )
    group.add_argument(
        "--last-image", type=path_argument, metavar="FILE", help="last frame, for first-and-last-frame video"
    )
    group.add_argument("--strength", type=float, default=1.0, help="below 1: start from --image, where possible")
    add_lora_option(parser)
    add_model_options(parser)
    add_optimization_options(parser)


def run(args: argparse.Namespace) -> None:
    settings = optimization_settings(args)
    loras = lora_specs(args)
    latent_only = args.output.suffix == ".safetensors"
    if latent_only:
        check_file_target("output", args.output, (".safetensors",))
    if args.report is not None:
        check_file_target("report", args.report, (".json",))
    prepare_libraries(args.verbose)

    from ..pipelines.generate import generate
    from ..pipelines.loading.loader import family_of_key
    from ..pipelines.results import refuse_without_picture

    with TerminalProgress(args.quiet) as callbacks:
        handle = replace(pipeline_handle(args, callbacks), loras=loras)
        family = family_of_key(handle.key)
        refuse_without_picture(family, sound_counts=False)
        if not latent_only:
            video = family.video and args.num_frames != 1
            check_output(args.output, video)
        result = generate(handle, sample_request(args, decode=not latent_only), settings, callbacks)
    for path in (*args.image, *([] if args.last_image is None else [args.last_image])):
        for note in left_out(path, alpha=True):
            result.report.note(note)
    written = write_result(result, args.output)
    log_run("generate", result.report)
    if args.report is not None:
        write_text(args.report, result.report.as_json())
    if not args.quiet:
        print(result.report.as_table())
        print_written([*written, args.report])


def sample_request(args: argparse.Namespace, decode: bool) -> SampleRequest:
    """The request that the options describe, its images read. Raises InputError for an unreadable image."""
    from ..pipelines.types import SampleRequest

    return SampleRequest(
        **work_options(args),
        negative_prompt=written_text("negative_prompt", args.negative_prompt),
        frame_rate=args.frame_rate,
        scheduler=args.scheduler,
        images=tuple(read_picture(path, alpha=True) for path in args.image),
        last_image=None if args.last_image is None else read_picture(args.last_image, "last_image", alpha=True),
        strength=args.strength,
        decode=decode,
    )


def write_result(result: SampleResult, output: Path) -> list[Path]:
    """Write the frames, or the latent when nothing was decoded, where `--output` says; returns the files.

    Raises:
        ResultMovedError: it cannot be written there, and is kept elsewhere.
    """
    if result.latent is None and result.frames is not None and output.suffix == ".safetensors":
        shown = output.with_suffix(".mp4" if result.frames.shape[1] > 1 else ".png")
        write_or_keep(shown, frame_forms(result.frames, shown, result.frame_rate, result.audio))
        raise ResultMovedError(f"{output} is not there: this pipeline shows no latent. Its result is {shown}.")
    if result.frames is None and result.latent is not None:
        rate = {} if result.frame_rate is None else {"frame_rate": str(result.frame_rate)}
        return write_or_keep(output, latent_forms(result.latent, rate, result.audio))
    if result.frames is None:
        return []
    return write_or_keep(output, frame_forms(result.frames, output, result.frame_rate, result.audio))

"""`fastdiffusers encode`: a video or pictures to a latent file, with the 3D video VAE."""

from __future__ import annotations

import argparse
import math

from ..pipelines.decoding.padding import padding_of
from ..report import log_run
from .declared import add_tile_options
from .files import check_file_target, write_text
from .keeping import check_room, write_or_keep
from .latent_file import latent_forms
from .libraries import prepare_libraries
from .media import left_out, read_frames
from .options import add_device_options, path_argument
from .terminal import TerminalProgress, print_written
from .video_vae import VAE_HELP, add_video_vae_options, compiling, load, vae_settings
from .videos import has_sound

HELP = "turn a video or pictures into a latent file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vae", required=True, type=path_argument, metavar="FILE", help=VAE_HELP)
    parser.add_argument(
        "--frames", required=True, type=path_argument, metavar="PATH", help="video, picture, or folder of png"
    )
    parser.add_argument("--output", required=True, type=path_argument, metavar="FILE.safetensors")
    parser.add_argument(
        "--report", type=path_argument, metavar="FILE.json", help="write what was active, and the timings"
    )
    add_video_vae_options(parser)
    add_tile_options(parser)
    add_device_options(parser)


def run(args: argparse.Namespace) -> None:
    check_file_target("output", args.output, (".safetensors",))
    if args.report is not None:
        check_file_target("report", args.report, (".json",))
    settings = vae_settings(args)
    frames, frame_rate = read_frames(args.frames)
    sound = has_sound(args.frames)
    check_room("output", args.output, latent_bytes(*frames.shape[:3]))
    prepare_libraries(args.verbose)

    from ..vae import encode

    with TerminalProgress(args.quiet) as callbacks, compiling(args):
        vae = load(args)
        latent, report = encode(vae, frames[None], settings, callbacks)
    for note in [*left_out(args.frames), *([f"{args.frames.name}: its sound is left out."] if sound else [])]:
        report.note(note)
    metadata = {} if frame_rate is None else {"frame_rate": str(frame_rate)}
    padding = padding_of(len(frames), vae.config.frames(latent.shape[2]), latent.shape)
    metadata |= {name: str(number) for name, number in padding.items()}
    written = write_or_keep(args.output, latent_forms(latent, metadata))
    log_run("encode", report)
    if args.report is not None:
        write_text(args.report, report.as_json())
    if not args.quiet:
        print(report.as_text())
        print_written([*written, args.report])


def latent_bytes(frames: int, height: int, width: int) -> int:
    """Bytes that the latent of a clip takes at least: 16 channels, 4x8x8 pixels to each, in float16."""
    return 16 * math.ceil(frames / 4) * (height // 8) * (width // 8) * 2

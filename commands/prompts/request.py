"""From options to a request, and from a result to files: the same for one prompt and for a file of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..conditions import conditions, conditions_left_out
from ..files import check_file_target
from ..keeping import Form, write_or_keep
from ..latent_file import latent_forms
from ..media import frame_forms, left_out, read_picture
from ..options import work_options, written_text

if TYPE_CHECKING:
    import torch

    from ...pipelines.families import Family
    from ...pipelines.types import SampleRequest, SampleResult

LATENT = ".safetensors"
NO_VAE = Path("none")
"""What stands for no VAE at all."""


def check_latent_target(output: Path) -> bool:
    """Whether `--output` asks for the latent alone. Raises InputError where that cannot be written."""
    if output.suffix != LATENT:
        return False
    check_file_target("output", output, (LATENT,))
    return True


def refuse_latent(family: Family, name: str, output: str) -> None:
    """Raise InputError where a latent is asked for, by the name of the output, which nothing here would decode."""
    from ...pipelines.latents import refuse_own_layout

    refuse_own_layout(family, name, output, f"name a {'.mp4' if family.video else '.png'} instead")


def leave_vae_out(args: argparse.Namespace) -> None:
    """For a latent alone a model in parts needs no VAE: name none where none is named."""
    if args.diffusion_model is not None and args.vae is None:
        args.vae = NO_VAE


def sample_request(
    args: argparse.Namespace, decode: bool, read: Callable[..., torch.Tensor] = read_picture
) -> SampleRequest:
    """The request that the options describe, its images read by `read`.

    Raises:
        InputError: an image is unreadable, or a text is none.
    """
    from ...pipelines.types import SampleRequest

    return SampleRequest(
        **work_options(args),
        negative_prompt=written_text("negative_prompt", args.negative_prompt),
        frame_rate=args.frame_rate,
        max_sequence_length=args.max_sequence_length,
        scheduler=args.scheduler,
        images=tuple(read(path, alpha=True) for path in args.image),
        last_image=None if args.last_image is None else read(args.last_image, "last_image", alpha=True),
        strength=args.strength,
        decode=decode,
        conditions=conditions(args, read),
    )


def note_what_is_left_out(args: argparse.Namespace, result: SampleResult) -> None:
    """Say in the report what of the images was not read."""
    for path in (*args.image, *([] if args.last_image is None else [args.last_image])):
        for note in left_out(path, alpha=True):
            result.report.note(note)
    for note in conditions_left_out(args):
        result.report.note(note)
    # A file of prompts has videos in .mp4 alone.
    silent = args.prompts is None and args.output.suffix.lower() != ".mp4"
    if silent and result.frame_rate is not None:
        for note in rate_left_out(args.frame_rate, args.output):
            result.report.note(note)
    if silent and result.frames is not None and result.frames.shape[0] > 1 < result.frames.shape[1]:
        clips, frames = result.frames.shape[:2]
        result.report.note(f"output: the frames of {clips} clips follow each other in one folder, {frames} of each.")
    if silent and result.audio is not None and result.frames is not None:
        result.report.note("the sound is not written: an .mp4 holds it beside the pictures.")


def rate_left_out(rate: float | None, output: Path) -> list[str]:
    """That a frame rate that was asked for is in no file that is written; [] where one holds it, or none was asked."""
    if rate is None or output.suffix.lower() in (".mp4", LATENT):
        return []
    return [f"frame_rate: {rate:g} is in no file, since pictures have none: an .mp4 has."]


def result_forms(result: SampleResult, output: Path) -> list[Form]:
    """How a result can be written: as `output` asks for, and smaller; nothing for a result without either."""
    if result.frames is None and result.latent is not None:
        rate: dict[str, Any] = {} if result.frame_rate is None else {"frame_rate": str(result.frame_rate)}
        return latent_forms(result.latent, rate, result.audio)
    if result.frames is None:
        return []
    return frame_forms(result.frames, output, result.frame_rate, result.audio)


def write_result(result: SampleResult, output: Path) -> list[Path]:
    """Write the frames, or the latent when nothing was decoded, where `--output` says; returns the files.

    Raises:
        ResultMovedError: it cannot be written there, and is kept elsewhere.
    """
    forms = result_forms(result, output)
    return write_or_keep(output, forms) if forms else []

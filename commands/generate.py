"""`fastdiffusers generate`: prompt in, picture or video out; or a file of prompts in, a folder of results out."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError
from ..report import log_run
from .files import check_file_target, write_text
from .libraries import prepare_libraries
from .media import check_output
from .options import lora_specs, optimization_settings, pipeline_handle
from .prompts import arguments
from .prompts.engine_options import engine_of
from .prompts.parallel import add_parallel_options, check_parallel_options, generate_for
from .prompts.queue import SomeFailedError, work_through
from .prompts.recommended import note_other_measurements
from .prompts.request import (
    check_latent_target,
    leave_vae_out,
    note_what_is_left_out,
    refuse_latent,
    sample_request,
    write_result,
)
from .prompts.served import make_one
from .terminal import TerminalProgress, print_written

if TYPE_CHECKING:
    from ..engines.settings import Engine
    from ..pipelines.types import SampleResult

HELP = "make pictures or video from a prompt, or from a file of prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_arguments(parser)
    arguments.add_queue_options(parser)
    add_parallel_options(parser)


def run(args: argparse.Namespace) -> None:
    check_parallel_options(args)
    if args.prompts is not None:
        work_through(args)
        return
    arguments.check_queue_options(args)
    engine = engine_of(args)
    if args.report is not None:
        check_file_target("report", args.report, (".json",))
    result = _make_here(args) if engine is None else _make_there(args, engine)
    note_what_is_left_out(args, result)
    written = write_result(result, args.output)
    log_run("generate", result.report)
    if args.report is not None:
        write_text(args.report, result.report.as_json())
    if not args.quiet:
        print(result.report.as_table())
        print_written([*written, args.report])
    if result.missing:
        kept = ", ".join(map(str, written))
        raise SomeFailedError(f"{result.missing.rstrip('.')}. What was made before is there: {kept}")


def _make_here(args: argparse.Namespace) -> SampleResult:
    if args.model is None and args.diffusion_model is None:
        raise InputError("model", "", "no model is named", "give --model, or --diffusion-model with its parts")
    settings = optimization_settings(args)
    loras = lora_specs(args)
    latent_only = check_latent_target(args.output)
    if latent_only:
        leave_vae_out(args)
    prepare_libraries(args.verbose)
    generate = generate_for(args)

    from ..pipelines.loading.loader import family_of_key
    from ..pipelines.results import refuse_without_picture

    with TerminalProgress(args.quiet) as callbacks:
        handle = replace(pipeline_handle(args, callbacks), loras=loras)
        family = family_of_key(handle.key)
        refuse_without_picture(family, sound_counts=False)
        if latent_only:
            refuse_latent(family, "output", str(args.output))
        else:
            video = family.video and args.num_frames != 1
            check_output(args.output, video)
        result = generate(handle, sample_request(args, decode=not latent_only), settings, callbacks)
    note_other_measurements(args.recommended, handle, settings, result)
    return result


def _make_there(args: argparse.Namespace, engine: Engine) -> SampleResult:
    prepare_libraries(args.verbose)
    with TerminalProgress(args.quiet) as callbacks:
        return make_one(args, engine, callbacks)

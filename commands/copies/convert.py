"""`fastdiffusers convert`: a diffusers folder of a model that lies in other files."""

from __future__ import annotations

import argparse

from ..libraries import prepare_libraries
from ..options import add_device_options, add_parts_options, path_argument, pipeline_handle
from ..terminal import TerminalProgress

HELP = "write a model in parts, or in one file, as a diffusers folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_parts_options(parser)
    parser.add_argument(
        "--output", required=True, type=path_argument, metavar="FOLDER", help="a folder that does not exist yet"
    )
    add_device_options(parser)
    parser.set_defaults(revision="", quantization="none", memory_mode="auto")


def run(args: argparse.Namespace) -> None:
    prepare_libraries(args.verbose)

    from ...pipelines.loading.saving.folder import save_folder

    with TerminalProgress(args.quiet) as callbacks:
        saved = save_folder(pipeline_handle(args, callbacks).key, args.output, callbacks)
    if not args.quiet:
        for name, description in saved.components.items():
            print(f"{name}: {description}")
        print(f"{saved.folder}: {saved.bytes / 2**20:.1f} MiB of weights")

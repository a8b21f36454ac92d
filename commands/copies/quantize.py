"""`fastdiffusers quantize`: a quantized copy of a diffusers folder, with SDNQ."""

from __future__ import annotations

import argparse

from ..libraries import prepare_libraries
from ..options import MODEL_HELP, path_argument
from ..terminal import TerminalProgress

HELP = "write a quantized copy of a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH_OR_ID", help=MODEL_HELP)
    parser.add_argument(
        "--weights-dtype", required=True, metavar="TYPE", help="int8, uint4, fp8, or another type that SDNQ knows"
    )
    parser.add_argument(
        "--output", required=True, type=path_argument, metavar="FOLDER", help="a folder that does not exist yet"
    )
    parser.add_argument(
        "--svd-rank", type=int, default=0, metavar="N", help="add a correction of this rank: closer, slower (e.g. 32)"
    )
    parser.add_argument(
        "--quantized-matmul", action="store_true", help="let the copy multiply in the quantized type by default"
    )
    parser.add_argument("--revision", default="", help="Hub commit or branch (default: the newest)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="where to quantize: auto, cpu, cuda, ...")


def run(args: argparse.Namespace) -> None:
    prepare_libraries(args.verbose)

    from ...pipelines.loading.quantized_copy import quantize_folder

    with TerminalProgress(args.quiet) as callbacks:
        copy = quantize_folder(
            args.model,
            args.weights_dtype,
            args.output,
            revision=args.revision,
            device=args.device,
            svd_rank=args.svd_rank,
            quantized_matmul=args.quantized_matmul,
            callbacks=callbacks,
        )
    if not args.quiet:
        for name, description in copy.components.items():
            print(f"{name}: {description or 'nothing large enough to quantize'}")
        before, after = copy.bytes_before / 2**20, copy.bytes_after / 2**20
        print(f"{copy.folder}: {after:.1f} MiB of weights, {before:.1f} MiB before")

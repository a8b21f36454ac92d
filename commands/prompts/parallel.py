"""`--parallel`: one picture or clip over several cards of this machine."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...cluster.parallel.choice import PARALLEL_CHOICES, parallel_settings
from ...errors import InputError

if TYPE_CHECKING:
    from ...callbacks import Callbacks
    from ...optimizations.settings import OptimizationSettings
    from ...pipelines.types import PipelineHandle, SampleRequest, SampleResult

    Generate = Callable[[PipelineHandle, SampleRequest, OptimizationSettings, Callbacks], SampleResult]


def add_parallel_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one picture over several cards")
    group.add_argument(
        "--parallel",
        choices=PARALLEL_CHOICES,
        default="off",
        help="ulysses: split each call of the denoiser over the cards of this machine (diffusers' context parallelism) "
        "where a trial gives what one card gives; cfg: two cards make one branch of guidance each; auto: ulysses, or "
        "cfg where diffusers has no plan for the model, where that is faster, too (default: off)",
    )
    group.add_argument(
        "--parallel-devices",
        type=int,
        metavar="N",
        help="with --parallel: over how many cards (default: all), or without cards, how many processes",
    )


def check_parallel_options(args: argparse.Namespace) -> None:
    """Raises InputError for `--parallel` where something else says how it is made, and for its companion alone."""
    if args.parallel == "off":
        if args.parallel_devices is not None:
            cure = "leave it out, or add --parallel ulysses"
            raise InputError("--parallel-devices", args.parallel_devices, "it goes with --parallel", cure)
    elif args.prompts is not None:
        cure = "use --cluster" if args.engine is None else "leave it out"
        raise InputError("--parallel", args.parallel, "it makes one picture, not a file of prompts", cure)
    elif args.engine is not None:
        raise InputError("--parallel", args.parallel, "a server's cards are its own to use", "leave it or --engine out")


def generate_for(args: argparse.Namespace) -> Generate:
    """What makes the picture: this process, or several.

    Raises:
        InputError: a number of devices that cannot be.
    """
    from ...pipelines.generate import generate

    if args.parallel == "off":
        return generate
    settings = parallel_settings(args.parallel, args.parallel_devices)

    def together(
        handle: PipelineHandle, request: SampleRequest, optimizations: OptimizationSettings, callbacks: Callbacks
    ) -> SampleResult:
        from ...cluster.child import client
        from ...cluster.parallel.client import generate_together

        key = handle.key if handle.key.device == "cpu" else replace(handle.key, device=args.device)
        spread, alone = replace(handle, key=key), lambda: generate(handle, request, optimizations, callbacks)
        try:
            temporary = Path(tempfile.gettempdir())
            return generate_together(settings, spread, request, optimizations, callbacks, temporary, alone)
        finally:
            client.end(wait=True)

    return together

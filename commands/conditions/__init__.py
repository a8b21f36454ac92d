"""The options of `generate` for what a run is held to beside its prompt, and what is read of their files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..media import read_picture
from ..options import path_argument

if TYPE_CHECKING:
    from ...pipelines.conditions.kinds import Condition


def add_condition_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("conditions")
    group.add_argument(
        "--mask",
        type=path_argument,
        metavar="FILE",
        help="picture of what --image keeps and what is made anew: black is kept, white is made anew",
    )


def conditions(args: argparse.Namespace) -> tuple[Condition, ...]:
    """What the options describe, their files read. Raises InputError for one that cannot be read."""
    from ...pipelines.conditions.kinds import MaskCondition

    found: list[Condition] = []
    if args.mask is not None:
        found.append(MaskCondition(read_picture(args.mask, "mask").mean(dim=-1)[None]))
    return tuple(found)


def condition_files(args: argparse.Namespace) -> list[Path]:
    """The pictures among them, for what is not read of a file to be said."""
    return [] if args.mask is None else [args.mask]

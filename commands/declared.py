"""Options as a parser declares them: given twice, named in an error, or of no effect beside another one.

The options that say how what a switch turns on is done are declared here, so that they can be refused where it is off.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..optimizations.settings import COMPILE_BACKENDS, COMPILE_MODES, COMPILE_SCOPES, TRISTATE
from ..pipelines.loading.small_files import plain_path

Adds = Callable[[argparse.ArgumentParser], object]
"""Declares options, of a parser or a group of one."""


class Declared(NamedTuple):
    """An option as a parser knows it. Attributes: flag, as it is typed; default; switch, whether it takes no value."""

    flag: str
    default: object
    switch: bool


def path_argument(text: str) -> Path:
    """A path on the command line, `~` replaced. What no file can be called is a usage error."""
    try:
        return plain_path("path", text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def declared_by(adds: Adds) -> dict[str, Declared]:
    """Name -> option, of those that a function declares."""
    parser = argparse.ArgumentParser(add_help=False)
    adds(parser)
    return {
        action.dest: Declared(action.option_strings[-1], action.default, action.nargs == 0)
        for action in parser._actions
        if action.option_strings
    }


class OnceParser(argparse.ArgumentParser):
    """A parser that takes an option that names one file once: of two, argparse passes over the first.

    Of two numbers the later one counts, as on any command line: so common options can be written before others.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.given: set[str] = set()
        for name in (None, "store"):
            self.register("action", name, _StoredOnce)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = set()
        return super().parse_known_args(args, namespace)


class _StoredOnce(argparse._StoreAction):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Any,
        values: str | Sequence[Any] | None,
        flag: str | None = None,
    ) -> None:
        given: set[str] = getattr(parser, "given", set())
        if flag is not None and self.type is path_argument and self.dest in given:
            raise argparse.ArgumentError(self, "it is given twice, and takes one file: say it once")
        given.add(self.dest)
        super().__call__(parser, namespace, values, flag)


_OTHERWISE = {
    "control_start_and_end": "control_start",
    "decode": "vae",
    "images": "image",
    "latent": "latents",
    "mask_image": "mask",
    "conditioning_frames": "control_video",
    "driving_video": "video",
    "overlap": "tile_overlap",
    "pixels": "frames",
    "positive": "text_encoder",
    "scope": "compile_scope",
    "size": "width",
    "url": "engine",
    "wait": "engine_wait",
}
"""What an input is called where there is no option of that name -> the option that gives it."""


def as_typed(error: InputError, adds: Adds) -> InputError:
    """An error that names its input by the option that gives it, where one does.

    Args:
        adds: declares the options of the subcommand.
    """
    options = declared_by(adds)
    several = re.fullmatch(r"[a-z0-9_]+(, [a-z0-9_]+)+", error.name)
    names = [_flag(name, options) for name in (error.name.split(", ") if several else [error.name])]
    return type(error)(", ".join(names), error.value, error.reason, error.cure)


def _flag(given: str, options: dict[str, Declared]) -> str:
    """An input's name as it is typed, where an option gives it."""
    found = re.fullmatch(r"([a-z0-9_ ]+?)(\[\d+\]|(?<=argument) .+)?", given)
    if found is None:
        return given
    words, rest = found.groups("")
    name, (first, _, second) = words.replace(" ", "_"), words.partition(" ")
    for known, behind in ((name, rest), (_OTHERWISE.get(name, ""), rest), (first, f" {second}{rest}")):
        if known in options and known != "help":
            return f"{options[known].flag}{behind}"
    return given


def add_compiler_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--compile-scope", choices=COMPILE_SCOPES, default="blocks", help="what repeats (default), or all as one"
    )
    group.add_argument("--compile-mode", choices=COMPILE_MODES, default="default", help="inductor's mode")
    group.add_argument("--compile-backend", choices=COMPILE_BACKENDS, default="inductor", help="dynamo's backend")
    group.add_argument(
        "--no-memory-check",
        dest="memory_check",
        action="store_false",
        help="with --torch-compile on: compile even where that may push the model out of memory",
    )


def add_tiling_options(group: argparse._ActionsContainer) -> None:
    group.add_argument("--vae-tiling", choices=TRISTATE, default="auto", help="decode the image in tiles")
    add_tile_options(group)


def add_tile_options(group: argparse._ActionsContainer) -> None:
    group.add_argument("--tile-size", type=int, default=0, metavar="PIXELS", help="tile edge, 0: the model's default")
    group.add_argument(
        "--tile-overlap",
        type=int,
        default=0,
        metavar="PIXELS",
        help="overlap, 0: the model's own, a quarter of --tile-size",
    )


_SWITCHES: dict[str, Adds] = {"torch_compile": add_compiler_options, "vae_tiling": add_tile_options}
"""Option that is a switch -> what declares the options that say how."""


def check_switched_off(args: argparse.Namespace) -> None:
    """Refuse options that describe what is off.

    Raises:
        InputError: names the option, and the switch.
    """
    for switch, adds in _SWITCHES.items():
        if getattr(args, switch, "") == "off":
            option = f"--{switch.replace('_', '-')}"
            reason, cure = f"{option} is off, so it would do nothing", f"leave it out, or add {option} on"
            refuse_given(args, declared_by(adds), reason, cure)


def refuse_given(args: argparse.Namespace, options: dict[str, Declared], reason: str, cure: str) -> None:
    """Refuse options that a command line gives another value than their default.

    Args:
        options: one that the subcommand has not is passed over.

    Raises:
        InputError: names the first, with `reason` and `cure`.
    """
    for name, option in options.items():
        value = getattr(args, name, option.default)
        if value != option.default:
            raise InputError(option.flag, True if option.switch else value, reason, cure)

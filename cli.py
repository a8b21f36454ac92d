"""The command line: which subcommands there are, and what their exit status says.

0: done. 2: bad input, one line on stderr says what and how to cure it. 1: a failure. 130: cancelled with Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, Protocol

from . import __version__
from .commands import bench, decode, demo, doctor, encode, generate, quantize
from .errors import FastDiffusersError, InputError


class Command(Protocol):
    """What a module in `commands/` offers. Importing it needs no torch: that waits until `run`."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the subcommand's options."""

    def run(self, args: argparse.Namespace) -> None:
        """Do it. Raises InputError for bad input; whatever else it raises is a failure."""


COMMANDS: dict[str, Command] = {
    "generate": generate,
    "decode": decode,
    "encode": encode,
    "bench": bench,
    "quantize": quantize,
    "doctor": doctor,
    "demo": demo,
}

OK, FAILURE, BAD_INPUT, CANCELLED = 0, 1, 2, 130


class OneLineParser(argparse.ArgumentParser):
    """argparse, but a usage error is one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="fastdiffusers",
        description="Diffusers pipelines and 3D video VAEs, as fast as the card allows.",
        epilog="exit status: 0 done, 1 failure, 2 bad input, 130 cancelled",
    )
    parser.add_argument("--version", action="version", version=f"fastdiffusers {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.add_argument("--quiet", action="store_true", help="no progress, no summary: errors only")
        subparser.add_argument(
            "--verbose", action="store_true", help="show the libraries' messages and full tracebacks"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: the arguments without the program's name; `sys.argv[1:]` when None.
    """
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help, --version or a usage error: argparse has said what there is to say
        return int(stop.code or OK)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.ERROR, format="%(name)s: %(message)s")
    try:
        COMMANDS[args.command].run(args)
        return OK
    except KeyboardInterrupt:
        return _complain(args, "cancelled", CANCELLED)
    except BrokenPipeError:  # `fastdiffusers doctor | head`: the reader has seen enough
        sys.stderr.close()
        return OK
    except InputError as error:
        return _complain(args, str(error), BAD_INPUT)
    except FastDiffusersError as error:
        return _complain(args, str(error), FAILURE)
    except Exception as error:  # noqa: BLE001 - the outermost door: every failure becomes a status and one line
        return _complain(args, f"{type(error).__name__}: {error}", FAILURE)


def _complain(args: argparse.Namespace, text: str, status: int) -> int:
    if args.verbose and status != CANCELLED:
        traceback.print_exc()
    line = " ".join(text.split())
    print(f"fastdiffusers {args.command}: {line}", file=sys.stderr)
    return status

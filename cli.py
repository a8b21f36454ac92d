"""The command line: which subcommands there are, and what their exit status says.

0: done. 2: bad input, one line on stderr says what and how to cure it. 1: a failure. 130: cancelled with Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

from . import __version__
from .commands import bench, decode, demo, doctor, encode, generate
from .commands.copies import convert, quantize
from .commands.declared import OnceParser, as_typed
from .commands.files import check_not_inputs
from .errors import DISK_FULL, FastDiffusersError, InputError
from .report import logger as run_logger

_AGAIN_SECONDS = 0.1
"""After which a signal is sent again that came at a place where nothing can be raised."""


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
    "convert": convert,
    "doctor": doctor,
    "demo": demo,
}

OK, FAILURE, BAD_INPUT, CANCELLED = 0, 1, 2, 130


class OneLineParser(OnceParser):
    """argparse, but a usage error is one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def program() -> str:
    """The words that started this command line, as they have to be typed again: a clone need not be installed."""
    started, own = Path(sys.argv[0]), Path(__file__).with_name("__main__.py").resolve()
    if started.resolve() == own:
        return "python -m fastdiffusers"
    if (started / "__main__.py").resolve() == own:  # `python FOLDER`
        return f"python {shlex.quote(sys.argv[0])}"
    return "fastdiffusers"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=program(),
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
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a terminal that knows no such letter shows its number
    name = ""
    try:
        with stopped_like_ctrl_c():
            parser = build_parser()
            try:
                args = parser.parse_args(argv)
            except SystemExit as stop:  # --help, --version or a usage error: argparse has said what there is to say
                return int(stop.code or OK)
            name = f" {args.command}"
            return _run(args)
    except KeyboardInterrupt as stop:
        return _complain(name, f"cancelled: {stop}" if stop.args else "cancelled", CANCELLED)


def _run(args: argparse.Namespace) -> int:
    name = f" {args.command}"
    logging.basicConfig(level=logging.INFO if args.verbose else logging.ERROR, format="%(name)s: %(message)s")
    run_logger.setLevel(logging.ERROR if args.quiet else logging.INFO)
    try:
        check_not_inputs(args)
        COMMANDS[args.command].run(args)
        return OK
    except BrokenPipeError:  # `fastdiffusers doctor | head`: the reader has seen enough
        sys.stderr.close()
        return OK
    except InputError as error:
        typed = as_typed(error, COMMANDS[args.command].add_arguments)
        return _complain(name, str(typed), BAD_INPUT, args.verbose)
    except FastDiffusersError as error:
        return _complain(name, str(error), FAILURE, args.verbose)
    except ModuleNotFoundError as error:
        python = sys.executable or "this Python"
        text = f"{python} has no package {error.name!r}. Use the Python that has the requirements: ComfyUI's own, or"
        return _complain(name, f"{text} .venv/bin/python after `make demo`", FAILURE, args.verbose)
    except OSError as error:
        full = error.errno in DISK_FULL
        where = f"{error.filename}: " if error.filename else ""
        cure = ". Free some space and run again." if full else ""
        return _complain(name, f"{where}{error.strerror or error}{cure}", FAILURE, args.verbose)
    except Exception as error:  # noqa: BLE001 - the outermost door: every failure becomes a status and one line
        return _complain(name, f"{type(error).__name__}: {error}", FAILURE, args.verbose)


def _complain(name: str, text: str, status: int, verbose: bool = False) -> int:
    if verbose:
        traceback.print_exc()
    line = " ".join(text.split())
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"fastdiffusers{name}: {line}", file=sys.stderr)
    _let_go("stderr")
    if status == CANCELLED:
        _let_go("stdout")
    return status


def _let_go(stream: str) -> None:
    """Leave nothing in a stream that cannot be written any more: Python would end with a status of its own, 120."""
    try:
        getattr(sys, stream).flush()
    except OSError:
        setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


class _SignalledError(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) end the block as Ctrl-C does: what is half written is removed.

    A signal that is ignored (nohup) or handled already stays so. A second one does not disturb the cleaning up.
    """

    def stop(number: int, frame: object) -> None:
        for each in changed:
            signal.signal(each, signal.SIG_IGN)
        raise _SignalledError(number)

    def again(unraisable: sys.UnraisableHookArgs) -> None:
        """What is raised while a destructor or a weak reference's callback runs goes no further: once more, outside."""
        if not isinstance(unraisable.exc_value, _SignalledError):
            before(unraisable)
            return
        for each in changed:
            signal.signal(each, stop)
        repeated = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), unraisable.exc_value.number))
        repeated.daemon = True
        repeated.start()

    changed: list[int] = []
    if threading.current_thread() is threading.main_thread():  # signals can be handled nowhere else
        wanted = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        changed += [number for number in wanted if number is not None and signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, stop)
    before = sys.unraisablehook
    if changed:
        sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
        for number in changed:
            signal.signal(number, signal.SIG_DFL)

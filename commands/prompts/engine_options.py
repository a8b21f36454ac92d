"""The options of `generate` for a serving engine."""

from __future__ import annotations

import argparse

from ...engines.settings import AUTO, KEY, PATIENCE, SERVERS, Engine, parse_engine
from ...errors import InputError

NAMES = ("engine", "engine_server", "engine_wait")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """A server, and how it is talked to."""
    group = parser.add_argument_group("a serving engine")
    group.add_argument(
        "--engine",
        metavar="URL",
        help="let a running SGLang-Diffusion or vLLM-Omni server make it, e.g. http://127.0.0.1:30000; --model is then "
        f"the name of the model that it must have; {KEY} in the environment is its API key",
    )
    group.add_argument(
        "--engine-server", choices=SERVERS, help="with --engine: which it is (default: auto, it is asked)"
    )
    group.add_argument(
        "--engine-wait",
        type=float,
        metavar="SECONDS",
        help=f"with --engine: how long one result may take (default: {PATIENCE:g})",
    )


def engine_of(args: argparse.Namespace) -> Engine | None:
    """What `--engine` and its companions say; None where no server makes it.

    Raises:
        InputError: they cannot be had so, or not together.
    """
    if args.engine is None:
        for name in NAMES[1:]:
            if (value := getattr(args, name)) is not None:
                raise InputError(flag(name), value, "it goes with --engine", "leave it out")
        return None
    if args.cluster is not None:
        raise InputError("--cluster", args.cluster, "a server is no part of a cluster", "leave it or --engine out")
    patience = PATIENCE if args.engine_wait is None else args.engine_wait
    return parse_engine(args.engine, args.engine_server or AUTO, model=args.model or "", patience=patience)


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"

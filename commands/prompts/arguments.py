"""The options of `generate`, on the command line and in each line of a file of prompts."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from ...cluster.settings import PATIENCE, ClusterSettings, parse_cluster
from ...errors import InputError
from ..conditions import add_condition_options
from ..declared import OnceParser
from ..options import (
    FLOW_SHIFT_HELP,
    add_lora_option,
    add_model_options,
    add_optimization_options,
    add_parts_options,
    path_argument,
)
from .engine_options import NAMES as ENGINE
from .engine_options import add_engine_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_parts_options(parser, required=False)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument(
        "--prompts",
        type=path_argument,
        metavar="FILE",
        help="work through a file: .txt (a prompt a line), .csv or .jsonl (any of these options per line); what is "
        "given here is for every line that does not say otherwise",
    )
    parser.add_argument("--negative-prompt", default="", metavar="TEXT")
    parser.add_argument(
        "--output",
        required=True,
        type=path_argument,
        metavar="FILE",
        help="picture.png, video.mp4 (with sound where the model makes it), a folder for png files, or "
        "latent.safetensors to skip the decode; with --prompts the folder of all results",
    )
    parser.add_argument(
        "--report", type=path_argument, metavar="FILE.json", help="write what was active, and the timings"
    )

    group = parser.add_argument_group("sampling (left out: what the model's family recommends)")
    group.add_argument("--steps", type=int, metavar="N")
    group.add_argument("--guidance", type=float, metavar="SCALE")
    group.add_argument("--guidance-2", type=float, metavar="SCALE", help="second expert of Wan 2.2")
    group.add_argument("--width", type=int, metavar="PIXELS")
    group.add_argument("--height", type=int, metavar="PIXELS")
    group.add_argument("--num-frames", type=int, metavar="N")
    group.add_argument("--frame-rate", type=float, metavar="FPS")
    group.add_argument("--flow-shift", type=float, metavar="SHIFT", help=FLOW_SHIFT_HELP)
    group.add_argument("--max-sequence-length", type=int, metavar="TOKENS", help="of the prompt, at most")
    group.add_argument("--seed", type=int, default=0, metavar="N")
    group.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="results to make, with seeds N, N+1, ...: out.png becomes out_0.png, out_1.png, ...",
    )
    group.add_argument(
        "--scheduler",
        default="model default",
        metavar="NAME",
        help="euler, dpm++ 2m, unipc ... or a diffusers scheduler class",
    )
    group.add_argument(
        "--image",
        action="append",
        default=[],
        type=path_argument,
        metavar="FILE",
        help="reference image; repeat for several",
    )
    group.add_argument(
        "--last-image", type=path_argument, metavar="FILE", help="last frame, for first-and-last-frame video"
    )
    group.add_argument("--strength", type=float, default=1.0, help="below 1: start from --image, where possible")
    add_condition_options(parser)
    add_lora_option(parser)
    add_model_options(parser)
    add_optimization_options(parser)


def add_queue_options(parser: argparse.ArgumentParser) -> None:
    """How a file of prompts is worked through."""
    group = parser.add_argument_group("a file of prompts")
    group.add_argument(
        "--resume", action="store_true", help="with --prompts: do only what the manifest in --output does not have yet"
    )
    add_cluster_options(
        group, "with --prompts: spread the items over the cards of this machine (or N workers), or over a running Ray"
    )
    add_engine_options(parser)


def add_cluster_options(group: argparse._ArgumentGroup, does: str) -> None:
    """A cluster, for what `does` says, and how its workers are; see `cluster_settings`."""
    group.add_argument("--cluster", metavar="local | local:N | HOST:PORT", help=does)
    group.add_argument(
        "--cpus", type=int, metavar="N", help="with --cluster: threads of each worker (default: an equal share)"
    )
    group.add_argument(
        "--cluster-wait",
        type=float,
        metavar="SECONDS",
        help="with --cluster: how long to wait for a free card (default: 120)",
    )


QUEUE = ("prompts", "resume", "cluster", "cpus", "cluster_wait")
FOR_ALL_LINES = (*QUEUE, *ENGINE, "report", "quiet", "verbose", "help")
"""What no line can say for itself."""


_MAY_BE_EMPTY = ("prompt", "negative_prompt")


class LineParser(OnceParser):
    """The options of one line. What is wrong with them is an InputError."""

    def __init__(self) -> None:
        super().__init__(prog="line", allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
        add_arguments(self)
        for action in self._actions:
            action.required, action.default = False, argparse.SUPPRESS
        for group in self._mutually_exclusive_groups:
            group.required = False
        self._options = {
            _plain(flag): action
            for action in self._actions
            for flag in action.option_strings
            if action.dest not in FOR_ALL_LINES
        }
        self._words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        flag, _, reason = message.removeprefix("argument ").partition(": ")
        values = [word.partition("=")[2] for word in self._words if word.startswith(f"{flag}=")]
        if not reason or not values:
            raise InputError("options", " ".join(self._words), message, "see generate --help")
        raise InputError(flag.lstrip("-"), values[-1], reason, "see generate --help")

    def words(self, given: Mapping[str, Any]) -> list[str]:
        """Options by name ("negative_prompt" or "--negative-prompt") as the words of a command line.

        Args:
            given: values are text, numbers, true or false, or lists of these for options that repeat; None stands for
                what is not given, and so does "" but for a prompt, which may be empty.

        Raises:
            InputError: there is no such option, or its value has the wrong form.
        """
        words: list[str] = []
        spelled: dict[str, str] = {}
        for name, value in given.items():
            action = self._option(name)
            if (other := spelled.setdefault(action.dest, name)) != name:
                raise InputError(name, value, f"{other} says the same option", "say it once")
            if value is None or (value == "" and action.dest not in _MAY_BE_EMPTY):
                continue
            flag = action.option_strings[-1]
            if action.nargs == 0:
                words += [flag] if _switch(name, value, flag) else []
                continue
            values = value if isinstance(value, list) else [value]
            if len(values) > 1 and not isinstance(action, argparse._AppendAction):
                raise InputError(name, value, "it takes one value", "use one")
            for each in values:
                if isinstance(each, bool) or not isinstance(each, (str, int, float)):
                    raise InputError(name, each, "it must be text or a number", "see generate --help")
                words.append(f"{flag}={_whole(name, each) if action.type is int else each}")
        return words

    def parse_line(self, base: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
        """What a line asks for: its own options, and for all others what `base` says.

        Raises:
            InputError: an option that does not exist, or a value that it does not take.
        """
        self._words = words
        line, unknown = self.parse_known_args(list(words), argparse.Namespace())
        if unknown:
            if _plain(unknown[0].partition("=")[0]) in FOR_ALL_LINES:
                raise InputError("options", unknown[0], "it is for all lines", "give it on the command line")
            raise InputError("options", unknown[0], "there is no such option", "see generate --help")
        given = vars(line)
        for name in FOR_ALL_LINES:
            if name in given:
                raise InputError(name, given[name], "it is for all lines", "give it on the command line")
        args = copy.copy(base)
        if "model" in given or "diffusion_model" in given:  # what belongs to the other model goes with it
            for name in ("model", "diffusion_model", "vae", "second_expert", "audio_vae"):
                setattr(args, name, None)
            args.text_encoder, args.revision = [], ""
        args.output = None  # of all lines, it is the folder
        for name, value in given.items():
            setattr(args, name, value)
        return args

    def _option(self, name: str) -> argparse.Action:
        plain = _plain(name)
        if plain in self._options:
            return self._options[plain]
        if plain in FOR_ALL_LINES:
            raise InputError("option", name, "it is for all lines", "give it on the command line")
        if "\t" in name:
            raise InputError("option", name, "the columns are separated by tabs", "save the table with commas")
        close = get_close_matches(plain, self._options, 3, 0.65)
        cure = f"use {' or '.join(close)}, or leave it out" if close else "leave it out; generate --help lists them all"
        raise InputError("option", name, "there is no such option", cure)


def _plain(name: str) -> str:
    """ "negative_prompt" for "--negative-prompt"."""
    return name.strip().lstrip("-").replace("-", "_")


def _whole(name: str, value: str | int | float) -> str | int:
    """A whole number, also as tables write it that know no others than floats: 1.0. Raises InputError."""
    if isinstance(value, int) or (isinstance(value, str) and "." not in value):
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise InputError(name, value, "it is no whole number", "write 1, 2 or 3, without quotes or a point")
    return int(number)


def _switch(name: str, value: object, flag: str) -> bool:
    """Whether a switch is on, as text from a table or as JSON has it."""
    known = {"true": True, "false": False, "1": True, "0": False, flag: True}
    switched = known.get(str(value).lower())
    if switched is None:
        raise InputError(name, value, "it is a switch", "use true or false")
    return switched


def check_queue_options(args: argparse.Namespace) -> None:
    """Refuse, without `--prompts`, what only goes with it."""
    given = {"--resume": args.resume or None, "--cluster": args.cluster, "--cpus": args.cpus}
    for name, value in (given | {"--cluster-wait": args.cluster_wait}).items():
        if value is not None:
            raise InputError(name, value, "it goes with --prompts", "leave it out")


def cluster_settings(args: argparse.Namespace) -> ClusterSettings | None:
    """What `--cluster` and its companions say; None where the items are made in this process.

    Raises:
        InputError: they cannot be had so.
    """
    if args.cluster is None:
        if args.cpus is not None:
            raise InputError("--cpus", args.cpus, "it goes with --cluster", "leave it out, or set OMP_NUM_THREADS")
        if args.cluster_wait is not None:
            raise InputError("--cluster-wait", args.cluster_wait, "it goes with --cluster", "leave it out")
        return None
    settings = parse_cluster(args.cluster, args.cpus, PATIENCE if args.cluster_wait is None else args.cluster_wait)
    if args.device not in ("auto", "cpu"):
        raise InputError("--device", args.device, "every worker of a cluster has a card of its own", "leave it out")
    return settings

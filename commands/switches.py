"""Options that do nothing beside another option of the command line are refused."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from ..errors import InputError

_SWITCHES: dict[str, dict[str, object]] = {
    "torch_compile": {
        "compile_scope": "blocks",
        "compile_mode": "default",
        "compile_backend": "inductor",
        "memory_check": True,
    },
    "vae_tiling": {"tile_size": 0, "tile_overlap": 0},
}
"""Option that is a switch -> the options that say how, and their defaults."""


def check_switched_off(args: argparse.Namespace) -> None:
    """Refuse options that describe what is off.

    Raises:
        InputError: names the option, and the switch.
    """
    for switch, options in _SWITCHES.items():
        if getattr(args, switch, "") == "off":
            option = f"--{switch.replace('_', '-')}"
            refuse_given(args, options, f"{option} is off, so it would do nothing", f"leave it out, or add {option} on")


def refuse_given(args: argparse.Namespace, options: Mapping[str, object], reason: str, cure: str) -> None:
    """Refuse options that a command line gives another value than their default.

    Args:
        options: option -> its default. One that the subcommand has not is passed over.

    Raises:
        InputError: names the first, with `reason` and `cure`.
    """
    for name, default in options.items():
        value = getattr(args, name, default)
        if value != default:
            option = "--no-memory-check" if name == "memory_check" else f"--{name.replace('_', '-')}"
            raise InputError(option, name == "memory_check" or value, reason, cure)

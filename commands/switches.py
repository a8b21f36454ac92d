"""Options that describe what another option of the command line switches off are refused: they would do nothing."""

from __future__ import annotations

import argparse

from ..errors import InputError

_DEFAULTS: dict[str, dict[str, object]] = {
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
    for switch, options in _DEFAULTS.items():
        if getattr(args, switch, "") != "off":
            continue
        for name, default in options.items():
            value = getattr(args, name, default)
            if value != default:
                option = "--no-memory-check" if name == "memory_check" else f"--{name.replace('_', '-')}"
                reason = f"--{switch.replace('_', '-')} is off, so it would do nothing"
                cure = f"leave it out, or add --{switch.replace('_', '-')} on"
                raise InputError(option, name == "memory_check" or value, reason, cure)

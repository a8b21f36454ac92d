"""How long compiling took last time on this machine: a small JSON file, whose loss costs nothing but the answer."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..cache_folder import default_folder, device_name, software
from ..links import link_target

logger = logging.getLogger(__name__)

FILE_NAME = "compile_seconds.json"
MOST = 256
"""Entries kept; the oldest go first."""


def key_of(modules: Sequence[nn.Module], recipe: Any) -> str:
    """What the time holds for: machine and versions, the kind and size of the modules, and how they are compiled."""
    first = modules[0]
    weights = next(first.parameters(), None)
    where = "" if weights is None else f"{device_name(weights.device)}, {weights.dtype}"
    size = sum(parameter.numel() for parameter in first.parameters())
    return json.dumps([where, software(), type(first).__name__, len(modules), size, str(recipe)])


def last_seconds(key: str) -> float | None:
    """Seconds that compiling took when it was last done, or None."""
    seconds = _read().get(key)
    return float(seconds) if isinstance(seconds, int | float) else None


def remember(key: str, seconds: float) -> None:
    """Keep the seconds for the next process."""
    entries = _read()
    entries.pop(key, None)
    entries[key] = round(seconds, 2)
    path = link_target(default_folder() / FILE_NAME)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(dict(list(entries.items())[-MOST:]), indent=1), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        logger.info("how long compiling took is not kept: %s", error)


def _read() -> dict[str, Any]:
    try:
        found = json.loads((default_folder() / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or not ours
        return {}
    return found if isinstance(found, dict) else {}

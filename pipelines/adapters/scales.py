"""alpha / rank of every layer of an adapter, as PEFT works it out."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways of starting an adapter that take its first values away from the model's own weights."""
_MAX_PATTERNS = 10_000
_EXPLOSIVE = re.compile(r"\([^()]*[+*][^()]*\)[+*{]")
"""A repetition of something that repeats: some names would take such a pattern for ever."""


def settings_of(component: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A component's adapter configuration: pipelines write it with the component's name before every key."""
    own = {k.removeprefix(f"{component}."): v for k, v in metadata.items() if k.startswith(f"{component}.")}
    return own or {key: value for key, value in metadata.items() if "." not in key}


def refused_settings(settings: Mapping[str, Any]) -> str:
    """Why a configuration cannot be followed, "" when it can."""
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        return f"its layers are relative to weights that {start!r} changed, not to this model's"
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(name) or {}, dict):
            return f"the {name} in its header is no table"
        patterns = settings.get(name) or {}
        if len(patterns) > _MAX_PATTERNS:
            return f"the {name} in its header has {len(patterns)} entries, more than {_MAX_PATTERNS}"
        explosive = next((pattern for pattern in patterns if _EXPLOSIVE.search(pattern)), None)
        if explosive is not None:
            return f"the {name} in its header repeats a repetition ({explosive})"
    numbers = [settings.get(name) for name in ("r", "lora_alpha", "alpha")]
    for name in ("rank_pattern", "alpha_pattern"):
        numbers += (settings.get(name) or {}).values()
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers if n is not None):
        return "a rank or alpha in its header is no number"
    return ""


def pair_scale(alpha: float | None, rank: int, layer: str, settings: Mapping[str, Any]) -> float:
    """The factor of a pair of matrices: alpha / rank, alpha / sqrt(rank) for rank-stabilised LoRA.

    Args:
        alpha: the file's own alpha for this layer.
        rank: rows of its `down` matrix.
        layer: the layer's name in the model: patterns match it as PEFT lets them, from a dot on to the end.
        settings: the adapter configuration; {} when the file has none. Then alpha is the rank.
    """
    if alpha is None:
        alpha = _by_pattern(settings, "alpha_pattern", layer, settings.get("lora_alpha"))
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def lokr_scale(alpha: float | None, rank: int | None, layer: str, settings: Mapping[str, Any]) -> float:
    """The factor of a LoKr: LyCORIS applies alpha to factors of low rank only, PEFT always."""
    if "alpha" in settings and "r" in settings:
        own = _by_pattern(settings, "alpha_pattern", layer, settings["alpha"])
        return float(own) / float(_by_pattern(settings, "rank_pattern", layer, settings["r"]))
    return 1.0 if alpha is None or rank is None else alpha / rank


def _by_pattern(settings: Mapping[str, Any], table: str, layer: str, default: Any) -> Any:
    """The value of the first pattern that matches the name's end from a dot on: PEFT's `get_pattern_key`."""
    patterns = settings.get(table) or {}
    return next((value for pattern, value in patterns.items() if _compiled(pattern).match(layer)), default)


@functools.lru_cache(maxsize=_MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")

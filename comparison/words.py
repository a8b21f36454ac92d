"""Figures as a person reads them."""

from __future__ import annotations

import re

GIB = 2**30
ERROR_CLASS = re.compile(r"\b(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failed|Unsupported|Exit)\b(?:: ?|$)")
"""The name of an error's class before its text."""


def without_classes(problem: str) -> str:
    """What went wrong in the words of the errors, without the names of their classes."""
    words = " ".join(ERROR_CLASS.sub("", problem).split())
    return words or (problem and f"it failed without saying why ({problem.strip(': ')})")


def seconds(value: float) -> str:
    """ "123 s", "12.3 s", "1.23 s", "45 ms"."""
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms"


def gib(size: int) -> str:
    """ "17.2 GiB", "312 MiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def times(count: float, noun: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{count:.0f} {noun}{'' if count == 1 else 's'}"

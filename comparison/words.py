"""Figures as a person reads them."""

from __future__ import annotations

from .row import GIB


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

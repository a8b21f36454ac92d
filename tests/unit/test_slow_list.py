"""The list of slow tests names tests that there are."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").splitlines()


@cache
def source(file: str) -> str:
    path = ROOT / file
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def test_every_slow_test_is_there() -> None:
    """`make slow-list` writes it anew."""
    functions = {name.partition("[")[0] for name in NAMES}
    words = {name: name.split("::") for name in functions}
    gone = [
        name for name, (file, *parts) in words.items() if not all(re.search(rf"\b{p}\b", source(file)) for p in parts)
    ]
    assert not gone
    assert sorted(set(NAMES)) == NAMES

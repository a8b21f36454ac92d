"""The files that an item reads: whether they are still those of an earlier run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

OF_ALL = ("output", "prompts", "report")


class Stamps:
    """Sizes and times of files and folders, each looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[str, int, int]]] = {}

    def of(self, args: argparse.Namespace) -> dict[str, list[tuple[str, int, int]]]:
        """By path that the options name and that is there: the name, bytes and time of each file."""
        found = {}
        for path in _paths(args):
            if path not in self._known:
                self._known[path] = list(_look(path))
            if self._known[path]:
                found[path] = self._known[path]
        return found


def _paths(args: argparse.Namespace) -> Iterator[str]:
    for name, value in vars(args).items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Path) and name not in OF_ALL:
                yield str(each)
    yield from filter(None, (args.model, *args.controlnet, *(file for file, *_ in args.lora)))
    for text in args.keyframe:  # FILE, FILE@FRAME, FILE:STRENGTH or FILE@FRAME:STRENGTH
        yield from {text, text.rpartition(":")[0] or text, text.rpartition("@")[0] or text}
    yield from filter(None, (text.partition("=@")[2] for text in args.argument))


def _look(path: str) -> Iterator[tuple[str, int, int]]:
    """Each file of a folder, or the one file; nothing where there is none, or none that may be looked at."""
    try:
        folder = os.path.isdir(path)
        files = (
            [os.path.join(root, name) for root, _, names in os.walk(path, followlinks=True) for name in names]
            if folder
            else [path]
        )
        for file in sorted(files):
            status = os.stat(file)
            yield os.path.relpath(file, path) if folder else "", status.st_size, status.st_mtime_ns
    except (OSError, ValueError):
        return

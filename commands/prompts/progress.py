"""What a person sees of a file of prompts: one bar over all items, below it what is going on now."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from ...callbacks import Progress
from ...report import logger

MOST_LINES = 16
"""Workers that are shown."""


class QueueProgress:
    """One bar over all items on stderr, and a line for each worker; nothing where stderr is no terminal or `quiet`.

    Args:
        total: items there are.
        done: items that an earlier run has done.
    """

    def __init__(self, total: int, done: int, quiet: bool) -> None:
        self._total, self._done = total, done
        self._shown = not quiet and sys.stderr.isatty()
        self._bars: list[Any] = []
        self._lines: dict[str, Any] = {}

    def __enter__(self) -> QueueProgress:
        if self._shown:
            from tqdm import tqdm

            options: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True}
            self._bars = [tqdm(total=self._total, initial=self._done, desc="items", unit="item", **options)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in reversed(self._bars):
            bar.close()
        self._bars = []

    def working(self, worker: str, name: str, progress: Progress | None) -> None:
        """Show what a worker is at."""
        if not self._bars:
            return
        line = self._line(worker)
        if line is None:
            return
        step = f"  {progress.stage} {progress.done}/{progress.total} {progress.message}" if progress else ""
        line.set_description_str(f"{worker}  {name}{step}".strip())

    def _line(self, worker: str) -> Any:
        """The line of a worker; None where there are too many of them to show."""
        if worker in self._lines:
            return self._lines[worker]
        free = [bar for bar in self._bars[1:] if bar not in self._lines.values()]
        if not free and len(self._bars) <= MOST_LINES:
            from tqdm import tqdm

            options: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True, "leave": False}
            free = [tqdm(total=0, bar_format="{desc}", position=len(self._bars), **options)]
            self._bars += free
        if free:
            self._lines[worker] = free[0]
        return free[0] if free else None

    def said(self, text: str) -> None:
        """Say something beside the items."""
        for bar in self._bars:
            bar.clear()
        logger.info("%s", text)
        for bar in self._bars:
            bar.refresh()

    def gone(self, worker: str) -> None:
        """Free the line of a worker that has ended."""
        line = self._lines.pop(worker, None)
        if line is not None:
            line.set_description_str("")

    def finished(self, name: str, text: str) -> None:
        """Count an item, and say in one line what came of it."""
        self._done += 1
        if self._bars:
            self._bars[0].update()
        self.said(f"{self._done} of {self._total}, {name}: {text}")

"""What a person sees of a file of prompts: one bar over all items, below it what is going on now."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from ...callbacks import Progress
from ...report import logger


class QueueProgress:
    """One bar over all items on stderr, and a line for each worker; nothing where stderr is no terminal or `quiet`.

    Args:
        total: items there are.
        done: items that an earlier run has done.
        workers: lines below the bar.
    """

    def __init__(self, total: int, done: int, quiet: bool, workers: int = 1) -> None:
        self._total, self._done = total, done
        self._shown = not quiet and sys.stderr.isatty()
        self._workers = workers
        self._bars: list[Any] = []
        self._lines: dict[str, Any] = {}

    def __enter__(self) -> QueueProgress:
        if self._shown:
            from tqdm import tqdm

            options: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True, "leave": True}
            self._bars = [tqdm(total=self._total, initial=self._done, desc="items", unit="item", **options)]
            for position in range(1, self._workers + 1):
                options["leave"] = False
                self._bars.append(tqdm(total=0, bar_format="{desc}", position=position, **options))
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
        free = [bar for bar in self._bars[1:] if bar not in self._lines.values()]
        line = self._lines.get(worker) or (free[0] if free else None)
        if line is None:
            return
        self._lines[worker] = line
        step = f"  {progress.stage} {progress.done}/{progress.total} {progress.message}" if progress else ""
        line.set_description_str(f"{worker}  {name}{step}".strip())

    def gone(self, worker: str) -> None:
        """Free the line of a worker that has ended."""
        line = self._lines.pop(worker, None)
        if line is not None:
            line.set_description_str("")

    def finished(self, name: str, text: str) -> None:
        """Count an item, and say in one line what came of it."""
        self._done += 1
        for bar in self._bars:
            bar.clear()
        logger.info("%d of %d, %s: %s", self._done, self._total, name, text)
        if self._bars:
            self._bars[0].update()
        for bar in self._bars:
            bar.refresh()

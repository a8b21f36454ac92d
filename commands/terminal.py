"""What a person sees while a command runs: a progress bar per stage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..callbacks import SILENT, Callbacks, Progress


def print_written(paths: Sequence[Path | None]) -> None:
    """Say where the results of a command are, one line each; None is a file that was not asked for."""
    for path in paths:
        if path is not None:
            print(f"written to {path}")


class TerminalProgress:
    """Draws one bar per stage on stderr, or nothing where stderr is no terminal or `quiet` is set.

    >>> with TerminalProgress(quiet=False) as callbacks:
    ...     generate(handle, request, settings, callbacks)
    """

    def __init__(self, quiet: bool = False) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._stage = ""
        self._bar: Any = None

    def __enter__(self) -> Callbacks:
        return Callbacks(on_progress=self._show, previews=False) if self._shown else SILENT

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _show(self, progress: Progress) -> None:
        if self._bar is None or progress.stage != self._stage or progress.total != self._bar.total:
            self._close()
            from tqdm import tqdm

            self._stage = progress.stage
            self._bar = tqdm(total=progress.total, desc=progress.stage, file=sys.stderr, dynamic_ncols=True)
        self._bar.n = progress.done
        self._bar.set_postfix_str(progress.message, refresh=False)
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

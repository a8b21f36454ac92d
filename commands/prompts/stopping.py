"""Ctrl-C while a file of prompts is worked through: once to stop at the next step, twice to end at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType


class Stopping:
    """Within the block the first Ctrl-C is kept in `asked`; the second is a KeyboardInterrupt, wherever it comes.

    Where Ctrl-C is ignored (a command in the background) or handled by another, it stays so.
    """

    def __init__(self, quiet: bool) -> None:
        self.asked = False
        self._quiet = quiet
        self._before: object = None

    def __enter__(self) -> Stopping:
        ours = threading.current_thread() is threading.main_thread()  # signals can be handled nowhere else
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt when Ctrl-C was pressed: called between two steps."""
        if self.asked:
            raise KeyboardInterrupt

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._quiet:
            sys.stderr.write("\nstopping at the next step; Ctrl-C again ends at once\n")

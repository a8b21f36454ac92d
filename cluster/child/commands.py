"""A child's ends of its pipes: the commands that it reads, and the output that is for its lines alone."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from .lines import Line

END_SECONDS = 30.0
"""How long a child may take to let go of what it holds, once nobody listens any more."""


class EndedError(Exception):
    """The input has ended: so has whoever wanted the batch."""


class Commands:
    """What the input says, read in a thread of its own.

    Args:
        last: done before the process is ended by force.
        end_seconds: how long after the end of the input that is.

    Attributes:
        cancelled: numbers of runs.
        ended: set when the input has ended.
    """

    def __init__(self, stream: IO[bytes], last: Callable[[], None], end_seconds: float = END_SECONDS) -> None:
        self.cancelled: set[int] = set()
        self.ended = threading.Event()
        self._last, self._end_seconds = last, end_seconds
        self._waiting: queue.Queue[Line | None] = queue.Queue()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def next(self) -> Line | None:
        """The next batch to make; None at the end."""
        return self._waiting.get()

    def cancels(self, run: int, within: float = 1.0) -> bool:
        """Whether a run was cancelled, or is within so many seconds."""
        deadline = time.monotonic() + within
        while run not in self.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        return run in self.cancelled

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            command: Line = json.loads(line)
            if command["do"] == "cancel":
                self.cancelled.add(command["run"])
            else:
                self._waiting.put(command)
        self.ended.set()
        self._waiting.put(None)
        time.sleep(self._end_seconds)
        self._last()
        os._exit(1)  # whatever it is that holds it up


def own_output() -> IO[bytes]:
    """What was this process's standard output, for its lines alone: whatever else is printed goes to the log."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "wb")

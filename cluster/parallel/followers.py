"""The other processes of a group, as the first one has them: started, told what to make, and watched."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..child.lines import Line, Speaker, error_of
from ..child.process import PARALLEL_MODULE
from ..connection import ClusterError
from ..settings import ClusterSettings

log = logging.getLogger(__name__)

LAST_LINE_SECONDS = 2.0


class Followers:
    """Processes of the ranks from 1. They end with their input, so with the process that started them.

    Args:
        settings: `workers` is the number of processes, this one included.
        folder: of the group.
        lost: called once, in a thread of its own, when one has ended by itself: why.
    """

    def __init__(self, settings: ClusterSettings, folder: Path, lost: Callable[[Exception], None]) -> None:
        self.failure: Exception | None = None
        self._lost, self._leaving = lost, False
        self._count = settings.workers or 1
        self._guard = threading.Lock()
        self._processes = []
        self._speakers = []
        for rank in range(1, self._count):
            process = subprocess.Popen(  # noqa: S603 - this Python, and a module of this pack
                [sys.executable, "-m", PARALLEL_MODULE, json.dumps(asdict(settings)), str(folder), str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            self._processes.append(process)
            self._speakers.append(Speaker(process.stdin))
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def tell(self, **line: Any) -> None:
        """Send all of them a line. One that does not listen any more has ended, which is noticed elsewhere."""
        for speaker in self._speakers:
            try:
                speaker(**line)
            except (OSError, ValueError):
                log.debug("a process has ended before it was told")

    def failed_within(self, seconds: float) -> Exception | None:
        """Why one of them has ended, waiting so long for it: an error here may be what their end looks like."""
        deadline = time.monotonic() + seconds
        while self.failure is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.failure

    def close(self) -> None:
        """End them."""
        self._leaving = True
        for speaker in self._speakers:
            try:
                speaker.close()
            except OSError:
                log.debug("it had ended before")
        for process in self._processes:
            try:
                process.wait(LAST_LINE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        said: Line = {}
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                log.warning("a line of process %s that is none: %r", rank, line[:200])
        status = process.wait()
        with self._guard:
            if self._leaving or self.failure is not None:
                return
            self.failure = self._why(rank, process.pid, status, said)
        self._lost(self.failure)

    def _why(self, rank: int, pid: int, status: int, said: Line) -> Exception:
        if said.get("event") == "failed":
            return error_of(said)
        how = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        told = f"process {rank + 1} of {self._count} (pid {pid}) that make one picture has ended: {how}"
        return ClusterError(f"{told}. Run again: all of them are started anew")

"""The driver's process as its host has it: started, spoken to, listened to, and ended with what it started."""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..connection import ALLOCATORS
from ..fleet import PATH
from ..settings import ClusterSettings
from .lines import Line, Speaker

log = logging.getLogger(__name__)

MODULE = "fastdiffusers.cluster.child"
PARALLEL_MODULE = "fastdiffusers.cluster.parallel"
LEAVE_SECONDS = 45.0
"""How long it has to let go of its workers before it is killed; a little more than it gives itself."""
LAST_LINES = 40


def environment() -> dict[str, str]:
    """This process's, in which a child finds the pack, and no settings of torch's allocator that a host has made."""
    paths = [str(PATH), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in ALLOCATORS}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


class DriverProcess:
    """A running driver.

    Args:
        settings: the cluster that it drives.
        folder: where its own temporary folder is made.
        asked: the same as the user has said it, where `settings` says more; None where it does not.

    Attributes:
        folder: its temporary folder: its log, and what a run's batch and results are kept in. It goes with the process,
            whichever of the two ends first.
        process: the process itself.
        runs: how many batches it was given.
    """

    def __init__(self, settings: ClusterSettings, folder: Path, asked: ClusterSettings | None = None) -> None:
        self.settings, self.asked = settings, asked or settings
        self.runs = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="fastdiffusers_cluster_", dir=folder)).absolute()
        own: dict[str, Any] = {"start_new_session": True}  # a Ctrl-C is its host's, whose end is its own
        if sys.platform == "win32":
            own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        module = MODULE if settings.parallel == "off" else PARALLEL_MODULE
        with self._log_path.open("wb") as written:
            self.process = subprocess.Popen(  # noqa: S603 - this Python, and a module of this pack
                [sys.executable, "-m", module, json.dumps(asdict(settings)), str(self.folder)],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                **own,
            )
        self._lines: queue.Queue[Line | None] = queue.Queue()
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        self._say = Speaker(self.process.stdin)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def _log_path(self) -> Path:
        return self.folder / "driver.log"

    def say(self, **line: Any) -> bool:
        """Send a line; False where it does not listen any more."""
        try:
            self._say(**line)
        except (OSError, ValueError):
            return False
        return True

    def next(self, seconds: float) -> Line | None:
        """Its next line, {} where none comes within so many seconds, None once it has ended."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return {}
        if line is None:
            self._lines.put(None)  # for whoever asks again
        return line

    def last_words(self) -> str:
        """The end of what it, and Ray in it, has written."""
        try:
            text = self._log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-LAST_LINES:])

    def why_ended(self) -> str:
        """Why it has ended, in one line; what it wrote last goes to the host's log."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "it does not answer any more"
        said = self.last_words()
        if said:
            log.warning("the driver of %s wrote last:\n%s", self.settings.called, said)
        return f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"

    def leave(self, wait: bool = False) -> None:
        """Let it end its workers and itself, and remove its folder."""
        with_it = threading.Thread(target=self._leave, daemon=not wait)
        with_it.start()
        if wait:
            with_it.join()

    def _leave(self) -> None:
        try:
            self._say.close()
        except OSError:
            log.debug("it had ended before")
        try:
            self.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the driver of %s had to be killed", self.settings.called)
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _listen(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self.process.stdout:
            try:
                self._lines.put(json.loads(line))
            except ValueError:
                log.warning("a line of the driver that is none: %r", line[:200])
        self._lines.put(None)

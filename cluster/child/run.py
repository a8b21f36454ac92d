"""One batch of the host's: sent to the driver, its progress shown, its items taken back, cancelled if need be."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ...callbacks import Callbacks, Progress
from ...pipelines.types import SampleResult
from .. import parcel
from ..batch import BATCH, joined
from ..connection import ClusterError
from ..drive import STOP_SECONDS
from ..settings import ClusterSettings
from .lines import Line, error_of, preview_of
from .process import DriverProcess

LISTEN_SECONDS = 0.1
"""How long to wait for a line before asking whether the run was cancelled."""


class GoneError(Exception):
    """The driver has ended before this run was begun: since the run before, or because Ray was not there in time."""


class DriverEndedError(ClusterError):
    """The driver has ended, or could not begin; another one has to be started."""


class Run:
    """One batch, whose number tells its lines from those of the runs before."""

    def __init__(self, driver: DriverProcess, cluster: ClusterSettings, callbacks: Callbacks) -> None:
        self._driver, self._cluster, self._callbacks = driver, cluster, callbacks
        self._warm = driver.runs > 0
        driver.runs += 1
        self._run = driver.runs
        self._accepted = False
        self._ready = self._warm
        self._over = False
        self._count = 0
        self._steps = 0
        self._ticks: dict[int, Line] = {}
        self._made: dict[int, SampleResult] = {}
        self._who: dict[int, str] = {}
        self._notes: list[str] = []
        self._started = time.perf_counter()
        self._begun = 0.0

    def make(self, batch: tuple[Any, ...], count: int) -> SampleResult:
        """Have a batch of so many items made.

        Args:
            batch: what `batch.BATCH` holds; its first is the handle.

        Raises:
            GoneError, DriverEndedError: see there.
            FastDiffusersError: an item has failed, or the cluster cannot be had.
            Exception: what the callbacks raise, once the workers have stopped.
        """
        self._count = count
        folder = Path(tempfile.mkdtemp(prefix="run_", dir=self._driver.folder))
        try:
            folder.chmod(0o777)  # workers of another machine may run as somebody else
            parcel.write(folder / BATCH, batch)
            told = {"run": self._run, "folder": str(folder), "count": count, "model": repr(batch[0].key)}
            if not self._driver.say(do="make", **told):
                raise self._ended()
            try:
                self._show(Progress("start", 0, 1, f"{self._cluster.called}, on the first run only"))
                while not self._is_over(self._driver.next(LISTEN_SECONDS)):
                    self._callbacks.check_cancel()
            except BaseException:  # a host's progress bar cancels too
                if not self._over:
                    self._cancel()
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return self._result()

    def _is_over(self, line: Line | None) -> bool:
        """Keep and show what a line says; True for the last one of the run."""
        event = "" if line is None else line.get("event", "")
        self._over = line is None or event == "gone" or (event == "over" and line["run"] in (0, self._run))
        if line is None:
            raise self._ended()
        if event == "gone":
            raise GoneError
        self._ready = self._ready or event == "ready"
        if event == "over" and line["run"] == 0:
            raise DriverEndedError(*error_of(line).args) if not line["error"] else error_of(line)
        if line.get("run") != self._run:
            return False
        if event == "accepted":
            self._accepted = True
            self._show(Progress("start", 0, 1, "the workers"))
        elif event == "tick":
            self._tick(line)
        elif event == "made":
            self._keep(line)
        elif event == "lost":
            doing = "" if line["item"] is None else f" while it made image {line['item'] + 1}"
            self._notes.append(f"{line['worker']} has ended{doing}: {line['reason']}")
        elif event == "noted":
            self._notes.append(line["text"])
        elif event == "over" and line["how"] == "failed":
            raise error_of(line)
        return bool(event == "over")

    def _tick(self, line: Line) -> None:
        self._begun = self._begun or time.perf_counter()
        self._ticks[line["item"]] = line
        if line["stage"] == "denoise":
            self._steps = max(self._steps, line["total"])
        doing = f"{line['worker']} makes image {line['item'] + 1}: {line['stage']} {line['done']}/{line['total']}"
        self._show_all(f"{doing} {line['message']}".rstrip(), line)

    def _keep(self, line: Line) -> None:
        item, file = line["item"], Path(line["file"])
        self._made[item] = parcel.read(file)
        shutil.rmtree(file.parent, ignore_errors=True)
        self._who[item] = line["worker"]
        self._ticks.pop(item, None)
        if line["attempt"] > 1:
            self._notes.append(f"image {item + 1} was made at attempt {line['attempt']}")
        self._show_all(f"{line['worker']} has made image {item + 1}", {})

    def _show_all(self, doing: str, line: Line) -> None:
        """Show how far the batch is, in steps of all its items where their number is known."""
        steps = self._steps or 1
        done = steps * len(self._made)
        done += sum(tick["done"] for tick in self._ticks.values() if tick["stage"] == "denoise")
        done += steps * sum(tick["stage"].startswith("decode") for tick in self._ticks.values())
        total = steps * self._count
        message = f"{len(self._made)} of {self._count} made; {doing}"
        stage = "denoise" if self._steps else "start"
        self._show(Progress(stage, min(done, total), total, message, preview_of(line), line.get("format", "")))

    def _show(self, progress: Progress) -> None:
        self._callbacks.on_progress(progress)

    def _cancel(self) -> None:
        """Have the workers stop at their next step, and wait until they have; not for a driver that is starting."""
        self._driver.say(do="cancel", run=self._run)
        deadline = time.monotonic() + STOP_SECONDS + 10
        while self._ready and time.monotonic() < deadline:
            line = self._driver.next(LISTEN_SECONDS)
            if line is None or (line.get("event") == "over" and line["run"] in (0, self._run)):
                return
        if self._ready:
            self._driver.process.kill()  # it does not listen

    def _ended(self) -> Exception:
        if self._warm and not self._accepted:
            return GoneError()
        why = self._driver.why_ended()
        told = f"the driver of {self._cluster.called} has ended: {why}"
        return DriverEndedError(f"{told}. Run again: it is started anew")

    def _result(self) -> SampleResult:
        whole = joined([self._made[index] for index in range(self._count)], self._who, self._cluster.name)
        for note in self._notes:
            whole.report.note(note)
        now = time.perf_counter()
        whole.report.timed({"start": round(self._begun - self._started, 4), "cluster": round(now - self._begun, 4)})
        return whole

"""The process that has Ray in it: makes the batches it is told of, until its input ends or Ray's head is gone."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from .. import events
from ..batch import BATCH, RESULT, BatchWork, Errand
from ..connection import TOO_SLOW, ClusterError, connected, is_gone
from ..drive import Fleet, drive
from ..fleet import RayFleet
from ..places import leave_mark
from ..schedule import Job
from ..settings import ClusterSettings
from .commands import Commands, EndedError, own_output
from .lines import Line, Speaker, error_line, progress_line

WATCH_SECONDS = 2.0
GONE_TIMES = 3
GONE = "Ray's head has ended. Run again: it is started anew"

log = logging.getLogger(__name__)


def main() -> int:
    """Drive the cluster that the first argument describes; the second is the folder that goes with this process."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    say = Speaker(own_output())
    settings = ClusterSettings(**json.loads(sys.argv[1]))
    leave = partial(shutil.rmtree, sys.argv[2], ignore_errors=True)
    commands = Commands(sys.stdin.buffer, leave)
    try:
        return serve(settings, commands, say)
    finally:
        if commands.ended.is_set():  # else whoever reads there what has happened removes it
            leave()


def serve(settings: ClusterSettings, commands: Commands, say: Speaker) -> int:
    """Make batches until there are no more, and return the exit status."""
    started = time.perf_counter()
    try:
        with connected(settings) as ray, closing(RayFleet(ray, settings, BatchWork)) as fleet:
            threading.Thread(target=watch, args=(partial(is_gone, ray), say, leave_off), daemon=True).start()
            say(event="ready", seconds=round(time.perf_counter() - started, 2), workers=fleet.wanted)
            while (command := commands.next()) is not None:
                if is_gone(ray):
                    say(event="gone")
                    leave_off()
                make(command, settings, fleet, commands, say, None if settings.local else ray.put)
    except (EndedError, BrokenPipeError):
        return 0
    except Exception as error:
        log.exception("the driver ends")
        if TOO_SLOW in str(error):
            say(event="gone")
            leave_off()
        say(event="over", run=0, how="failed", **error_line(error))
        return 1
    return 0


def watch(gone: Callable[[], bool], say: Speaker, end: Callable[[], None], seconds: float = WATCH_SECONDS) -> None:
    """Ask again and again whether Ray is gone. Once it has been for a few times running, say so and end the process."""
    times = 0
    while times < GONE_TIMES:
        time.sleep(seconds)
        times = times + 1 if gone() else 0
    say(event="over", run=0, how="failed", **error_line(ClusterError(GONE)))
    end()


def leave_off() -> None:
    """End the process at once: Ray's own end would wait for its head. What Ray has started ends with this process."""
    os._exit(1)


def make(
    command: Line,
    settings: ClusterSettings,
    fleet: Fleet,
    commands: Commands,
    say: Speaker,
    put: Callable[[bytes], Any] | None = None,
) -> None:
    """Make one batch, and say how it went. A run that fails or is cancelled leaves the workers as they are.

    Args:
        put: keeps the batch's file in the cluster, for workers that do not share its folder; None where all do.
    """
    folder, run = Path(command["folder"]), command["run"]
    if run in commands.cancelled:
        say(event="over", run=run, how="cancelled")
        return
    say(event="accepted", run=run)
    try:
        batch = Batch(folder, leave_mark(folder), put and put((folder / BATCH).read_bytes()), run, say)
    except OSError:
        if not commands.cancels(run):  # else whoever cancelled it has removed its folder
            raise
        say(event="over", run=run, how="cancelled")
        return

    def should_stop() -> bool:
        if commands.ended.is_set():
            raise EndedError
        return bool(batch.failure) or run in commands.cancelled

    jobs = [Job(index, command["model"], index) for index in range(command["count"])]
    try:
        for event in drive(fleet, jobs, should_stop, settings.patience, batch.errand):
            batch.take(event)
    except KeyboardInterrupt:
        if not batch.failure:
            say(event="over", run=run, how="cancelled")
            return
    except ClusterError as error:
        batch.failure = error_line(error)
        for member in list(fleet.members):  # those that wait for a card: the next run asks anew
            fleet.remove(member)
    if batch.failure:
        say(event="over", run=run, how="failed", **batch.failure)
    else:
        say(event="over", run=run, how="done")


class Batch:
    """One run: where its items' results go, and what is said of them.

    Attributes:
        failure: of the first item that cannot be made, as `error_line` has it; {} without.
    """

    def __init__(self, folder: Path, mark: str, far: Any, run: int, say: Speaker) -> None:
        self.failure: Line = {}
        self._folder, self._mark, self._far = folder, mark, far
        self._run, self._say = run, say
        self._places: dict[int, Path] = {}
        self._count = 0

    def errand(self, job: Job) -> Errand:
        """What a worker is given, for one attempt at an item."""
        self._count += 1
        place = self._places[job.number] = self._folder / f"{self._count}"
        place.mkdir()
        return Errand(job.payload, place, self._mark, self._far)

    def take(self, event: events.Event) -> None:
        """Say what has happened."""
        tell = lambda **line: self._say(run=self._run, **line)
        if isinstance(event, events.Joined):
            tell(event="joined", worker=event.worker)
        elif isinstance(event, events.Noted):
            tell(event="noted", text=event.text)
        elif isinstance(event, events.Lost):
            tell(event="lost", worker=event.worker, reason=event.reason, item=event.job and event.job.number)
        elif isinstance(event, events.Started):
            tell(event="tick", item=event.job.number, worker=event.worker, stage="start", done=0, total=1, message="")
        elif isinstance(event, events.Ticked):
            shown = event.job.number == min(self._places)  # one preview at a time, the first that is being made
            tell(
                event="tick",
                item=event.job.number,
                worker=event.worker,
                **progress_line(event.progress, with_preview=shown),
            )
        elif isinstance(event, events.Failed):
            self._places.pop(event.job.number, None)
            if not self.failure:
                log.warning("item %s failed on %s: %s", event.job.number, event.worker, event.text)
                room = f". Free some space in {self._folder.parent} and run again" if event.kind == "disk" else ""
                where = f"image {event.job.number + 1} failed on {event.worker}: {event.text}{room}"
                self.failure = error_line(ClusterError(where))
        else:
            place = self._places.pop(event.job.number)
            content, seconds = event.result
            if content is not None:
                (place / RESULT).write_bytes(content)
            tell(
                event="made",
                item=event.job.number,
                worker=event.worker,
                attempt=event.attempt,
                file=str(place / RESULT),
                seconds=seconds,
            )

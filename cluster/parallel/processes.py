"""The processes that make one picture together: the first, which a host has started and speaks to, and the others."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...errors import first_line
from ...torchvision_ops import declare_torchvision_ops
from .. import parcel
from ..batch import BATCH, RESULT
from ..child.commands import Commands, own_output
from ..child.lines import Line, Speaker, error_line, progress_line
from ..connection import ClusterError
from ..settings import ClusterSettings
from ..worker import Stopped, a_few
from .followers import Followers
from .group import Group
from .making import Maker

OTHERS_SECONDS = 3.0
"""How long after an error to wait for the news that another process has ended, which may be its cause."""
PLACE = "1"

log = logging.getLogger(__name__)


def main() -> int:
    """Be the first process of a group, or with a third argument the one of that rank.

    Arguments: the settings as JSON, whose `workers` is the number of processes; the folder that goes with the first
    process; for the others their rank.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    settings, folder = ClusterSettings(**json.loads(sys.argv[1])), Path(sys.argv[2])
    say = Speaker(own_output())
    if sys.argv[3:]:
        return follow(settings, folder, int(sys.argv[3]), say)
    leave = partial(shutil.rmtree, folder, ignore_errors=True)
    commands = Commands(sys.stdin.buffer, leave)
    status = lead(settings, folder, commands, say)
    if commands.ended.is_set():  # else whoever reads there what has happened removes it
        leave()
    os._exit(status)  # torch.distributed would wait for the others


def lead(settings: ClusterSettings, folder: Path, commands: Commands, say: Speaker) -> int:
    """Make batches with the others until there are no more, and return the exit status."""
    started = time.perf_counter()
    told = threading.Lock()

    def failed(error: Exception) -> None:
        told.acquire()  # once: the process ends
        say(event="over", run=0, how="failed", **error_line(error))

    def lost(error: Exception) -> None:
        failed(error)
        os._exit(1)

    others: Followers | None = None
    try:
        others = Followers(settings, folder, lost)
        maker = _maker(settings, folder, 0)
        say(event="ready", seconds=round(time.perf_counter() - started, 2), workers=settings.workers)
        while (command := commands.next()) is not None:
            _lead_one(command, maker, commands, say, others, folder)
    except BrokenPipeError:
        return 0
    except Exception as error:
        log.exception("the first process ends")
        if others is None or others.failed_within(OTHERS_SECONDS) is None:
            failed(error)
        else:
            time.sleep(OTHERS_SECONDS)  # `lost` says why, and ends this process
        return 1
    finally:
        if others is not None:
            others.close()
    return 0


def _lead_one(command: Line, maker: Maker, commands: Commands, say: Speaker, others: Followers, own: Path) -> None:
    run, place = command["run"], Path(command["folder"]) / PLACE
    say(event="accepted", run=run)
    if run in commands.cancelled:
        say(event="over", run=run, how="cancelled")
        return
    try:
        shutil.copyfile(place.with_name(BATCH), own / BATCH)  # whoever cancels it removes its folder
    except OSError:
        if not commands.cancels(run):
            raise
        say(event="over", run=run, how="cancelled")
        return
    others.tell(**{**command, "folder": str(own)})
    who = f"{len(others.pids) + 1} processes"
    passed_on = False

    def cancelled() -> bool:
        nonlocal passed_on
        stop = run in commands.cancelled or commands.ended.is_set()
        if stop and not passed_on:
            passed_on = True
            others.tell(do="cancel", run=run)  # those that read the model ask for themselves
        return stop

    show = a_few(
        lambda progress: say(event="tick", run=run, item=0, worker=who, **progress_line(progress, with_preview=True))
    )
    try:
        result = maker.make(own, show, cancelled, previews=True)
    except Stopped:
        say(event="over", run=run, how="cancelled")
        return
    try:
        place.mkdir()
        parcel.write(place / RESULT, result)
    except OSError as error:
        if not commands.cancels(run):
            raise ClusterError(_no_room(place, error)) from error
        say(event="over", run=run, how="cancelled")
        return
    say(event="made", run=run, item=0, worker=who, attempt=1, file=str(place / RESULT), seconds={})
    say(event="over", run=run, how="done")


def _no_room(place: Path, error: OSError) -> str:
    cure = "Free some space there, or name a folder with more in TMPDIR, and run again"
    return f"the result cannot be handed over in {place.parent}: {error.strerror or first_line(error)}. {cure}"


def follow(settings: ClusterSettings, folder: Path, rank: int, say: Speaker) -> int:
    """Make what the first process makes, until this one's input ends, which ends it at once."""
    commands = Commands(sys.stdin.buffer, lambda: None, end_seconds=0)
    try:
        maker = _maker(settings, folder, rank)
        while (command := commands.next()) is not None:
            run = command["run"]
            try:
                maker.make(Path(command["folder"]), lambda _: None, _is_cancelled(commands, run), previews=False)
            except Stopped:
                continue
    except Exception as error:
        log.exception("process %s ends", rank)
        say(event="failed", **error_line(error))
        os._exit(1)
    return 0


def _is_cancelled(commands: Commands, run: int) -> Callable[[], bool]:
    return lambda: run in commands.cancelled


def _maker(settings: ClusterSettings, folder: Path, rank: int) -> Maker:
    import torch

    declare_torchvision_ops()
    if settings.cpus is not None:
        torch.set_num_threads(settings.cpus)
    return Maker(Group(folder, rank, settings.workers or 1, settings.cpus is None), settings.parallel)

"""Items on a cluster: what travels to a worker, what comes back, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...callbacks import Callbacks
from ...cluster import events
from ...cluster.connection import connected
from ...cluster.drive import drive
from ...cluster.fleet import RayFleet
from ...cluster.places import folder_for, leave_mark
from ...cluster.schedule import Job
from ...cluster.settings import ClusterSettings
from ...cluster.worker import as_text
from ..files import write_bytes
from ..libraries import prepare_libraries
from .items import Item
from .make import Made, Maker
from .progress import QueueProgress
from .results import DiskFullError, Results, disk_full, is_full, remove
from .stopping import Stopping


@dataclass(frozen=True)
class Parcel:
    """One attempt at an item. A worker that shares `place` (see `places.sees`) writes there itself."""

    item: Item
    place: Path
    mark: str


class RemoteWork:
    """What a worker does: the same as this process would."""

    def __init__(self) -> None:
        prepare_libraries(verbose=False)
        self._maker = Maker()

    def __call__(
        self, parcel: Parcel, callbacks: Callbacks, facts: dict[str, Any]
    ) -> tuple[tuple[Made, dict[str, bytes]], float]:
        """Make an item.

        Returns:
            What came of it, and the contents of its files where this machine does not share the driver's folder; and
            the seconds that the load took.
        """
        with folder_for(parcel.place, parcel.mark) as (folder, shared):
            made = self._maker.make(parcel.item, folder, callbacks, facts)
            contents = {} if shared else {name: (folder / name).read_bytes() for name in made.files}
        return (made, contents), made.seconds.get("load", 0.0)


def make_on_cluster(
    items: Sequence[Item], settings: ClusterSettings, results: Results, progress: QueueProgress, stopping: Stopping
) -> None:
    """Make items on the workers of a cluster. One that fails stops none of the others.

    Raises:
        ClusterError, InputError, MissingDependencyError: there is no such cluster, or it is gone.
        DiskFullError: there is no room for more.
        KeyboardInterrupt: it was stopped.
    """
    with disk_full(results.folder):
        mark = leave_mark(results.staging)
    places: dict[int, Path] = {}

    def renew(job: Job) -> Parcel:
        remove(places.get(job.number))
        places[job.number] = results.place()
        return Parcel(job.payload, places[job.number], mark)

    started = time.perf_counter()
    with connected(settings) as ray, closing(RayFleet(ray, settings, RemoteWork)) as fleet:
        jobs = [Job(item.number, item.model, item) for item in items]
        for event in drive(fleet, jobs, lambda: stopping.asked, settings.patience, renew):
            if isinstance(event, events.Joined):
                seconds = time.perf_counter() - started
                progress.said(f"{event.worker} is there, {seconds:.1f} s after the start")
            elif isinstance(event, events.Noted):
                progress.said(event.text)
            elif isinstance(event, events.Lost):
                progress.gone(event.worker)
                doing = f" while it made {event.job.payload.name}" if event.job else ""
                progress.said(f"{event.worker} has ended{doing}: {event.reason}")
            else:
                _take(event, places, results, progress)


def _take(
    event: events.Started | events.Ticked | events.Finished | events.Failed,
    places: dict[int, Path],
    results: Results,
    progress: QueueProgress,
) -> None:
    item: Item = event.job.payload
    if isinstance(event, events.Started | events.Ticked):
        progress.working(event.worker, item.name, event.progress if isinstance(event, events.Ticked) else None)
        return
    place = places.pop(item.number, None)
    facts: dict[str, Any] = {"worker": event.worker, "attempt": event.attempt}
    if isinstance(event, events.Finished):
        if place is None:
            raise LookupError(f"item {item.number} came back a second time")
        made, contents = event.result
        try:
            with disk_full(results.folder):
                for name, content in contents.items():
                    write_bytes(place / name, content)
            results.publish(item, made, place, **facts)
        except DiskFullError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's, and stops none of the others
            progress.finished(item.name, results.give_up(item, place, as_text(error), **facts))
            return
        progress.finished(item.name, f"{event.worker} | {made.summary}")
        return
    if event.kind == "disk":
        remove(place)
        raise DiskFullError(f"{is_full(results.folder)} ({event.worker}: {event.text})")
    progress.finished(item.name, results.give_up(item, place, event.text, where=f" on {event.worker}", **facts))

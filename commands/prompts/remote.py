"""Items on a cluster: what travels to a worker, what comes back, and what is kept of it."""

from __future__ import annotations

import shutil
import tempfile
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
from ...cluster.schedule import Job
from ...cluster.settings import ClusterSettings
from ..files import write_bytes
from ..libraries import prepare_libraries
from .items import Item
from .make import Made, Maker
from .progress import QueueProgress
from .results import DiskFullError, Results, disk_full, is_full
from .stopping import Stopping

MARK = ".driver"


@dataclass(frozen=True)
class Parcel:
    """One attempt at an item. A worker that finds `mark` in the file beside `place` writes there itself."""

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
        shared = _sees(parcel)
        folder = parcel.place if shared else Path(tempfile.mkdtemp(prefix="fastdiffusers_"))
        try:
            made = self._maker.make(parcel.item, folder, callbacks, facts)
            contents = {} if shared else {name: (folder / name).read_bytes() for name in made.files}
        finally:
            if not shared:
                shutil.rmtree(folder, ignore_errors=True)
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
    mark = results.staging.name
    write_bytes(results.staging / MARK, mark.encode())
    places: dict[int, Path] = {}

    def renew(job: Job) -> Parcel:
        _remove(places.get(job.number))
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
    facts = {"worker": event.worker, "attempt": event.attempt}
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
            text = f"{type(error).__name__}: {error}"
            _remove(place)
            results.fail(item, text, **facts)
            progress.finished(item.name, f"failed: {text}")
            return
        progress.finished(item.name, f"{event.worker} | {made.summary}")
        return
    _remove(place)
    if event.kind == "disk":
        raise DiskFullError(f"{is_full(results.folder)} ({event.worker}: {event.text})")
    results.fail(item, event.text, **facts)
    progress.finished(item.name, f"failed on {event.worker}: {event.text}")


def _remove(place: Path | None) -> None:
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)


def _sees(parcel: Parcel) -> bool:
    try:
        return (parcel.place.parent / MARK).read_text(encoding="utf-8") == parcel.mark and parcel.place.is_dir()
    except OSError:
        return False

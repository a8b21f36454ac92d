"""What a driver of many workers costs: `python . benchmarks.cluster_scale`, with workers that sleep instead of drawing.

200 of them live in a few processes of a Ray on this machine; the driver, its calls and its messages are the real ones.

- `driver`: jobs that take no time, so the driver is what limits: seconds of the wall and of its own processor per job.
- `paced`: jobs that sleep as long as a quick picture takes: what comes on top of the sleeping, and how evenly the jobs
  are spread.
- `recovery`: one process, with its share of the workers, is killed half-way: until each of its jobs runs again.
- `manifest`: writing one result and its line, and reading a manifest back for `--resume`.

Target: at most 20 ms a job.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from ..cluster import events
from ..cluster.connection import connected
from ..cluster.drive import drive
from ..cluster.fleet import Member, RayFleet
from ..cluster.schedule import Job
from ..cluster.settings import ClusterSettings
from ..commands.prompts import manifest
from ..commands.prompts.make import Made
from ..commands.prompts.results import results_in
from .common import store

PROCESSES = 4
MODELS = 4


def _no_work() -> Any:
    """The sleepers make nothing."""


class Sleepers:
    """Many workers in one process: each job is a sleep of `payload` seconds."""

    def __init__(self, make_work: Any) -> None: ...

    async def hello(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid()}

    async def stop(self, ticket: int) -> None: ...

    async def run(self, ticket: int, payload: float, facts: dict[str, Any]) -> AsyncIterator[tuple[Any, ...]]:
        await asyncio.sleep(payload)
        yield "done", None, payload, 0.0


class Crowd(RayFleet):
    """`wanted` members that share a few actors."""

    def __init__(self, ray: Any, workers: int) -> None:
        super().__init__(ray, ClusterSettings(workers=PROCESSES, cpus=1), _no_work, Sleepers)
        self.wanted = workers
        self._share = -(-workers // PROCESSES)

    def add(self) -> None:
        shares = Counter(id(member.actor) for member in self.members)
        open_ones = [member.actor for member in self.members if shares[id(member.actor)] < self._share]
        self._count += 1
        actor = open_ones[0] if open_ones else self._class.remote(self._make_work)
        self.members.append(Member(f"worker {self._count}", actor, time.monotonic(), hello=actor.hello.remote()))

    def _joined(self, member: Member, hello: dict[str, Any]) -> None:
        asked = member.name.rpartition(" ")[2]
        super()._joined(member, hello)
        member.name = f"{member.name}/{asked}"


def jobs(count: int, seconds: float) -> list[Job]:
    return [Job(number, number % MODELS, seconds) for number in range(count)]


def start(fleet: Crowd) -> float:
    """Seconds until every worker is there."""
    started = time.perf_counter()
    fleet.start()
    while any(member.hello is not None for member in fleet.members):
        list(fleet.poll(0.1))
    return time.perf_counter() - started


def work(fleet: Crowd, count: int, seconds: float) -> dict[str, Any]:
    """Run so many jobs of so many seconds each."""
    made: Counter[str] = Counter()
    wall, processor = time.perf_counter(), time.process_time()
    for event in drive(fleet, jobs(count, seconds), lambda: False, 60):
        if isinstance(event, events.Finished):
            made[event.worker] += 1
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    each = [made[member.name] for member in fleet.members]
    per_worker = count / len(fleet.members)
    return {
        "jobs": count,
        "job_seconds": seconds,
        "wall_seconds": round(wall, 3),
        "wall_ms_per_job": round(wall / count * 1000, 3),
        "driver_processor_ms_per_job": round(processor / count * 1000, 3),
        "overhead_ms_per_job": round((wall - per_worker * seconds) / count * 1000, 3),
        "jobs_per_worker": {"least": min(each), "median": median(each), "most": max(each)},
    }


def recover(fleet: Crowd, count: int, seconds: float) -> dict[str, Any]:
    """Kill one process half-way, and see how long its jobs take to run again."""
    killed, lost, again = 0.0, dict[int, float](), dict[int, float]()
    ended: Counter[int] = Counter()
    for event in drive(fleet, jobs(count, seconds), lambda: False, 60):
        now = time.perf_counter()
        if isinstance(event, events.Finished | events.Failed):
            ended[event.job.number] += 1
        if isinstance(event, events.Finished) and not killed and len(ended) >= count // 2:
            killed = now
            os.kill(int(event.worker.split("/")[1]), signal.SIGKILL)
        if isinstance(event, events.Lost) and event.job is not None:
            lost[event.job.number] = now - killed
        if isinstance(event, events.Started) and event.attempt > 1:
            again[event.job.number] = now - killed
    return {
        "jobs": count,
        "ended_once": sum(number == 1 for number in ended.values()),
        "lost_with_the_process": len(lost),
        "noticed_seconds": {"first": round(min(lost.values()), 3), "last": round(max(lost.values()), 3)},
        "running_again_seconds": {"median": round(median(again.values()), 3), "last": round(max(again.values()), 3)},
    }


def write_results(count: int) -> dict[str, Any]:
    """What the output folder costs: two small files and a line a job; then reading the lines back."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        item = SimpleNamespace(args=SimpleNamespace(prompt="a lighthouse in the fog"), line=1)
        started = time.perf_counter()
        with results_in(folder, resume=False) as results:
            for number in range(count):
                item.number, item.name, item.key = number, f"{number:05d}", f"{number:032x}"
                place = results.place()
                files = [f"{item.name}.png", f"{item.name}.json"]
                for file in files:
                    (place / file).write_bytes(b"x" * 1000)
                results.publish(item, Made(files, "", [0]), place)  # type: ignore[arg-type]
        written = time.perf_counter() - started
        size = (folder / manifest.NAME).stat().st_size
        started = time.perf_counter()
        with manifest.opened(folder, resume=True) as opened:
            read = len(opened.done)
        seconds = time.perf_counter() - started
    return {
        "results": count,
        "write_ms_each": round(written / count * 1000, 3),
        "manifest_bytes_each": round(size / count),
        "read_ms_each": round(seconds / read * 1000, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=4000)
    options = parser.parse_args()
    started = time.perf_counter()
    with connected(ClusterSettings(workers=PROCESSES + 1, cpus=1)) as ray:
        ray_seconds = time.perf_counter() - started
        found: dict[str, Any] = {"workers": options.workers, "load_before": [round(x, 1) for x in os.getloadavg()]}
        with closing(Crowd(ray, options.workers)) as fleet:
            found["start_seconds"] = {"ray": round(ray_seconds, 1), "workers": round(start(fleet), 1)}
            found["driver"] = work(fleet, options.jobs, 0.0)
            found["paced"] = work(fleet, options.workers * 6, 3.0)
            found["recovery"] = recover(fleet, options.workers * 4, 2.0)
    found["manifest"] = write_results(5000)
    found["load_after"] = [round(x, 1) for x in os.getloadavg()]
    print(f"{found}\nwritten to {store('cluster_scale', found, 'cpu')}")


if __name__ == "__main__":
    main()

"""The driver: gives jobs to workers until all are done, whatever becomes of the workers meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Protocol

from . import events
from .connection import ClusterError
from .schedule import Job, Schedule

POLL_SECONDS = 0.1
STOP_SECONDS = 60.0
"""How long workers may take to a step's end once they were told to stop."""
MOST_FALSE_STARTS = 3
"""Workers in a row that end before they are there."""


class Fleet(Protocol):
    """Workers to drive: `RayFleet`, or others in tests."""

    members: list[Any]
    wanted: int

    def start(self) -> None: ...

    def add(self) -> None: ...

    def idle(self) -> list[Any]: ...

    def submit(self, member: Any, payload: Any) -> None: ...

    def stop(self, member: Any) -> None: ...

    def poll(self, seconds: float) -> Iterator[tuple[Any, tuple[Any, ...]]]: ...

    def remove(self, member: Any) -> None: ...

    def missing(self) -> str: ...


def drive(
    fleet: Fleet,
    jobs: Iterable[Job],
    should_stop: Callable[[], bool],
    patience: float,
    renew: Callable[[Job], Any] = lambda job: job.payload,
) -> Iterator[events.Event]:
    """Work through jobs. Every one of them ends in exactly one `Finished` or `Failed`, unless this raises.

    Args:
        should_stop: asked between events; once it says so, no job is taken and those that run stop at their next step.
        patience: seconds to wait for a card.
        renew: gives the payload of a job for one attempt.

    Raises:
        KeyboardInterrupt: it was stopped, and every worker has let go of its job.
        ClusterError: no worker can be had any more.
    """
    driver = Driver(fleet, Schedule(jobs), patience, renew)
    fleet.start()
    while driver.schedule.unfinished:
        if should_stop():
            driver.stop_all()
            raise KeyboardInterrupt
        yield from driver.hand_out()
        yield from driver.listen()
        yield from driver.give_up_models()
        yield from driver.lose_patience()


class Driver:
    """The state of one run."""

    def __init__(self, fleet: Fleet, schedule: Schedule, patience: float, renew: Callable[[Job], Any]) -> None:
        self.schedule = schedule
        self._fleet = fleet
        self._patience = patience
        self._renew = renew
        self._false_starts = 0
        self._last_words = ""
        self._refusals: dict[Hashable, tuple[str, str]] = {}

    def hand_out(self) -> Iterator[events.Event]:
        idle = self._fleet.idle()
        for member in idle:
            if member.model is not None:
                self.schedule.has(member.name, member.model)
        for member in sorted(idle, key=lambda each: not self.schedule.is_warm(each.name)):
            job = self.schedule.take(member.name)
            if job is None:
                continue
            member.model = job.model
            self._fleet.submit(member, self._renew(job))
            yield events.Started(member.name, job, self.schedule.tries[job.number])

    def listen(self) -> Iterator[events.Event]:
        for member, (kind, *rest) in self._fleet.poll(POLL_SECONDS):
            job = self.schedule.running(member.name)
            attempt = 0 if job is None else self.schedule.tries[job.number]
            if kind == "joined":
                self._false_starts = 0
                yield events.Joined(member.name)
            elif kind == "lost":
                yield from self._lost(member, job, attempt, str(rest[0]))
            elif job is None:
                continue
            elif kind == "tick":
                yield events.Ticked(member.name, job, rest[0])
            elif kind == "done":
                result, seconds, load_seconds = rest
                self.schedule.done(member.name, seconds, load_seconds)
                yield events.Finished(member.name, job, result, attempt)
            elif kind == "failed":
                yield from self._failed(member, job, attempt, *rest)

    def lose_patience(self) -> Iterator[events.Event]:
        """Give up on workers that find no card, and on the run when there are none at all."""
        now = time.monotonic()
        waiting = [each for each in self._fleet.members if each.hello is not None and now - each.since > self._patience]
        if waiting:
            missing = self._fleet.missing()
            if len(waiting) == len(self._fleet.members):
                raise ClusterError(f"no worker could start within {self._patience:g} s: {missing}")
            for member in waiting:
                self._fleet.remove(member)
            yield events.Noted(f"{len(waiting)} workers less, none could start within {self._patience:g} s: {missing}")
        if not self._fleet.members:
            raise ClusterError(f"all workers have ended, the last one because: {self._last_words}")

    def stop_all(self) -> None:
        """Cancel what runs, and wait until it has stopped."""
        for member in self._fleet.members:
            job = self.schedule.running(member.name)
            if job is not None:
                self._fleet.stop(member)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(map(self.schedule.running, self._names())):
            for member, (kind, *_) in self._fleet.poll(POLL_SECONDS):
                if kind not in ("tick", "joined") and self.schedule.running(member.name):
                    self.schedule.failed(member.name)
        for member in [each for each in self._fleet.members if self.schedule.running(each.name)]:
            self._fleet.remove(member)  # it does not listen

    def _names(self) -> list[str]:
        return [member.name for member in self._fleet.members]

    def _lost(self, member: Any, job: Job | None, attempt: int, reason: str) -> Iterator[events.Event]:
        self._last_words = reason
        failed = self.schedule.gone(member.name)
        yield events.Lost(member.name, job, reason)
        if failed is not None:
            text = f"it has ended {attempt} workers, the last one because: {reason}"
            yield events.Failed(member.name, failed, "worker", text, attempt)
        if job is None:
            self._false_starts += 1
        if self._false_starts < MOST_FALSE_STARTS and self.schedule.unfinished:
            self._fleet.add()

    def _failed(self, member: Any, job: Job, attempt: int, kind: str, text: str) -> Iterator[events.Event]:
        if kind != "model":
            self.schedule.failed(member.name)
            yield events.Failed(member.name, job, kind, text, attempt)
            return
        self.schedule.refused(member.name)
        member.model = None
        self._refusals[job.model] = member.name, text
        yield events.Noted(f"{member.name} cannot read the model of item {job.number}: {text}")

    def give_up_models(self) -> Iterator[events.Event]:
        """Fail the jobs whose model no worker can read."""
        for job in self.schedule.hopeless(self._names()) if self._refusals else ():
            worker, text = self._refusals[job.model]
            yield events.Failed(worker, job, "model", text, self.schedule.tries[job.number] + 1)

"""Who does what next. Pure bookkeeping: it knows neither Ray nor models.

A worker goes on with the model that it has loaded; else it takes one that nobody has; it joins others at theirs, which
costs another load, only where waiting for them would take longer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

MOST_TRIES = 3


@dataclass(frozen=True)
class Job:
    """One item of work. Attributes: number, its name here; model, what a worker must have loaded; payload, for it."""

    number: int
    model: Hashable
    payload: Any


@dataclass
class Pace:
    """How long a model takes, in seconds, means of what was seen."""

    loads: int = 0
    load_seconds: float = 0.0
    items: int = 0
    item_seconds: float = 0.0

    def add(self, seconds: float, load_seconds: float) -> None:
        if load_seconds:
            self.loads, self.load_seconds = self.loads + 1, self.load_seconds + load_seconds
        self.items, self.item_seconds = self.items + 1, self.item_seconds + max(0.0, seconds - load_seconds)

    @property
    def loading_in_items(self) -> float:
        """How many items could be made in the time of a load."""
        if not self.loads or not self.item_seconds:
            return 1.0
        return (self.load_seconds / self.loads) / (self.item_seconds / self.items)


class Schedule:
    """Jobs that are waiting, running or ended, and which worker has which model."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._waiting: dict[Hashable, deque[Job]] = {}
        self._running: dict[str, Job] = {}
        self._model: dict[str, Hashable] = {}
        self._refused: dict[str, set[Hashable]] = {}
        self._paces: dict[Hashable, Pace] = {}
        self.tries: Counter[int] = Counter()
        for job in jobs:
            self._waiting.setdefault(job.model, deque()).append(job)

    @property
    def unfinished(self) -> int:
        """Jobs that wait or run."""
        return len(self._running) + sum(map(len, self._waiting.values()))

    def running(self, worker: str) -> Job | None:
        return self._running.get(worker)

    def has(self, worker: str, model: Hashable) -> None:
        """The worker has this model from before its first job here."""
        self._model.setdefault(worker, model)

    def is_warm(self, worker: str) -> bool:
        """Whether a job waits whose model the worker has."""
        return self._model.get(worker) in self._waiting and self._model[worker] not in self._refused.get(worker, set())

    def take(self, worker: str) -> Job | None:
        """The next job of an idle worker, None where it had better wait."""
        refused = self._refused.get(worker, set())
        model = self._model[worker] if self.is_warm(worker) else self._other(worker, refused)
        if model is None:
            return None
        job = self._waiting[model].popleft()
        if not self._waiting[model]:
            del self._waiting[model]
        self._running[worker], self._model[worker] = job, model
        self.tries[job.number] += 1
        return job

    def done(self, worker: str, seconds: float, load_seconds: float) -> Job:
        """The worker has made its job, in so many seconds, loading included."""
        job = self._running.pop(worker)
        self._paces.setdefault(job.model, Pace()).add(seconds, load_seconds)
        return job

    def failed(self, worker: str) -> Job:
        """The worker's job cannot be made."""
        return self._running.pop(worker)

    def refused(self, worker: str) -> None:
        """The worker cannot read its job's model: another one will. See `hopeless`."""
        job = self._running.pop(worker)
        self._refused.setdefault(worker, set()).add(job.model)
        self._model.pop(worker, None)
        self.tries[job.number] -= 1
        self._again(job)

    def hopeless(self, workers: Iterable[str]) -> list[Job]:
        """Take out the jobs whose model none of these workers, which are all there are, can read."""
        refused = [self._refused.get(worker, set()) for worker in workers]
        models = set[Hashable]().union(*refused)
        lost = [model for model in self._waiting if model in models and all(model in each for each in refused)]
        return [job for model in lost for job in self._waiting.pop(model)]

    def gone(self, worker: str) -> Job | None:
        """The worker has ended. Returns its job where that has ended too many workers; else another one makes it."""
        self._model.pop(worker, None)
        self._refused.pop(worker, None)
        job = self._running.pop(worker, None)
        if job is None:
            return None
        if self.tries[job.number] >= MOST_TRIES:
            return job
        self._again(job)
        return None

    def _again(self, job: Job) -> None:
        self._waiting.setdefault(job.model, deque()).appendleft(job)

    def _other(self, worker: str, refused: set[Hashable]) -> Hashable | None:
        busy_with = Counter(self._model.values())
        candidates = [model for model in self._waiting if model not in refused]
        for model in candidates:
            if not busy_with[model]:
                return model
        for model in candidates:
            pace = self._paces.get(model)
            if pace is None or not self._can_be_had(model, worker):
                return model
            if len(self._waiting[model]) / busy_with[model] > 1 + pace.loading_in_items:
                return model
        return None

    def _can_be_had(self, model: Hashable, worker: str) -> bool:
        """Whether some other worker has the model and can go on with it."""
        return any(have == model for other, have in self._model.items() if other != worker)

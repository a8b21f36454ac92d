"""What happens while a cluster works: what the driver tells whoever called it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..callbacks import Progress
from .schedule import Job


@dataclass(frozen=True)
class Joined:
    """A worker is there."""

    worker: str


@dataclass(frozen=True)
class Started:
    """A worker has taken a job, for the `attempt`-th time, from 1."""

    worker: str
    job: Job
    attempt: int


@dataclass(frozen=True)
class Ticked:
    worker: str
    job: Job
    progress: Progress


@dataclass(frozen=True)
class Finished:
    """A job is made: `result` is what the work has returned."""

    worker: str
    job: Job
    result: Any
    attempt: int


@dataclass(frozen=True)
class Failed:
    """A job cannot be made. `kind`: "item", "model", "disk", or "worker" when it has ended too many of them."""

    worker: str
    job: Job
    kind: str
    text: str
    attempt: int


@dataclass(frozen=True)
class Lost:
    """A worker has ended, `job` is what it was making; another one makes that, or a `Failed` follows."""

    worker: str
    job: Job | None
    reason: str


@dataclass(frozen=True)
class Noted:
    """Something worth telling that stops nothing."""

    text: str


Event = Joined | Started | Ticked | Finished | Failed | Lost | Noted

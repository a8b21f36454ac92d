"""The workers themselves, as Ray's actors: started, given work, listened to, replaced and ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .connection import ALLOCATORS, size
from .settings import ClusterSettings
from .worker import Work, Worker

PATH = Path(__file__).with_name("path")
"""Holds what makes this folder importable as `fastdiffusers` in a worker."""
LONGEST_REASON = 300


@dataclass(eq=False)
class Member:
    """One worker.

    Attributes:
        name: "HOST/PID" once it is there.
        since: when it was asked for, as `time.monotonic`.
        hello, stream: what is awaited of it: its first word, or what it says of its item.
        ticket: of its item; every attempt at every item has another one.
        model: of the item that it had last, so what it has loaded.
    """

    name: str
    actor: Any
    since: float
    hello: Any = None
    stream: Any = None
    ticket: int = 0
    model: Hashable = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        return self.hello is None and self.stream is None


def environment(settings: ClusterSettings, threads: int | None) -> dict[str, str]:
    """What a worker process finds in its environment beside what its machine has there."""
    found = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    if settings.local:
        paths = [str(PATH), *filter(None, [os.environ.get("PYTHONPATH")])]
        found |= {"PYTHONPATH": os.pathsep.join(paths), **dict.fromkeys(ALLOCATORS, "")}
    return found


class RayFleet:
    """As many workers as there are cards, or as the settings say.

    Args:
        make_work: gives what makes items; every worker calls it once.
        worker: the class of the workers.
    """

    def __init__(
        self, ray: Any, settings: ClusterSettings, make_work: Callable[[], Work], worker: type = Worker
    ) -> None:
        self._ray = ray
        self._settings = settings
        self._make_work = make_work
        self.wanted, self._resources, threads = size(ray, settings)
        self._threads = threads
        self._class = ray.remote(worker).options(
            **self._resources,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment(settings, threads)},
        )
        self._count = self._ticket = 0
        self.members: list[Member] = []

    def start(self) -> None:
        """Ask for the workers that are missing."""
        for _ in range(self.wanted - len(self.members)):
            self.add()

    def add(self) -> None:
        """Ask for one more worker."""
        self._count += 1
        actor = self._class.remote(self._make_work)
        member = Member(f"worker {self._count}", actor, time.monotonic())
        member.hello = actor.hello.remote()
        self.members.append(member)

    def idle(self) -> list[Member]:
        return [member for member in self.members if member.idle]

    def submit(self, member: Member, payload: Any) -> None:
        self._ticket += 1
        member.ticket = self._ticket
        run = member.actor.run.options(num_returns="streaming")
        member.stream = run.remote(member.ticket, payload, member.facts)

    def stop(self, member: Member) -> None:
        """Cancel what a worker is making, at its next step."""
        member.actor.stop.remote(member.ticket)

    def poll(self, seconds: float) -> Iterator[tuple[Member, tuple[Any, ...]]]:
        """What the workers have to say, after waiting so long for the first word.

        Yields:
            A member and ("joined",), an event of `Worker.run`, or ("lost", reason).
        """
        awaited = {member.hello or member.stream: member for member in self.members if not member.idle}
        if not awaited:
            time.sleep(seconds)
            return
        ready, rest = self._ray.wait(list(awaited), timeout=seconds, fetch_local=False)
        if rest:
            more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
            ready = [*ready, *more]
        for each in ready:
            member = awaited[each]
            try:
                if member.hello is not None:
                    self._joined(member, self._ray.get(member.hello))
                    yield member, ("joined",)
                    continue
                event = self._ray.get(next(member.stream))
            except StopIteration:  # after the last event, which was seen
                member.stream = None
                continue
            except self._ray.exceptions.RayError as error:
                self.remove(member)
                yield member, ("lost", _reason(error))
                continue
            if event[0] != "tick":
                member.stream = None
            yield member, event

    def remove(self, member: Member) -> None:
        """End a worker."""
        if member in self.members:
            self.members.remove(member)
        self._ray.kill(member.actor, no_restart=True)

    def close(self) -> None:
        for member in list(self.members):
            self.remove(member)

    def missing(self) -> str:
        """What a worker takes of the cluster, and what of that is free."""
        total, free = self._ray.cluster_resources(), self._ray.available_resources()
        kind, needed = ("GPU", 1) if "num_gpus" in self._resources else ("CPU", self._resources["num_cpus"])
        word = "card" if kind == "GPU" else "processor core"
        return f"each worker takes {needed:g} {word}(s); of {total.get(kind, 0):g}, {free.get(kind, 0):g} are free"

    def _joined(self, member: Member, hello: dict[str, Any]) -> None:
        member.hello = None
        member.name = f"{hello['host']}/{hello['pid']}"
        member.facts = {"worker": member.name, **({} if self._threads is None else {"threads": self._threads})}


def _reason(error: Exception) -> str:
    """Why Ray says that a worker has ended, in one line: the cause is behind what its text begins with."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    causes = [line for line in lines if line.startswith(("The actor is dead because", "The actor is temporarily"))]
    text = next(iter(causes), "") or next((line for line in reversed(lines) if line), type(error).__name__)
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."

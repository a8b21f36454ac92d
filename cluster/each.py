"""One job for each of some workers, instead of many for whoever is free: to learn what is there, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .connection import ClusterError
from .drive import POLL_SECONDS, STOP_SECONDS, Fleet

Event = tuple[Any, tuple[Any, ...]]
"""A worker and what it says, as `Fleet.poll` has it."""


def gather(fleet: Fleet, patience: float, should_stop: Callable[[], bool]) -> list[str]:
    """Wait until all workers of a fleet are there.

    Returns:
        What is to be said of those that are not, because they have ended or found no card within `patience` seconds.

    Raises:
        ClusterError: none is there.
        KeyboardInterrupt: it was stopped.
    """
    fleet.start()
    notes, deadline = [], time.monotonic() + patience
    while any(member.hello is not None for member in fleet.members) and time.monotonic() < deadline:
        if should_stop():
            raise KeyboardInterrupt
        notes += [
            f"{member.name} has ended: {said[1]}" for member, said in fleet.poll(POLL_SECONDS) if said[0] == "lost"
        ]
    late = [member for member in fleet.members if member.hello is not None]
    if late:
        notes.append(f"{len(late)} workers could not start within {patience:g} s: {fleet.missing()}")
    for member in late:
        fleet.remove(member)
    if not fleet.members:
        raise ClusterError("; ".join(notes) or "it has no workers")
    return notes


def ask_each(fleet: Fleet, payloads: Mapping[Any, Any], should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Give each of some workers its payload, and yield all that they say until each has ended its job or itself.

    Once `should_stop` says so, all of them stop at their next step, and say so.
    """
    for member, payload in payloads.items():
        fleet.submit(member, payload)
    waiting, stopped_at = set(payloads), 0.0
    while waiting:
        if not stopped_at and should_stop():
            stopped_at = time.monotonic()
            for member in waiting:
                fleet.stop(member)
        if stopped_at and time.monotonic() - stopped_at > STOP_SECONDS:
            for member in waiting:  # they do not listen
                fleet.remove(member)
            return
        for member, said in fleet.poll(POLL_SECONDS):
            if member in waiting:
                if said[0] != "tick":
                    waiting.discard(member)
                yield member, said

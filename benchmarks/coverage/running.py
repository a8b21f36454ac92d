"""Running cases one by one in child processes, within limits of time and memory, so that none can spoil the others."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAITING = 20
"""Times the processor's time that a case may take on a machine that does other things too."""
Trial = Callable[[], dict[str, Any]]


class Limits:
    """Attributes: seconds, gib: of one case, in the processor's time and in memory; a case that needs more is ended."""

    def __init__(self, seconds: float, gib: float) -> None:
        self.seconds, self.gib = seconds, gib


def within_limits(trial: Trial, limits: Limits) -> dict[str, Any]:
    """What `trial` returns in a child process, or a result of state "not finished" that says what it ran into.

    The child is a fork, so that nothing is imported again; where there is none (Windows) the trial runs in this process
    and without limits.
    """
    if not hasattr(os, "fork"):
        return trial()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(trial, limits, writing)
    os.close(writing)
    text, ended = _read(reading, limits.seconds * WAITING)
    os.close(reading)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if not ended or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"state": "not finished", "reason": f"it takes more than {limits.seconds:g} s"}
    try:
        return dict(json.loads(text))
    except ValueError:
        return {"state": "not finished", "reason": f"its process ended with status {code}"}


def _in_child(trial: Trial, limits: Limits, writing: int) -> None:
    status = 1
    try:
        import faulthandler
        import resource

        faulthandler.register(signal.SIGXCPU, chain=True)  # where it was
        spent = time.process_time()
        seconds = math.ceil(spent + limits.seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        here = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = here + int(limits.gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):  # no limits here
        pass
    try:
        found = trial()
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(found, pipe)
        status = 0
    except BaseException as error:  # noqa: BLE001 - told to the parent, which goes on
        reason = f"more than {limits.gib:g} GiB" if isinstance(error, MemoryError) else repr(error)
        os.write(writing, json.dumps({"state": "not finished", "reason": reason}).encode())
        status = 0
    finally:
        os._exit(status)


def _read(reading: int, seconds: float) -> tuple[str, bool]:
    """(all that comes through a pipe, whether its other end was closed in time)"""
    deadline = time.monotonic() + seconds
    chunks: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            chunk = os.read(reading, 65536)
            if not chunk:
                return b"".join(chunks).decode(), True
            chunks.append(chunk)
    return "", False


class Journal:
    """Results as they come, one JSON line each, so that a run that was stopped goes on where it was."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.results[entry.pop("name")] = entry
        else:
            path.write_text("", encoding="utf-8")

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **result}) + "\n")

"""What tests ask of processes: which of them are there, and what they wrote when they were waited for in vain."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "FASTDIFFUSERS_TEST_MARK"


def marked(value: str) -> list[int]:
    """The processes, this one aside, with `MARK` of this value in their environment."""
    return [
        process
        for process in processes()
        if process != os.getpid() and f"{MARK}={value}".encode() in read_of(process, "environ").split(b"\0")
    ]


@contextlib.contextmanager
def nothing_left(mark: str, folder: Path, end: Callable[[], None]) -> Iterator[Path]:
    """The folder, for a block whose processes carry the mark. After `end` neither they nor files in it may be left."""
    os.environ[MARK] = mark
    try:
        yield folder
    finally:
        end()
        del os.environ[MARK]
    wait_for(lambda: marked(mark) == [], "the end of all processes", lambda: commands(marked(mark)))
    wait_for(lambda: list(folder.iterdir()) == [], "the end of all files", lambda: str(list(folder.iterdir())))


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def read_of(process: int, name: str) -> bytes:
    """A file of a process, b"" where it is gone."""
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


def has_ended(process: int) -> bool:
    """Whether a process is gone, or waits for whoever started it to hear so."""
    status = read_of(process, "stat").rpartition(b")")[2].split()
    return not status or status[0] == b"Z"


def end_all(of: Callable[[], list[int]]) -> None:
    """Kill processes until there are none."""

    def killed() -> bool:
        for process in of():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not of()

    wait_for(killed, "the end of processes that were killed", lambda: commands(of()))


def named(of: list[int], word: str) -> list[int]:
    """Those of the processes whose command line has the word."""
    return [process for process in of if word.encode() in read_of(process, "cmdline")]


def commands(of: list[int]) -> str:
    """The command lines of processes, for a failing test to print."""
    lines = [
        f"{each}: {read_of(each, 'cmdline').replace(bytes(1), b' ').decode(errors='replace')[:300]}" for each in of
    ]
    return "\n".join(lines)


def wait_for(condition: Callable[[], bool], what: str, said: Callable[[], str], seconds: float = 300) -> None:
    """Wait until a condition holds; after so many seconds fail, with what the processes had to say."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s.\n{said()}"
        time.sleep(0.1)

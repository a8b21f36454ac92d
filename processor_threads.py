"""How many of PyTorch's threads help on a processor that other programs use too.

An operation on several threads ends when the last of them has ended. Where other programs are at work the system lets a
thread wait for its turn, and the others wait for it, at every operation: two threads can take ten times as long as one.
It shows in how much of the time on the clock the calling thread has worked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

LOOK_EVERY = 0.25
"""Seconds between two looks."""
CONTENDED, FREE = 0.7, 0.9
"""Share of the time that the thread has worked: below the one it waits for others, above the other nothing is amiss."""
PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds until more threads are tried again: at first, and at most where they did not help."""
REMEMBERED = 10.0
"""Seconds for which the number that one block ended with is that which the next one begins with."""
_GIVEN: ContextVar[int] = ContextVar("given threads", default=0)


@dataclass
class _State:
    """Attributes: threads, 0 for all; changed, when; pause, until more are tried; ended, when a block ended."""

    threads: int = 0
    changed: float = float("-inf")
    pause: float = PAUSE
    ended: float = float("-inf")


_STATE = _State()


def given_threads() -> int:
    """The threads that PyTorch was given, whatever `helpful_threads` makes of them just now."""
    return _GIVEN.get() or torch.get_num_threads()


class Look:
    """Called often, looks every `LOOK_EVERY` seconds: where this thread waits, half of the threads go on, and where it
    no longer does, twice as many are tried.

    Args:
        given: threads of PyTorch; with one there is nothing to choose.
        clock, worked: seconds on the clock, and those that this thread has worked.

    Attributes: fewest, the least threads that it has chosen.
    """

    def __init__(self, given: int, clock: Callable[[], float], worked: Callable[[], float]) -> None:
        self.given = self.fewest = given
        self._clock, self._worked = clock, worked
        self._last, self._work = clock(), worked()

    def __call__(self) -> None:
        now = self._clock()
        if self.given == 1 or now - self._last < LOOK_EVERY:
            return
        work = self._worked()
        share = (work - self._work) / (now - self._last)
        self._last, self._work = now, work
        threads = _STATE.threads or self.given
        if share < CONTENDED and threads > 1:
            _STATE.pause = min(2 * _STATE.pause, LONGEST_PAUSE) if now - _STATE.changed < PAUSE else PAUSE
            self.take(threads // 2, now)
        elif share > FREE and threads < self.given and now - _STATE.changed > _STATE.pause:
            self.take(min(2 * threads, self.given), now)

    def take(self, threads: int, now: float) -> None:
        """Go on with so many threads."""
        _STATE.threads, _STATE.changed, self.fewest = threads, now, min(threads, self.fewest)
        torch.set_num_threads(threads)


@contextmanager
def helpful_threads(
    clock: Callable[[], float] = time.perf_counter, worked: Callable[[], float] = time.thread_time
) -> Iterator[Look]:
    """Compute inside the block with as many threads as help; afterwards there are as many as before.

    Inside another such block it does nothing.

    Args:
        clock, worked: as for `Look`.
    """
    if _GIVEN.get():
        yield Look(1, clock, worked)
        return
    given = torch.get_num_threads()
    look, now = Look(given, clock, worked), clock()
    if now - _STATE.ended > REMEMBERED:
        _STATE.threads, _STATE.pause = 0, PAUSE
    token = _GIVEN.set(given)
    try:
        if 0 < _STATE.threads < given:
            look.take(_STATE.threads, _STATE.changed)
        yield look
    finally:
        torch.set_num_threads(given)
        _GIVEN.reset(token)
        _STATE.ended = clock()

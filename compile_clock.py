"""How long torch.compile takes: every compilation of this thread, recompilations for new shapes included."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass


def first_run(last: float | None) -> str:
    """What a person should know of the time that compiling takes.

    Args:
        last: seconds that it took last time on this machine, None if that is not known.
    """
    return "first run only" if last is None else f"first run only, {last:.1f} s last time"


@dataclass
class Compilations:
    """What was compiled while `counted` held it.

    Attributes:
        count: compilations; code that is found on disk counts as one that was quick.
        seconds: what they took, from the beginning of tracing to callable code.
        checking: seconds of runs beside them that only compare compiled code with plain code, where it is compared.
    """

    count: int = 0
    seconds: float = 0.0
    checking: float = 0.0

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"compiling took {self.seconds:.1f} s ({times})"

    def told(self, last: float | None) -> str:
        """What a report says of it, with the seconds of the last time on this machine; "" if nothing was compiled."""
        return f"{self}, {first_run(last)}" if self.count else ""


@contextlib.contextmanager
def counted(into: Compilations) -> Iterator[None]:
    """Add to `into` whatever this thread compiles while the block runs, also when it ends with an error."""
    from torch._dynamo.callback import callback_handler

    thread = threading.get_ident()
    started: list[float] = []

    def begin(_: object) -> None:
        if threading.get_ident() == thread:
            started.append(time.perf_counter())

    def end(_: object) -> None:
        if started and threading.get_ident() == thread:
            into.seconds += time.perf_counter() - started.pop()
            into.count += 1

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a reset of dynamo has taken them off already
            callback_handler.remove_start_callback(begin)
            callback_handler.remove_end_callback(end)

"""What runs in a worker process: one item at a time, always in the same thread, with the pack's own cache.

Importing this needs neither Ray nor torch.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ..callbacks import Callbacks, Progress
from ..errors import DISK_FULL, FastDiffusersError, ModelFileError

TICKS_A_SECOND = 5.0
Work = Callable[[Any, Callbacks, dict[str, Any]], tuple[Any, float]]
"""Makes a payload into a result: (payload, callbacks, what the report should say of the worker) to the result and the
seconds that loading its model took, 0 where it was loaded already. One with a true attribute `previews` is asked for
them."""


class Stopped(BaseException):
    """The driver has cancelled the item. No `except Exception` on its way takes it for a fault of an optimization."""


class Worker:
    """An actor: one per card.

    Args:
        make_work: called once, in the thread of the items; gives what makes them.
    """

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self._make_work = make_work
        self._work: Work | None = None
        self._thread = ThreadPoolExecutor(1, "items")
        self._stopped: set[int] = set()

    async def hello(self) -> dict[str, Any]:
        """Who and where this worker is."""
        return {"host": socket.gethostname(), "pid": os.getpid()}

    async def stop(self, number: int) -> None:
        """Cancel an item at its next step."""
        self._stopped.add(number)

    async def run(self, number: int, payload: Any, facts: dict[str, Any]) -> AsyncIterator[tuple[Any, ...]]:
        """Make an item.

        Yields:
            ("tick", Progress) a few times a second, of a clip's preview with the first frame alone; at last one of
            ("done", result, seconds, seconds of loading), ("stopped",) and ("failed", kind, text), with kind "model",
            "disk" or "item".
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        put = lambda event: loop.call_soon_threadsafe(events.put_nowait, event)
        self._thread.submit(self._make, number, payload, facts, put)
        while True:
            event = await events.get()
            yield event
            if event[0] != "tick":
                self._stopped.discard(number)
                return

    def _make(self, number: int, payload: Any, facts: dict[str, Any], put: Callable[[tuple[Any, ...]], object]) -> None:
        show = a_few(lambda progress: put(("tick", progress)))

        def check() -> None:
            if number in self._stopped:
                raise Stopped

        started = time.perf_counter()
        try:
            check()
            if self._work is None:
                self._work = self._make_work()
            previews = getattr(self._work, "previews", False)
            result, loading = self._work(payload, Callbacks(show, check, previews=previews), facts)
            put(("done", result, time.perf_counter() - started, loading))
        except Stopped:
            put(("stopped",))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the driver has to hear of it
            put(("failed", kind_of(error), as_text(error)))


def a_few(show: Callable[[Progress], object]) -> Callable[[Progress], None]:
    """What shows a few ticks a second of those that it is given, their previews made small."""
    last = 0.0

    def shown(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1 / TICKS_A_SECOND or progress.done == progress.total:
            last = now
            preview = small(progress.preview_latent)
            told = Progress(progress.stage, progress.done, progress.total, progress.message, preview)
            show(replace(told, preview_format=progress.preview_format))

    return shown


def small(preview: Any) -> Any:
    """A preview, [C, H, W] or [C, T, H, W], in 16 bits on the CPU and without the frames after the first; or None."""
    if preview is None:
        return None
    return (preview[:, :1] if preview.ndim == 4 else preview).detach().half().cpu()


def kind_of(error: BaseException) -> str:
    """ "model" for what another machine may be able to read, "disk" for no room, "item" for all else."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "disk"
    return "model" if isinstance(error, ModelFileError) else "item"


def as_text(error: BaseException) -> str:
    return str(error) if isinstance(error, FastDiffusersError) else f"{type(error).__name__}: {error}"

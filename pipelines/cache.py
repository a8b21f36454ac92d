"""The one place where pipelines live: process-wide, locked, and small.

Whoever needs a pipeline borrows it with `use`; nobody keeps it. A pipeline that has to make room is freed before the
next one loads, because two of them rarely fit.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..callbacks import SILENT, Callbacks
from .loading import loader, sources
from .loading.mapped_files import check_unchanged, crash_is_reported
from .types import LoadedPipeline, LoadKey

log = logging.getLogger(__name__)

Load = Callable[[LoadKey, Callbacks], LoadedPipeline]
Check = Callable[[LoadKey], None]
COLLECTIONS, SECONDS_BETWEEN = 5, 0.1
"""How often what was released is looked for before something else is said to hold it, and the pause before each."""


class PipelineCache:
    """Loaded pipelines by key, the least recently used first.

    Args:
        capacity: pipelines kept at most, >= 1.
        load: reads the weights of a key.
        check: cheap test that a load can succeed, before anything is freed for it; raises if not.
    """

    def __init__(self, capacity: int = 1, load: Load = loader.load, check: Check = sources.check) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._capacity = capacity
        self._load = load
        self._check = check
        self._entries: OrderedDict[LoadKey, LoadedPipeline] = OrderedDict()
        self._borrowed: list[LoadKey] = []
        self._unwanted: set[LoadKey] = set()
        self._lock = threading.RLock()

    @contextmanager
    def use(self, key: LoadKey, callbacks: Callbacks = SILENT) -> Iterator[LoadedPipeline]:
        """Borrow the pipeline of `key`, loading it if need be. Others wait until it is given back.

        A load that fails leaves the cache without the new entry and usable; pipelines that are borrowed further up in
        the same thread are never freed.
        """
        self._acquire(callbacks)
        try:
            self._unwanted.discard(key)
            loaded = self._current(key) or self._make(key, callbacks)
            self._entries.move_to_end(key)
            self._borrowed.append(key)
            try:
                with crash_is_reported(loaded.mapped):
                    yield loaded
                check_unchanged(key.source, loaded.mapped)
            finally:
                self._borrowed.pop()
        finally:
            self._release()

    def clear(self) -> None:
        """Free every pipeline that is not borrowed in this thread."""
        with self._lock:
            self._free(list(self._entries))

    def discard(self, key: LoadKey) -> None:
        """Free one pipeline: now, or when whoever uses the cache gives back what was borrowed.

        Never waits, so that a finalizer may call it.
        """
        self._unwanted.add(key)
        if self._lock.acquire(blocking=False):  # else whoever holds the lock frees it
            self._release()

    def peek(self, key: LoadKey) -> LoadedPipeline | None:
        """The pipeline of `key` if it is loaded, without borrowing it: to look at, not to run."""
        return self._entries.get(key)

    def keys(self) -> tuple[LoadKey, ...]:
        """What is loaded, the least recently used first."""
        return tuple(self._entries)

    def _acquire(self, callbacks: Callbacks) -> None:
        while not self._lock.acquire(timeout=0.1):  # another thread is sampling: waiting can be cancelled
            callbacks.check_cancel()

    def _current(self, key: LoadKey) -> LoadedPipeline | None:
        """The pipeline of `key` if it is loaded, and its files are still those that it was read from."""
        loaded = self._entries.get(key)
        if loaded is None or not loaded.stamp or key in self._borrowed:
            return loaded
        now = sources.files_stamp(key)
        if now and now != loaded.stamp:
            self._free([key])
            return None
        return loaded

    def _make(self, key: LoadKey, callbacks: Callbacks) -> LoadedPipeline:
        self._check(key)
        surplus = len(self._entries) + 1 - self._capacity
        if surplus > 0:
            self._free(list(self._entries)[:surplus])
        loaded = self._load(key, callbacks)
        self._entries[key] = loaded
        return loaded

    def _release(self) -> None:
        """Let go of the lock, and free first what nobody wants: also what is named while the lock is let go of."""
        while True:
            try:
                self._free_unwanted()
            finally:
                self._lock.release()
            if not self._unwanted.difference(self._borrowed) or not self._lock.acquire(blocking=False):
                return

    def _free_unwanted(self) -> None:
        """Free what `discard` has named, but for what is borrowed; the lock is held."""
        for key in self._unwanted.copy():
            if key not in self._borrowed:
                self._unwanted.discard(key)
                if key in self._entries:
                    self._free([key])

    def _free(self, keys: list[LoadKey]) -> None:
        remains = []
        for key in keys:
            if key not in self._borrowed:
                remains.append((key, weakref.ref(self._entries.pop(key).pipeline)))
        if not remains:
            return
        gc.collect()  # hooks and pipelines refer to each other
        _return_device_memory()
        if held := [(key, reference) for key, reference in remains if reference() is not None]:
            threading.Thread(target=_collect_again, args=(held,), name="fastdiffusers-free", daemon=True).start()


def _collect_again(held: list[tuple[LoadKey, weakref.ref[Any]]]) -> None:
    """Collect what was released, and say what something else holds.

    A finalizer may release a pipeline in the middle of a collection, as ComfyUI's own after `/free`: another one within
    it does nothing.
    """
    for _ in range(COLLECTIONS):
        time.sleep(SECONDS_BETWEEN)
        gc.collect()
        held = [(key, reference) for key, reference in held if reference() is not None]
        if not held:
            _return_device_memory()
            return
    for key, _reference in held:
        log.warning("%s was released, but something outside the cache still holds it in memory", key.source)


def _return_device_memory() -> None:
    """Give the blocks that torch keeps for later back to the device."""
    import torch

    for module in (torch.cuda, torch.xpu):
        if module.is_available():
            module.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


CACHE = PipelineCache()
"""The pipelines of this process."""

"""Stopping torch.compile: Cancel and Ctrl-C take effect while code is made, which can take minutes in one call.

A thread looks every quarter of a second whether the caller wants to stop. Then it ends the C++ compilers that dynamo's
backend has started, and raises an exception in the thread that compiles, which unwinds as any other. It does so only
where that is safe: not within an import, a lock or the end of a `with` block, whose half would stay behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from types import FrameType
from typing import Any, TypeVar

INTERVAL = 0.25
"""Seconds between two looks at whether to stop."""
COMPILING = "convert_frame.py"
"""Dynamo's file that is on the stack as long as code is made."""
NOT_WITHIN_FILES = ("importlib", "threading.py", "weakref.py", "subprocess.py", "_filelock.py", "logging/__init__.py")
NOT_WITHIN_CALLS = ("__enter__", "__exit__", "__del__")

Result = TypeVar("Result")


class _Stop(BaseException):
    """Raised in the middle of compiling. No `Exception`: what works around failures must let it through."""


def stoppable(call: Callable[[], Result], tick: Callable[[float], None]) -> Result:
    """Return what `call` returns; whatever it compiles can be stopped.

    Args:
        call: runs in this thread.
        tick: called by another thread, in this one's context, every `INTERVAL` while code is compiled, with the seconds
            since that began. It stops by raising.

    Raises:
        BaseException: what `tick` has raised, unchanged, or KeyboardInterrupt; no compiler runs any more, and the next
            call compiles anew. Whatever `call` raises by itself.
    """
    watch = _Watch(tick)
    with watch:
        try:
            result = call()
        except BaseException as error:
            if watch.cancel is None:
                if isinstance(error, Exception) or not watch.compiled:
                    raise
                watch.cancel = error
        if watch.cancel is not None:
            watch.clean_up()
    if watch.cancel is None:
        return result
    raise watch.cancel


class _Watch:
    """Looks after what one thread compiles; its own thread lives from the first compilation to the end of the block.

    Attributes:
        cancel: what the caller wants raised, once it does.
        compiled: whether anything was compiled.
    """

    def __init__(self, tick: Callable[[float], None]) -> None:
        self.cancel: BaseException | None = None
        self.compiled = False
        self._tick = tick
        self._owner = threading.get_ident()
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._began = 0.0
        self._in_compiler = False
        self._interrupted = False
        self._handler: Any = None
        self._libraries: list[tuple[dict[str, Any], set[str]]] = []

    def __enter__(self) -> None:
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)

    def __exit__(self, *_: object) -> None:
        from torch._dynamo.callback import callback_handler

        with contextlib.suppress(ValueError):  # a reset of dynamo has taken them off already
            callback_handler.remove_start_callback(self._begin)
            callback_handler.remove_end_callback(self._end)
        self._give_ctrl_c_back()
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def clean_up(self) -> None:
        """Wait until nothing compiles any more, and forget what was half made."""
        self._watch()  # it ends compilers as they start, until the block is left
        pools = sys.modules.get("torch._inductor.async_compile")
        if pools is None:
            return
        with contextlib.suppress(AttributeError):  # another version of torch keeps them elsewhere
            for pool in pools._pool_set:  # processes that make Triton's kernels
                _terminate(_descendants(pool.process.pid))
            pools.shutdown_compile_workers()
            pools.CompiledTritonKernels.cache_clear()
        queue = _thread_pool(pools)
        if queue is not None:
            queue.shutdown(wait=True, cancel_futures=True)
            pools.AsyncCompile.pool.cache_clear()
        for libraries, before in self._libraries:  # those that failed would fail for ever
            for key in set(libraries) - before:
                del libraries[key]

    def _begin(self, _: object) -> None:
        if threading.get_ident() != self._owner:
            return
        self._began, self.compiled, self._in_compiler = time.monotonic(), True, True
        codes = sys.modules.get("torch._inductor.codecache")
        kinds = [getattr(codes, name, None) for name in ("CppCodeCache", "CppPythonBindingsCodeCache")]
        self._libraries = [(kind.cache, set(kind.cache)) for kind in kinds if kind is not None]
        self._take_ctrl_c()
        self._watch()

    def _end(self, _: object) -> None:
        if threading.get_ident() == self._owner:
            self._in_compiler = False
            self._give_ctrl_c_back()

    def _watch(self) -> None:
        if self._thread is None:
            name = "FastDiffusers: may compiling be stopped?"
            self._thread = threading.Thread(target=copy_context().run, args=(self._look,), name=name, daemon=True)
            self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(INTERVAL):
            if self.cancel is None and self._in_compiler:
                try:
                    self._tick(time.monotonic() - self._began)
                except BaseException as error:  # noqa: BLE001 - of any type: it is the caller's
                    self.cancel = error
            if self.cancel is None and self._interrupted:
                self.cancel = KeyboardInterrupt()
            if self.cancel is not None:
                _end_compilers()
                _raise_in(self._owner)

    def _take_ctrl_c(self) -> None:
        """An interrupt raised anywhere could be lost or leave a compiler running: take it as a wish to stop."""
        in_main = threading.current_thread() is threading.main_thread()
        if self._handler is None and in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handler = signal.signal(signal.SIGINT, self._on_ctrl_c)

    def _give_ctrl_c_back(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _on_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:  # pressed again
            raise KeyboardInterrupt
        self._interrupted = True


def _raise_in(thread: int) -> None:
    """Raise `_Stop` in a thread that compiles, if it is where that does no harm; otherwise the next look comes soon.

    Only what runs within `stoppable` counts: the stack of every thread begins in threading.py. This thread holds the
    interpreter's lock from the look at the other's stack until the exception is set.
    """
    frame = sys._current_frames().get(thread)
    compiling = False
    while frame is not None and frame.f_code is not stoppable.__code__:
        code = frame.f_code
        if code.co_name in NOT_WITHIN_CALLS or any(name in code.co_filename for name in NOT_WITHIN_FILES):
            return
        compiling = compiling or code.co_filename.endswith(COMPILING)
        frame = frame.f_back
    if compiling:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stop))


def _end_compilers() -> None:
    """End the C++ compilers of inductor that run, and have those that wait not start.

    They are asked to end, so that they take what they have half written with them.
    """
    pools = sys.modules.get("torch._inductor.async_compile")
    if pools is None:
        return
    queue = _thread_pool(pools)
    if queue is not None:
        queue.shutdown(wait=False, cancel_futures=True)
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    folders = (cache_dir(), default_cache_dir())  # the second is where headers are
    _terminate(_descendants(None, of=folders))


def _thread_pool(pools: Any) -> Any:
    """The pool whose threads wait for C++ compilers, or None."""
    pool = getattr(pools.AsyncCompile, "pool", None)
    return pool() if pool is not None and pool.cache_info().currsize else None


def _descendants(pid: int | None, of: tuple[str, ...] = ()) -> list[Any]:
    """A process, None for this one, and those below it; or those below whose command line names one of the folders."""
    try:
        import psutil
    except ImportError:  # then they run to their own end
        return []
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        found = process.children(recursive=True)
        if not of:
            return [*found, process]
        chosen = []
        for child in found:
            with contextlib.suppress(psutil.Error):
                if any(folder in word for word in child.cmdline() for folder in of):
                    chosen.append(child)
        return chosen
    return []


def _terminate(processes: list[Any]) -> None:
    for process in reversed(processes):  # those at the end of the chain first
        with contextlib.suppress(Exception):  # it has ended meanwhile
            process.terminate()

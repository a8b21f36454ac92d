"""Telling a failure that can be worked around from one that must travel: out of memory, a cancel, an interrupt."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .callbacks import SILENT, Callbacks, Progress
from .errors import first_line


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whatever device; several backends raise a plain RuntimeError for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class Signals:
    """The caller's callbacks, remembering what they raised.

    A caller cancels by raising whatever it likes, an ordinary `Exception` included. Code that works around failures
    asks `must_travel` first, so that a cancel is never taken for one.
    """

    def __init__(self, callbacks: Callbacks = SILENT) -> None:
        self._callbacks = callbacks
        self._raised: BaseException | None = None

    def tick(self, stage: str, done: int, total: int, message: str = "") -> None:
        """Report progress, then give the caller the chance to stop the run."""
        self._remembered(lambda: self._callbacks.on_progress(Progress(stage, done, total, message)))
        self.check_cancel()

    def check_cancel(self) -> None:
        """Give the caller the chance to stop the run."""
        self._remembered(self._callbacks.check_cancel)

    def _remembered(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            self._raised = error
            raise

    def must_travel(self, error: BaseException) -> bool:
        """Whether the error must reach the caller unchanged."""
        return error is self._raised or not isinstance(error, Exception) or is_out_of_memory(error)


def describe(error: BaseException, limit: int = 200) -> str:
    """An error as one short line: its type and the first line of its text that names a cause."""
    error = getattr(error, "inner_exception", error)  # what dynamo wraps says more than the wrapping
    name = type(error).__name__
    return f"{name}: {first_line(error, limit - len(name) - 2)}" if str(error).strip() else name


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors in a module's arguments or results, in their order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):  # what diffusers models return is one
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [found for each in value for found in tensors_in(each)]
    return []


def all_finite(output: object) -> bool:
    """Whether every floating-point tensor in a module's output is free of NaN and infinity. Waits for the device."""
    return all(map(_is_finite, tensors_in(output)))


def _is_finite(tensor: torch.Tensor) -> bool:
    values = tensor if tensor.element_size() > 1 else tensor.float()  # of a byte it is not implemented
    return not tensor.is_floating_point() or bool(torch.isfinite(values).all())


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference of two tensors of one shape, in float32. Waits for the device."""
    return float((one.float() - other.float()).abs().max())

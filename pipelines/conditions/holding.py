"""The models that conditions bring: they stay with the pipeline for the next run, and go where that wants others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ...callbacks import Callbacks


class _Key(Protocol):
    @property
    def source(self) -> str: ...


Key = TypeVar("Key", bound=_Key)


def hold(held: dict[Key, Any], keys: Sequence[Key], read: Callable[[Key], Any], callbacks: Callbacks) -> list[Any]:
    """The models of `keys`, in their order; those of `held` that are not among them are freed first.

    Args:
        held: what the pipeline holds from the last run; it is changed.
        read: reads one that it does not hold.
        callbacks: ticked as stage "load".
    """
    for key in [key for key in held if key not in keys]:
        del held[key]
    for key in keys:
        if key not in held:
            callbacks.tick("load", 0, 1, key.source)
            held[key] = read(key)
            callbacks.tick("load", 1, 1)
    return [held[key] for key in keys]

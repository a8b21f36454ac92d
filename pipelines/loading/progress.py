"""What surrounds the reading of a pipeline by diffusers: its progress and its errors, made ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import FastDiffusersError, ModelFileError
from ...fallback import Signals, describe


@contextmanager
def reading_errors(path: Path, signals: Signals | None = None) -> Iterator[None]:
    """Name the file when a library cannot make sense of it.

    Out of memory, errors of this pack, and what a callback of `signals` raised travel unchanged. What the libraries
    raise for a model that is none is of any type: a division by zero for a head size, their own types for settings.
    """
    signals = signals or Signals()
    try:
        yield
    except Exception as error:
        if isinstance(error, FastDiffusersError) or signals.must_travel(error):
            raise
        reason = f"it could not be loaded ({describe(error)})"
        raise ModelFileError("model", str(path), reason, "see the log") from error


@contextmanager
def component_progress(signals: Signals) -> Iterator[None]:
    """Turn diffusers' own bars, over the components and over the parts of each, into progress and a way to cancel."""
    from diffusers.utils import logging

    original: Any = logging.tqdm
    component = (0, 1, "")  # number, of how many, name: while one is being read

    def watched(iterable: Iterable[Any] = (), **kwargs: Any) -> Iterator[Any]:
        nonlocal component
        items = list(iterable)
        outermost = component[2] == ""
        for number, item in enumerate(items):
            if outermost:
                component = (number, len(items), str(item[0] if isinstance(item, tuple) else item))
            part = "" if outermost else f", part {number + 1} of {len(items)}"
            signals.tick("load", component[0], component[1], component[2] + part)
            yield item
        if outermost and items:
            component = (0, 1, "")
            signals.tick("load", len(items), len(items))

    logging.tqdm = watched  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.tqdm = original

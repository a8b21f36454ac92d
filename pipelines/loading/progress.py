"""What surrounds the reading of a pipeline by diffusers: its progress and its errors, made ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...callbacks import Callbacks
from ...errors import FastDiffusersError, ModelFileError, first_line


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Name the file when a library cannot make sense of it; out of memory and cancels keep their type."""
    try:
        yield
    except (OSError, ImportError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        if isinstance(error, FastDiffusersError) or "out of memory" in str(error).lower():
            raise
        if type(error).__module__ not in ("builtins", "safetensors", "huggingface_hub.errors"):
            raise  # a caller's own exception, or torch's out of memory
        raise ModelFileError(
            "model", str(path), f"it could not be loaded ({first_line(error)})", "see the log"
        ) from error


@contextmanager
def component_progress(callbacks: Callbacks) -> Iterator[None]:
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
            callbacks.tick("load", component[0], component[1], component[2] + part)
            yield item
        if outermost and items:
            component = (0, 1, "")
            callbacks.tick("load", len(items), len(items))

    logging.tqdm = watched  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.tqdm = original

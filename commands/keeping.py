"""Keeping a result that cost minutes when its place cannot take it: a disk that is full, a folder that is gone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import FastDiffusersError, InputError
from ..links import link_target

MEBIBYTE = 2**20


class ResultMovedError(FastDiffusersError):
    """The result could not be written where it should be; the text says why, and where it is kept, if anywhere."""


class Form(NamedTuple):
    """One way to write a result.

    Attributes:
        suffix: of the file, "" for a folder.
        write: writes to a path, completely or not at all.
        loss: what it loses against the form that was asked for, "" for nothing.
    """

    suffix: str
    write: Callable[[Path], object]
    loss: str = ""


def check_room(name: str, path: Path, needed: int) -> None:
    """Find out before a run that its result cannot fit.

    Args:
        name: of the input, for the error.
        path: where the result will be.
        needed: bytes that it takes at least.

    Raises:
        InputError: fewer are free there.
    """
    free = shutil.disk_usage(link_target(path).parent).free
    if needed > free:
        reason = f"the result takes at least {needed / MEBIBYTE:.1f} MiB, and {free / MEBIBYTE:.1f} MiB are free there"
        raise InputError(name, str(path), reason, "free some space, or choose another disk")


def write_or_keep(path: Path, forms: list[Form]) -> list[Path]:
    """Write a result to `path`, or else to the temporary folder, or else in a smaller form.

    Args:
        path: where it was asked for.
        forms: the form that was asked for, then smaller ones.

    Returns:
        What was written: `path`, or the files of a batch that take its place.

    Raises:
        ResultMovedError: it is not at `path`.
    """
    try:
        written = forms[0].write(path)
        return written if isinstance(written, list) else [path]
    except Exception as error:
        if not _is_writing_error(error):
            raise
        reason = f"{path} cannot be written ({_why(error)})"
    for form in forms:
        beside = [] if form is forms[0] else [link_target(path).parent]
        for place in (*beside, Path(tempfile.gettempdir())):
            if kept := _try(place, path.stem, form):
                loss = f", {form.loss}" if form.loss else ""
                raise ResultMovedError(f"{reason}. The result is kept as {kept}{loss}: move it when there is room.")
    raise ResultMovedError(f"{reason}, and no other place takes the result. Free some space and run again.")


def _try(place: Path, stem: str, form: Form) -> Path | None:
    """Write a form to a new folder in `place`; None when that fails too, and nothing stays."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(dir=place, prefix="fastdiffusers_kept_"))
        target = folder / f"{stem}{form.suffix}"
        form.write(target)
        return target
    except Exception as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if not _is_writing_error(error):
            raise
        return None


def _is_writing_error(error: Exception) -> bool:
    """Whether a file could not be written: Python's error, or that of a library that writes by itself."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
        "av",
        "safetensors",
        "safetensors_rust",
    )


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())

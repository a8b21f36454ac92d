"""Weights that stay in their files while a model runs, and files that are written to meanwhile.

Weights that are loaded for the CPU in the type that they are stored in are mapped from their files. That takes no time
and no memory of its own: what there is no room for is read again when it is used, where a copy would fail. The price:
whoever writes into such a file changes the weights of the run, and whoever cuts it off ends the process where it reads
on (SIGBUS), which nothing can catch. So the files are looked at between steps and at the end of a run, whose result is
then thrown away, and Python's own report of a crash is switched on while it lasts.
Files that are deleted or replaced under their name, as careful programs do it, stay as they are for who maps them.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ...errors import ModelFileError

State = tuple[int, int, int, int]
"""Device, inode, size in bytes, time of the last change of the contents in nanoseconds."""
_MAPS = Path("/proc/self/maps")


def mapped_files(place: Path | None) -> dict[str, State]:
    """The weight files of a model that this process has mapped, links followed, with their present state.

    Args:
        place: the folder of a pipeline or of a component, or a single file; None for one that has no files.
    """
    if place is None:
        return {}
    files = [place] if place.is_file() else sorted((*place.glob("*/*.safetensors"), *place.glob("*.safetensors")))
    mapped = _mapped()
    states = {path: _state(path) for path in map(os.path.realpath, files) if mapped is None or path in mapped}
    return {path: state for path, state in states.items() if state is not None}


def check_unchanged(source: str, files: Mapping[str, State]) -> None:
    """Raise ModelFileError when weights that a run reads from their file were written to since `mapped_files`."""
    for path, before in files.items():
        now = _state(path)
        written = now is not None and now != before and now[:2] == before[:2]
        if written and ((mapped := _mapped()) is None or path in mapped):
            reason = f"{path} was written to while the run read its weights from there, so its result is lost"
            raise ModelFileError("model", source, reason, "run again when nothing changes the file any more")


@contextmanager
def crash_is_reported(files: Mapping[str, State]) -> Iterator[None]:
    """Let Python say where a process ended that read on in a file that was cut off; nothing without such files."""
    if not files or faulthandler.is_enabled() or sys.__stderr__ is None:
        yield
        return
    faulthandler.enable(sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.disable()


def _state(path: str) -> State | None:
    try:
        status = os.stat(path)
    except OSError:  # deleted: what is mapped stays
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _mapped() -> set[str] | None:
    """The files that this process has mapped; None where the system does not tell."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    return {words[5] for line in lines if len(words := line.split(None, 5)) == 6}

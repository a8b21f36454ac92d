"""The driver's folders as a worker sees them: shared, so that results are written there, or out of its reach."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = ".driver"


def leave_mark(folder: Path) -> str:
    """Make a folder known to the workers that can read it, and return what they find there."""
    (folder / MARK).write_text(folder.name, encoding="utf-8")
    return folder.name


def sees(place: Path, mark: str) -> bool:
    """Whether this process shares `place`, a folder within one that `leave_mark` has marked so."""
    try:
        return (place.parent / MARK).read_text(encoding="utf-8") == mark and place.is_dir()
    except OSError:
        return False


@contextmanager
def folder_for(place: Path, mark: str) -> Iterator[tuple[Path, bool]]:
    """Where a worker writes what belongs into `place`.

    Yields:
        `place` and True where it is shared; else a folder of this machine's own, removed afterwards, and False.
    """
    if sees(place, mark):
        yield place, True
        return
    folder = Path(tempfile.mkdtemp(prefix="fastdiffusers_"))
    try:
        yield folder, False
    finally:
        shutil.rmtree(folder, ignore_errors=True)

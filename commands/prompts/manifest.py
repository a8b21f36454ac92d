"""What of a file of prompts is done: a line of JSON per item, written when its files are in their place.

A line that was cut off, because the disk was full or the process was ended, counts as not written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from ...errors import InputError

NAME = "manifest.jsonl"
DONE, FAILED = "done", "failed"


class Owner(NamedTuple):
    """Whose a result is. Attributes: prompt; prompts, the name of the file of prompts that it is in, "" where nothing
    says that."""

    prompt: str
    prompts: str = ""


def owner_of(entry: Mapping[str, Any]) -> Owner:
    """Whose the result is that a line of the manifest, or what a report says of it, is about."""
    return Owner(str(entry.get("prompt") or ""), str(entry.get("prompts") or ""))


class Manifest:
    """The manifest of an output folder, open for one run."""

    def __init__(self, folder: Path, file: IO[bytes]) -> None:
        self.folder = folder
        self._file = file
        self._broken = False
        self.done: dict[str, list[str]] = {}
        """By key, the files of every item that is done, in this run and before, and that no later item has taken."""
        self.owner: dict[str, Owner] = {}
        """By file that an item has written, its name within the folder: the item that did so last."""

    def read(self) -> None:
        """Take over what runs before this one have done, as far as its files are still there."""
        self._file.seek(0)
        data = self._file.read()
        self._broken = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            entry = _entry(line)
            self._note(entry)
        gone = [key for key, names in self.done.items() if not all((self.folder / name).is_file() for name in names)]
        for key in gone:
            del self.done[key]

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line. Raises OSError when it cannot be written; what was written of it then counts for nothing."""
        text = json.dumps({**entry, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}, ensure_ascii=False)
        data = (b"\n" if self._broken else b"") + text.encode("utf-8", "backslashreplace") + b"\n"
        self._broken = True
        self._file.seek(0, os.SEEK_END)
        while data:
            data = data[self._file.write(data) :]
        self._broken = False
        self._note(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        """Take an item as done, or as failed, though part of it was written. What it has written over is no longer what
        an earlier one made."""
        if entry.get("state") != DONE:
            self.done.pop(entry.get("key", ""), None)
            return
        written = set(entry["files"])
        for key in [key for key, names in self.done.items() if written.intersection(names)]:
            del self.done[key]
        self.done[entry["key"]] = entry["files"]
        self.owner.update(dict.fromkeys(entry["files"], owner_of(entry)))


@contextmanager
def opened(folder: Path, resume: bool) -> Iterator[Manifest]:
    """The manifest of a folder, which no other run can have open meanwhile.

    Raises:
        InputError: one of an earlier run is there and `resume` is False; another run writes to the folder.
    """
    path = folder / NAME
    if not resume and path.exists() and path.stat().st_size:
        cure = "add --resume to do what is missing there, or choose another folder"
        raise InputError("output", str(folder), f"it holds the {NAME} of an earlier run", cure)
    with open(path, "ab+", buffering=0) as file:
        _lock(file, folder)
        manifest = Manifest(folder, file)
        manifest.read()
        yield manifest


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError("output", str(folder), "another run writes to it", "wait for it, or choose another") from None
    except OSError:  # a file system without locks
        return


def _entry(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it was cut off or is none of this pack's."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        return {}
    files = entry.get("files")
    return entry if isinstance(files, list) and all(isinstance(name, str) for name in files) else {}

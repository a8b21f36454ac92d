"""Choices about kernels, saved in a small JSON file: the convolution chosen for a shape, an operation that failed.

Each entry is valid for one card and one set of versions; with another driver library or compiler it is learnt anew.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from ... import cache_folder
from ...links import link_target

log = logging.getLogger(__name__)

FORMAT = 1
LIMIT = 4096
"""Entries kept; the oldest go first."""
FILE_NAME = "kernels.json"


class SavedChoices:
    """Short texts by key. Losing the file, or being unable to write it, costs a measurement and nothing else.

    Args:
        path: the file; its folder is made when something is first written. None keeps them for this process.
        depends_on: what else an entry is valid for; None asks for the card and the versions of this process.
    """

    def __init__(self, path: Path | None = None, depends_on: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._depends_on = None if depends_on is None else dict(depends_on)
        self._entries: dict[str, str] | None = None
        self._guard = threading.RLock()

    def use(self, path: Path) -> None:
        """Save in this file from now on."""
        with self._guard:
            if path != self.path:
                self.path, self._entries = path, None

    def get(self, key: tuple[object, ...]) -> str | None:
        with self._guard:
            return self._read().get(self._text(key))

    def put(self, key: tuple[object, ...], value: str) -> None:
        with self._guard:
            if self.path is not None:
                self._entries = None  # other processes may have written in the meantime
            entries = self._read()
            entries.pop(self._text(key), None)
            entries[self._text(key)] = value
            self._entries = dict(list(entries.items())[-LIMIT:])
            if self.path is not None:
                self._write(self.path, self._entries)

    @staticmethod
    def _write(path: Path, entries: dict[str, str]) -> None:
        path = link_target(path)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({"format": FORMAT, "entries": entries}, indent=1), encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            log.info("what was learnt about kernels lasts for this session: %s", error)

    def _text(self, key: tuple[object, ...]) -> str:
        if self._depends_on is None:
            self._depends_on = versions()
        return json.dumps([self._depends_on, key], sort_keys=True, default=str)

    def _read(self) -> dict[str, str]:
        if self._entries is None:
            self._entries = {}
            try:
                if self.path is not None:
                    data = json.loads(self.path.read_text(encoding="utf-8"))
                    self._entries = dict(data["entries"]) if data["format"] == FORMAT else {}
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.info("%s is not read: %s", self.path, error)
        return self._entries


def versions() -> dict[str, str]:
    """The card, the versions and the compiler that decide what works and what is fastest."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"card": card, **cache_folder.versions()}


SAVED = SavedChoices()
"""The choices of this process."""


def remember_in(folder: Path) -> None:
    """Keep in `folder` what is learnt about kernels, and use what was learnt there before."""
    SAVED.use(folder / FILE_NAME)

"""Choices among convolutions in a small JSON file, each valid for one card and one set of versions."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

log = logging.getLogger(__name__)

FORMAT = 1
LIMIT = 4096
"""Choices kept; the oldest go first."""


class ConvMemory:
    """Name of the chosen convolution by key. Losing the file, or being unable to write it, costs a measurement.

    Args:
        path: the file; its folder is made when something is first written.
        situation: what else a choice depends on; None asks for the card and the versions of this process.
    """

    def __init__(self, path: Path, situation: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._situation = dict(situation) if situation is not None else versions()
        self._choices: dict[str, str] | None = None
        self._guard = threading.RLock()

    def get(self, key: tuple[object, ...]) -> str | None:
        with self._guard:
            return self._read().get(self._text(key))

    def put(self, key: tuple[object, ...], name: str) -> None:
        with self._guard:
            self._choices = None  # other processes may have written in the meantime
            choices = self._read()
            choices.pop(self._text(key), None)
            choices[self._text(key)] = name
            self._choices = dict(list(choices.items())[-LIMIT:])
            aside = self.path.with_suffix(f".{os.getpid()}.tmp")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"format": FORMAT, "choices": self._choices}, indent=1)
                aside.write_text(text, encoding="utf-8")
                aside.replace(self.path)
            except OSError as error:
                log.info("choices of convolutions last for this session: %s", error)

    def _text(self, key: tuple[object, ...]) -> str:
        return json.dumps([self._situation, key], sort_keys=True, default=str)

    def _read(self) -> dict[str, str]:
        if self._choices is None:
            try:
                data = json.loads(self.path.read_text(encoding="utf-8"))
                self._choices = dict(data["choices"]) if data["format"] == FORMAT else {}
            except FileNotFoundError:
                self._choices = {}
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.info("%s is not read: %s", self.path, error)
                self._choices = {}
        return self._choices


def versions() -> dict[str, str]:
    """The card and the versions that decide which convolution is fastest."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    try:
        kitchen = metadata.version("comfy-kitchen")
    except metadata.PackageNotFoundError:
        kitchen = ""
    return {
        "card": card,
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
        "comfy-kitchen": kitchen,
    }

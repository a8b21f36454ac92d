"""The store of measurements: one line of JSON per measurement, appended to a text file.

Safe for several processes: a line is appended in one write under a lock, so a process that is killed while it writes
loses that line and nothing else. A line that cannot be read, or that another format version wrote, is passed over.
Where nothing can be written, what is learnt lasts as long as the process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...cache_folder import default_folder
from ...links import link_target
from .file_lock import locked
from .key import TuningKey

logger = logging.getLogger(__name__)

FORMAT = 1
FILE_NAME = "measurements.jsonl"
VERDICTS = ("plain", "faster", "slower", "noise", "failed")
_COMPACT_ABOVE = 4 * 2**20
_READ_AT_MOST = 64 * 2**20
"""Bytes. Compacting keeps the file far below; what is longer was not written by this pack."""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Row:
    """One measurement of one choice of settings under one key.

    Attributes:
        key: what it holds for.
        settings: what was changed against plain, as `label` of `key.py` gives it; () is plain itself.
        verdict: "plain" for plain itself; else "faster", "slower", "noise", or "failed".
        gain: fraction of plain's time per run (benchmark) or per step (probation) that was saved; negative when slower.
        run_seconds, step_seconds: medians, None where unknown.
        compile_seconds: one-time cost of the settings, None where unknown.
        peak_bytes: highest memory reserved on the device.
        lossless: whether the result equals plain's as far as anybody can see; None when it was not compared.
        runs: counted runs (benchmark) or steps (probation).
        source: "benchmark" or "probation".
        reason: for a person; why it failed, say.
        when: time of the measurement, ISO 8601 in UTC.
    """

    key: TuningKey
    settings: tuple[tuple[str, str], ...]
    verdict: str
    gain: float = 0.0
    run_seconds: float | None = None
    step_seconds: float | None = None
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    lossless: bool | None = None
    runs: int = 0
    source: str = "benchmark"
    reason: str = ""
    when: str = field(default_factory=_now)

    def as_json(self) -> str:
        values = asdict(self) | {"settings": dict(self.settings), "format": FORMAT}
        values["situation"] = values.pop("key")
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        # Half a surrogate pair (an undecodable path, say) cannot be written as UTF-8; escaped it can.
        return text if _is_text(text) else json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Row:
        """Read a line. Raises one of `UNREADABLE` for anything that `as_json` of this version did not write."""
        values: dict[str, Any] = json.loads(line)
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        stored = values.pop("situation")
        key = {item.name: stored[item.name] for item in fields(TuningKey)}
        settings = values["settings"]
        if not all(isinstance(value, str) for value in (*key.values(), *settings.values())):
            raise TypeError("situation and settings are text")
        values["key"] = TuningKey(**key)
        values["settings"] = tuple(sorted(settings.items()))
        row = cls(**values)
        if row.verdict not in VERDICTS:
            raise ValueError("unknown verdict")
        for name in ("gain", "run_seconds", "step_seconds", "compile_seconds", "peak_bytes", "runs"):
            value = getattr(row, name)
            if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
                raise ValueError(f"{name} is no finite number")
        if row.gain is None or type(row.runs) is not int or row.lossless not in (True, False, None):
            raise TypeError("a figure is missing or of another type")
        if not all(isinstance(text, str) for text in (row.source, row.reason, row.when)):
            raise TypeError("source, reason and date are text")
        datetime.fromisoformat(row.when)
        return row


UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)
"""What reading a line of any content can raise: a number that fits no float and nesting of any depth included."""


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Store:
    """The measurements in one file. Every method may be called from any thread and any process.

    Args:
        path: the file; its folder is made when the first row is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.RLock()
        self._unwritten: list[Row] = []
        self._cached: tuple[tuple[int, int, int] | None, list[Row]] = (None, [])
        self._complained = False
        self._refused = False

    def rows(self) -> list[Row]:
        """The newest row of each key and settings, oldest first."""
        with self._guard:
            newest: dict[tuple[TuningKey, tuple[tuple[str, str], ...]], Row] = {}
            for row in (*self._read(), *self._unwritten):
                newest.pop((row.key, row.settings), None)
                newest[row.key, row.settings] = row
            return list(newest.values())

    def find(self, key: TuningKey) -> list[Row]:
        """The rows that hold for `key`, exactly: another version of anything is another key."""
        return [row for row in self.rows() if row.key == key]

    def add(self, row: Row) -> bool:
        """Keep a row. False when it could not be written and lasts only as long as this process."""
        line = row.as_json().encode() + b"\n"
        with self._guard:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with locked(self.path):
                    self._append(line)
                    if self.path.stat().st_size > _COMPACT_ABOVE:
                        self._rewrite(self.rows())
            except OSError as error:
                self._unwritten.append(row)
                if not self._complained:
                    logger.warning("measurements last only for this session: %s", error)
                    self._complained = True
                return False
            return True

    def forget(self, which: Callable[[Row], bool] = lambda row: True) -> int:
        """Remove the rows that `which` picks, by default all, and say how many.

        Raises:
            OSError: the file cannot be changed.
        """
        with self._guard:
            before = self.rows()
            kept = [row for row in before if not which(row)]
            if self.path.exists():
                with locked(self.path):
                    self._rewrite([row for row in self._read() if not which(row)])
            self._unwritten = [row for row in self._unwritten if not which(row)]
            return len(before) - len(kept)

    def export(self, path: Path) -> int:
        """Write all rows to another file of the same form, and say how many there are."""
        rows = self.rows()
        path.write_text("".join(row.as_json() + "\n" for row in rows), encoding="utf-8")
        return len(rows)

    def _append(self, line: bytes) -> None:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{self.path} is no ordinary file")
            size = status.st_size
            if size:  # a writer that was killed leaves half a line: end it, or it would take this one with it
                os.lseek(handle, -1, os.SEEK_END)
                if os.read(handle, 1) != b"\n":
                    line = b"\n" + line
            os.write(handle, line)
        finally:
            os.close(handle)

    def _rewrite(self, rows: list[Row]) -> None:
        target = link_target(self.path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(b"".join(row.as_json().encode() + b"\n" for row in rows))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _read(self) -> list[Row]:
        try:
            status = self.path.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _READ_AT_MOST:  # reading a pipe would wait for ever
                if not self._refused:
                    logger.warning("%s is ignored: it is no ordinary file of measurements", self.path)
                    self._refused = True
                return []
            if self._cached[0] != stamp:
                self._cached = (stamp, list(_parse(self.path.read_bytes())))
        except OSError:  # not there, or not readable: nothing is known
            return []
        return self._cached[1]


def _parse(content: bytes) -> Iterator[Row]:
    for line in content.splitlines():
        try:
            yield Row.from_json(line)
        except UNREADABLE:
            continue


_stores: dict[Path, Store] = {}
_stores_guard = threading.Lock()


def default_store() -> Store:
    """The process-wide store in `default_folder()`."""
    path = default_folder() / FILE_NAME
    with _stores_guard:
        return _stores.setdefault(path, Store(path))

"""Reading a file of prompts: which options each of its lines gives, as the words of a command line."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from .arguments import LineParser

SUFFIXES = (".txt", ".csv", ".jsonl")
FORMS = "use a .txt with a prompt a line, a .csv whose first line names options, or a .jsonl with one object a line"


@dataclass(frozen=True)
class Line:
    """One prompt. Attributes: number, of the line in the file, from 1; words, the options that it gives."""

    number: int
    words: list[str]


def read_lines(path: Path, parser: LineParser) -> list[Line]:
    """Every prompt of a file, in its order. Empty lines are left out.

    - `.txt`: a prompt a line; a line that begins with `--` holds options as on a command line.
    - `.csv`: the first line names options, an empty cell is what is not given, and a column may be there several times
      for an option that repeats. Separated by commas, or by semicolons where the first line has no comma.
    - `.jsonl`: one object a line; null is what is not given (an empty prompt is given), and a list goes with an option
      that repeats.

    Raises:
        InputError: the file or one of its lines cannot be read; the error names the line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError("prompts", str(path), f"it must end in {', '.join(SUFFIXES)}", FORMS)
    if not path.is_file():
        reason = "it is no file" if path.exists() else "there is no such file"
        raise InputError("prompts", str(path), reason, "check the path")
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})"
        raise InputError("prompts", str(path), reason, "check who may read it") from None
    texts = list(_decoded(path, data))
    read = {".txt": _plain, ".csv": _table, ".jsonl": _objects}[path.suffix.lower()]
    lines = list(read(path, texts, parser))
    if not lines:
        raise InputError("prompts", str(path), "it holds no prompts", FORMS)
    return lines


@contextmanager
def in_line(path: Path, number: int) -> Iterator[None]:
    """Say of an InputError in which line of which file its input is."""
    try:
        yield
    except InputError as error:
        place = f"{path.name} line {number}, {error.name}"
        raise type(error)(place, error.value, error.reason, error.cure) from None


def _decoded(path: Path, data: bytes) -> Iterator[str]:
    """The lines without their ends; what ends a line within quotes of a table included."""
    for number, line in enumerate(re.split(rb"\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf")), 1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            with in_line(path, number):
                shown = line[max(0, error.start - 10) : error.start + 10]
                raise InputError("text", shown, "it is not UTF-8", "save the file as UTF-8") from None


def _plain(path: Path, texts: list[str], parser: LineParser) -> Iterator[Line]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        if not text.lstrip().startswith("--"):
            yield Line(number, [f"--prompt={text.strip()}"])
            continue
        with in_line(path, number):
            if not (first := text.split()[0]).strip("-"):
                cure = f"write {shlex.quote(f'--prompt={text.strip()}')} for a prompt that begins so"
                raise InputError("options", text, f"{first} is no option", cure)
            try:
                words = shlex.split(text)
            except ValueError as error:
                raise InputError("options", text, str(error), 'write --prompt "a fox" --steps 20') from None
            yield Line(number, words)


def _table(path: Path, texts: list[str], parser: LineParser) -> Iterator[Line]:
    head = texts[0] if texts else ""
    rows = csv.reader(
        (f"{text}\n" for text in texts), delimiter=";" if ";" in head and "," not in head else ",", strict=True
    )
    names: list[str] = []
    while True:
        number = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            with in_line(path, number):
                raise InputError("table", "row", str(error), "close every quote") from None
        if not any(cell.strip() for cell in cells):
            continue
        with in_line(path, number):
            if not names:
                names = [name.strip() for name in cells]
                parser.words(dict.fromkeys(filter(None, names)))
                continue
            if any(cell.strip() for cell in cells[len(names) :]):
                reason = f"it has {len(cells)} cells, and the first line names {len(names)} options"
                raise InputError("row", cells[len(names) :], reason, "put text with a comma into quotes")
            given: dict[str, Any] = {}
            for name, cell in zip(names, cells, strict=False):
                if cell.strip():
                    given.setdefault(name, []).append(cell)
            if "" in given:
                raise InputError("row", given[""][0], "its column has no name", "name it in the first line")
            yield Line(number, parser.words({k: v[0] if len(v) == 1 else v for k, v in given.items()}))


def _objects(path: Path, texts: list[str], parser: LineParser) -> Iterator[Line]:
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        with in_line(path, number):
            try:
                given = json.loads(text, object_pairs_hook=_each_once)
            except InputError:
                raise
            except (ValueError, RecursionError) as error:
                raise InputError("object", text, f"it is no JSON ({error})", 'write {"prompt": "a fox"}') from None
            if not isinstance(given, dict):
                raise InputError("object", text, "it is no JSON object", 'write {"prompt": "a fox"}')
            yield Line(number, parser.words(given))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose own rule lets the last of two values win."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(name, value, "the line says it twice", "say it once")
        found[name] = value
    return found

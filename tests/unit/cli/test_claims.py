"""docs/claims.md: every figure stands in the data file that its row names, and every command is one that exists."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fastdiffusers import cli
from fastdiffusers.benchmarks.quantized import parse_names
from fastdiffusers.benchmarks.usual_advice.__main__ import CASES
from fastdiffusers.comparison.presets import MODEL_BENCHMARKS

PACK = Path(__file__).resolve().parents[3]
TEXT = (PACK / "docs" / "claims.md").read_text(encoding="utf-8")
RESULTS = PACK / "benchmarks" / "results"
MACHINE = "intel_r_xeon_r_processor"
"""Whose figures the text gives; others may lie beside them."""
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.(\d+))?(?=x\b|%|\b)")
QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """A row of one of the tables. Attributes: said, done, measured: texts; commands: those of its last cell."""

    said: str
    done: str
    measured: str
    commands: tuple[str, ...]
    last: str


def rows(text: str = TEXT) -> list[Row]:
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] != "the usual advice" and not cells[0].startswith("---"):
            found.append(Row(*cells[:3], tuple(QUOTED.findall(cells[3])), cells[3]))
    return found


@cache
def data(name: str) -> Any:
    """The data file of that name."""
    return json.loads((RESULTS / f"{name}_{MACHINE}.json").read_text(encoding="utf-8"))


def entries(found: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary in a data file; one that has a name of its own as a key carries that as "key"."""
    if isinstance(found, dict):
        yield found
        for key, value in found.items():
            if isinstance(value, dict):
                yield {"key": key, **value}
            yield from entries(value)
    elif isinstance(found, list):
        for value in found:
            yield from entries(value)


def numbers(file: str, entry: str) -> list[float]:
    """The figures of the entries of that name: one of their texts, or several of their values between commas."""
    wanted = set(entry.split(", "))
    found = [
        one
        for one in entries(data(file))
        if entry in [value for value in one.values() if isinstance(value, str)]
        or (len(wanted) > 1 and wanted <= {str(value) for value in one.values() if not isinstance(value, (dict, list))})
    ]
    assert found, f"{file} has no entry {entry!r}"
    return [
        float(value)
        for one in found
        for value in one.values()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def unfounded(measured: str) -> list[str]:
    """The figures of a cell that none of its entries has, rounded as they stand there."""
    file, *names = QUOTED.findall(measured)
    known = [number for name in names for number in numbers(file, name)]
    shown = [(match.group(), len(match[1] or "")) for match in NUMBER.finditer(QUOTED.sub(" ", measured))]
    assert known or not shown
    return [text for text, digits in shown if not any(f"{number:.{digits}f}" == text for number in known)]


def test_there_are_rows_and_each_has_something_to_see() -> None:
    found = rows()
    assert len(found) > 60
    assert [row.said for row in found if not row.commands] == []
    said = [row.said for row in found if not row.said.startswith("...")]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.said[:40])
def test_every_figure_is_in_its_data_file(row: Row) -> None:
    if row.measured.startswith("not measured"):
        assert NUMBER.findall(row.measured) == []
    else:
        assert unfounded(row.measured) == []


def test_a_wrong_figure_would_be_noticed() -> None:
    right = "`advice_switches` `recompile_limit 8`: 8 of 12"
    assert unfounded(right) == []
    assert unfounded(right.replace("8 of", "9 of")) == ["9"]
    some = max(numbers("vae_decode", "auto"))
    assert unfounded(f"`vae_decode` `auto`: {some:.2f}x as fast, {some:.0f} MiB, 0.0123 GiB") == ["0.0123"]
    with pytest.raises(AssertionError, match="no entry"):
        unfounded("`vae_decode` `no such row`: 1.41x")


def test_what_the_files_hold_is_what_the_text_says() -> None:
    listed = re.findall(r"^- `(\w+)`: (.*)$", TEXT, re.MULTILINE)
    named = {QUOTED.findall(row.measured)[0] for row in rows() if not row.measured.startswith("not measured")}
    assert {name for name, _ in listed} == named
    for name, said in listed:
        size = data(name).get("size")
        assert size is None or said.endswith(size), name


def test_what_needs_a_card_is_marked_and_gives_no_figure() -> None:
    """A command that measures whole models, or with a card's kernels, has the mark before it."""
    for row in rows():
        for command in row.commands:
            card = "compare_settings" in command or "benchmarks.kernels" in command or "graphs" in command
            assert f"(card) `{command}`" in row.last or not card or "pytest" in command, command
        if "(card)" in row.measured and not QUOTED.findall(row.measured):
            assert row.measured == "not measured (card)"


@pytest.mark.parametrize("command", sorted({command for row in rows() for command in row.commands}))
def test_every_command_exists(command: str) -> None:
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "pytest"]:
        file = PACK / words[3]
        names = re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
        parts = re.split(r" or | and ", words[5]) if words[4:5] == ["-k"] else []
        assert [part for part in parts if not any(part in name for name in names)] == []
        assert len(words) == (6 if parts else 4)
        return
    assert words[:2] == ["python", "."]
    if not words[2].startswith("benchmarks."):
        assert words[2] in cli.COMMANDS
        assert words[3:] == ["--help"] or cli.build_parser().parse_args(words[2:])
        return
    name, arguments = words[2].removeprefix("benchmarks."), words[3:]
    folder = PACK / "benchmarks"
    source = next(path for path in (folder / f"{name}.py", folder / name / "__main__.py") if path.is_file()).read_text()
    options = [word for word in arguments if word.startswith("--") and word != "--help"]
    assert [option for option in options if f'"{option}"' not in source] == []
    if name == "usual_advice":
        assert set(arguments) - {"--no-store"} <= set(CASES)
        assert "--no-store" in arguments  # else seeing it would change the data it is held against
    elif name == "compare_settings":
        assert arguments[0] in MODEL_BENCHMARKS
        assert not arguments[1:] or (arguments[1] == "--compare" and parse_names(arguments[2]))
    elif "--rows" in arguments:
        kept = arguments[arguments.index("--rows") + 1 :]
        known = [row["row"] for row in data("vae_decode")["cases"][0]["rows"]]
        assert [part for part in kept if not any(part in row for row in known) and part not in source] == []

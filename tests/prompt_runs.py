"""Runs of `generate --prompts` for tests: their file, their call, and what lies in their folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastdiffusers import cli
from fastdiffusers.commands.prompts import manifest


def written(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """A file of prompts, a line of JSON each."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def generate(prompts: Path, output: Path, *options: str) -> int:
    """Run the command in this process; its exit status."""
    return cli.main(["generate", "--prompts", str(prompts), "--output", str(output), *options])


def entries(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's manifest."""
    return [json.loads(line) for line in (folder / manifest.NAME).read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> list[str]:
    """Every file below a folder, by its path there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

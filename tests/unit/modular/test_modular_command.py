"""Modular folders from a shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdiffusers import cli

FAST = ("--steps", "2", "--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu", "--quiet")


def test_generate_runs_a_modular_folder_and_says_what_it_cannot_read(
    modular_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, report = tmp_path / "out.png", tmp_path / "report.json"
    folder = modular_folder("zimage")
    line = ["generate", "--prompt", "a fox", "--output", str(picture), "--report", str(report), *FAST]
    assert cli.main([*line, "--model", str(folder)]) == 0
    assert picture.is_file()
    assert json.loads(report.read_text())["facts"]["pipeline"] == "ZImageModularPipeline"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "modular_model_index.json").write_text('{"_class_name": "ZImageModularPipeline"}')
    assert cli.main([*line, "--model", str(broken)]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert "gives no place for" in said[-1]
    assert "Traceback" not in "\n".join(said)


def test_a_modular_folder_is_planned(modular_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--plan", str(modular_folder("zimage")), "--vram", "8"]) == 0
    said = capsys.readouterr().out
    assert "transformer" in said
    assert "gpu" in said

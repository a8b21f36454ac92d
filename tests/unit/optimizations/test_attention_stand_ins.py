"""xFormers, flash-attn and SageAttention end to end without a card: stand-in packages that diffusers really imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdiffusers.pipelines import tiny

HERE = Path(__file__).parent
STAND_INS = HERE.parents[1] / "stand_ins"
FAMILIES = (*tiny.TINY_FAMILIES, *tiny.TINY_SOUND_FAMILIES)


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def results(*arguments: str) -> dict[str, Any]:
    done = python(str(HERE / "stand_in_runs.py"), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_family_attends_through_every_package_and_is_put_back() -> None:
    found = results("families", *FAMILIES)
    assert all(found["available"][name] == "" for name in ("sdpa", "xformers", "flash", "sage"))
    for family in FAMILIES:
        for choice, package in (("xformers", "xformers"), ("flash", "flash_attn"), ("sage", "sageattention")):
            row = found[family][choice]
            assert (row["applied"], row["failed"]) == (choice, False), (family, choice, row)
            assert row["packages"] == [package], (family, choice, row)
            # Two of torch's own kernels differ by this much on the same model: rounding that its layers amplify.
            rounding = found[family]["rounding"]["difference"]
            assert rounding < 1e-4
            assert row["difference"] <= max(1e-5, 1.5 * rounding), (family, choice, row, rounding)
        assert found[family]["afterwards"]["difference"] == 0.0, family


def test_every_fault_ends_in_the_picture_and_a_true_report() -> None:
    found = results("faults")
    assert "out of memory" in found.pop("memory")  # keeps its type, so that ComfyUI can make room
    compiled = found.pop("compiled")
    assert (compiled["applied"], compiled["failed"]) == ("xformers", False), compiled
    assert "transformer" in compiled["compile"], compiled
    assert compiled["difference"] <= 1e-5
    assert len(found) == 12
    for case, row in found.items():
        assert (row["applied"], row["failed"]) == ("sdpa", True), (case, row)
        wanted = "no kernel image is available" if "raise" in case else "NaN or infinity"
        assert wanted in row["reason"], (case, row)
        assert row["difference"] <= 1e-5, (case, row)
        assert (row["afterwards"]["applied"], row["afterwards"]["failed"]) == ("xformers", False), (case, row)
        assert row["difference afterwards"] <= 1e-5, (case, row)


COMMAND = ("generate", "--model", "tiny:flux", "--prompt", "a fox", "--seed", "4", "--steps", "3")
COMMAND += ("--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu")
FAULTS = {"": "", "raise@5": "no kernel image", "nan@5": "NaN or infinity"}


def check(folder: Path, name: str, fault: str, plain: Path) -> None:
    """The picture is the plain one to rounding, and the report says what became of xformers."""
    pictures = [np.asarray(Image.open(path)).astype(int) for path in (folder / f"{name}.png", plain)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1, fault
    written = json.loads((folder / f"{name}.json").read_text())
    record = next(row for row in written["optimizations"] if row["name"] == "attention")
    assert record["applied"] == ("sdpa" if fault else "xformers"), record
    assert FAULTS[fault] in record["reason"], record


def test_the_command_line_says_what_became_of_xformers(tmp_path: Path) -> None:
    codes = results("commands", str(tmp_path), ",".join(FAULTS), *COMMAND)
    assert codes == dict.fromkeys((*FAULTS, "sdpa"), 0)
    for fault in FAULTS:
        check(tmp_path, fault or "none", fault, tmp_path / "sdpa.png")
    # And once as people start it, with nothing imported before.
    asked = ("--attention", "xformers", "--report", str(tmp_path / "own.json"), "--output", str(tmp_path / "own.png"))
    done = python("-m", "fastdiffusers", *COMMAND, *asked, ATTENTION_STAND_IN_FAULT="raise@5")
    assert done.returncode == 0, done.stderr
    check(tmp_path, "own", "raise@5", tmp_path / "sdpa.png")

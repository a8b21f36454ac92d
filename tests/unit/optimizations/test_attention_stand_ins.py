"""xFormers, flash-attn and SageAttention end to end without a card: stand-in packages that diffusers really imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


@pytest.mark.parametrize(("fault", "words"), [("", ""), ("raise@5", "no kernel image"), ("nan@5", "NaN or infinity")])
def test_the_command_line_says_what_became_of_xformers(tmp_path: Path, fault: str, words: str) -> None:
    common = ("-m", "fastdiffusers", "generate", "--model", "tiny:flux", "--prompt", "a fox", "--seed", "4")
    common += ("--steps", "3", "--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu")
    asked = (*common, "--attention", "xformers", "--report", str(tmp_path / "r.json"))
    done = python(*asked, "--output", str(tmp_path / "a.png"), ATTENTION_STAND_IN_FAULT=fault)
    assert done.returncode == 0, done.stderr
    plain = python(*common, "--attention", "sdpa", "--output", str(tmp_path / "b.png"))
    assert plain.returncode == 0, plain.stderr
    pictures = [np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    written = json.loads((tmp_path / "r.json").read_text())
    record = next(row for row in written["optimizations"] if row["name"] == "attention")
    assert record["applied"] == ("sdpa" if fault else "xformers")
    assert words in record["reason"]

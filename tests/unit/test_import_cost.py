"""Starting ComfyUI costs nothing: modules that only list choices import nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "numpy", "diffusers", "transformers", "safetensors", "comfy", "PIL", "av", "tqdm")


def heavy_modules_after(statement: str) -> list[str]:
    """The heavy packages that a fresh interpreter has imported after running `statement`."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    "module",
    [
        "fastdiffusers",
        "fastdiffusers.errors",
        "fastdiffusers.callbacks",
        "fastdiffusers.report",
        "fastdiffusers.optimizations.settings",
        "fastdiffusers.pipelines.types",
        "fastdiffusers.cli",
    ],
)
def test_importing_it_brings_nothing_heavy(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == []


def test_help_needs_nothing_heavy() -> None:
    help_text = "import fastdiffusers.cli as c, contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    "
    assert heavy_modules_after(f"{help_text}assert c.main(['generate', '--help']) == 0") == []


def test_the_check_notices_a_heavy_import() -> None:
    assert heavy_modules_after("import numpy") == ["numpy"]

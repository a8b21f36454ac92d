"""Runs the tests in `interpreted/` under Triton's interpreter, in a process of their own.

Triton decides at its import whether it interprets, so this cannot be switched on for some tests of a process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
HANG = 1800
"""Seconds after which a file hangs: a loaded machine may take many times as long as a quiet one."""


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_it_passes_under_the_interpreter(file: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--confcutdir={FOLDER}", "--no-header", "--tb=short"]
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER / file)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) > 0
    assert "skipped" not in ran.stdout

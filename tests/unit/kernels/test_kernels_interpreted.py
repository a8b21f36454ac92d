"""Runs the tests in `interpreted/` under Triton's interpreter, all in one process of their own.

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
"""Seconds after which they hang: a loaded machine may take many times as long as a quiet one."""


def test_they_pass_under_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    options = ["-v", "-p", "no:cacheprovider", "-p", "no:xdist", f"--confcutdir={FOLDER}", "--no-header", "--tb=short"]
    files = sorted(str(path) for path in FOLDER.glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", *options, *files]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    passed = set(re.findall(r"(\w+\.py)::.* PASSED", ran.stdout))
    assert passed == {Path(file).name for file in files}, ran.stdout[-6000:]
    assert "SKIPPED" not in ran.stdout

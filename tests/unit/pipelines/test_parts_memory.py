"""Host memory that reading a model in parts takes, in a process of its own, as benchmarks/parts_memory.py measures it
at 2 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiffusers.benchmarks.parts_memory import ROOT, write_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured as Linux counts it")
CASES = ("bf16 file, bf16", "bf16 file, float32", "scaled fp8 file, bf16")
MARGIN = 48
"""MiB that modules imported on the way and the allocator may take."""


def test_a_model_takes_little_more_than_its_own_size(tmp_path: Path) -> None:
    """A third of a GiB in float32: neither what is mapped nor what is converted lies in memory twice, or on disk."""
    write_model(tmp_path, heads=8, layers=5)
    cases = [argument for case in CASES for argument in ("--case", case)]
    command = [sys.executable, str(ROOT), "benchmarks.parts_memory", *cases, "--place", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert tuple(rows) == CASES
    assert rows["bf16 file, float32"]["component_mib"] > 300
    for case, row in rows.items():
        assert row["peak_mib"] - row["other_resident_mib"] <= 1.1 * row["component_mib"] + MARGIN, (case, row)
        assert row["written_mib"] < 8, (case, row)

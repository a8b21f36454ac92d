"""`bench --cluster` with a real Ray: the worker measures, its table and what it has learnt come back, nothing stays."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from processes import MARK, commands, marked, wait_for

from fastdiffusers.optimizations.tuning.store import default_store

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]


def test_a_worker_measures_and_nothing_is_left(tmp_path: Path) -> None:
    mark = f"bench-{os.getpid()}"
    words = ["bench", "--model", "tiny:flux-random", "--output", str(tmp_path / "out"), "--steps", "2", "--runs", "1"]
    words += ["--width", "32", "--height", "32", "--compare", "math", "--dtype", "float32"]
    words += ["--cluster", "local:1", "--cpus", "1", "--cluster-wait", "600"]
    ended = subprocess.run(
        [sys.executable, "-m", "fastdiffusers", *words],
        env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stderr
    wait_for(lambda: marked(mark) == [], "the end of the worker and of Ray", lambda: commands(marked(mark)))
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name.endswith("_1_threads")
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".json", ".md", ".png"]
    names = [row[0] for row in csv.reader((folder / "results.csv").open(encoding="utf-8"))]
    assert names[1:] == ["plain", "math"]
    rows = default_store().rows()
    assert () in {row.settings for row in rows}
    (device,) = {row.key.device for row in rows}
    assert device.endswith(", 1 threads")
    assert f"{device} (" in ended.stdout

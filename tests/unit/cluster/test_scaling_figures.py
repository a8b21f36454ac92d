"""Every figure of docs/scaling.md is the one in its data file, or follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[3]
TEXT = " ".join((PACK / "docs" / "scaling.md").read_text(encoding="utf-8").split())
FOUND: dict[str, Any] = json.loads(
    (PACK / "benchmarks" / "results" / "cluster_scale_intel_r_xeon_r_processor.json").read_text(encoding="utf-8")
)
DRIVER, PACED, RECOVERY, MANIFEST = (FOUND[name] for name in ("driver", "paced", "recovery", "manifest"))
EACH = DRIVER["wall_ms_per_job"] + MANIFEST["write_ms_each"]
"""Milliseconds of a driver for an item."""


def test_the_measured_rows() -> None:
    spread, again = PACED["jobs_per_worker"], RECOVERY["running_again_seconds"]["last"]
    processor = DRIVER["driver_processor_ms_per_job"]
    rows = [
        f"| driver, a job without work | {DRIVER['wall_ms_per_job']:.1f} ms of the wall, {processor:.1f} ms of its",
        f"| jobs of {PACED['job_seconds']:g} s on {FOUND['workers']} workers | {PACED['overhead_ms_per_job']:.1f} ms",
        f"| how evenly {PACED['jobs']} jobs were spread | {spread['least']} to {spread['most']} a worker, median "
        f"{spread['median']:g} |",
        f"| a process with {RECOVERY['lost_with_the_process']} busy workers killed | noticed after "
        f"{RECOVERY['noticed_seconds']['last']:.1f} s, all running again after {again:.1f} s, "
        f"{RECOVERY['ended_once']} of {RECOVERY['jobs']} jobs ended once |",
        f"| {MANIFEST['write_ms_each']:.1f} ms, {MANIFEST['manifest_bytes_each']} bytes |",
        f"| {MANIFEST['read_ms_each']:.2f} ms a line |",
        f"| start of `local` | {FOUND['start_seconds']['ray']:.0f} s until Ray is there |",
    ]
    assert [row for row in rows if row not in TEXT] == []


@pytest.mark.parametrize("cards", [1, 8, 64, 1000])
def test_what_follows_for_so_many_cards(cards: int) -> None:
    a_second = cards / 10
    share = a_second * EACH / 10
    assert f"| {cards:,} | {a_second:g} | {share:.{2 if share < 0.1 else 1 if share < 1 else 0}f}% |" in TEXT


def test_what_follows_for_the_rest() -> None:
    assert f"{EACH:.1f} ms, so it ends at about {round(1000 / EACH, -1):.0f} items a second" in TEXT
    assert -(-1000 * EACH // 1000) == 5
    assert f"of a million items is {MANIFEST['manifest_bytes_each']} MB" in TEXT
    assert f"which takes about {MANIFEST['read_ms_each'] * 100:.0f} s" in TEXT
    assert 50 < MANIFEST["read_ms_each"] * 1000 < 70, "about a minute"


def test_the_target_is_met() -> None:
    """A fact of the data file, not of the machine that runs this."""
    assert FOUND["workers"] == 200
    assert PACED["overhead_ms_per_job"] <= 20
    assert RECOVERY["ended_once"] == RECOVERY["jobs"]

"""Every figure of docs/scaling.md is the one in its data file, or follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastdiffusers.benchmarks import cluster_local

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


def two_workers() -> dict[str, Any]:
    """What was stored last."""
    [path] = (PACK / "benchmarks" / "results").glob("cluster_local_*.json")
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


@pytest.mark.parametrize("document", cluster_local.DOCUMENTS, ids=lambda path: path.name)
def test_two_workers_against_one_process(document: Path) -> None:
    """What the data file says."""
    found = two_workers()
    said = cluster_local.within(document.read_text(encoding="utf-8"))
    assert said == cluster_local.sentence(found)
    assert (found["workers"], found["threads"]["one process"]) == (2, 2 * found["threads"]["each worker"])
    assert found["ratio"]["least"] > 1


def test_a_result_of_two_workers_goes_into_a_document(tmp_path: Path) -> None:
    document = tmp_path / "scaling.md"
    document.write_text(cluster_local.DOCUMENTS[1].read_text(encoding="utf-8"), encoding="utf-8")
    found = {
        "pictures": 8,
        "steps": 20,
        "edge": 256,
        "workers": 2,
        "threads": {"one process": 2, "each worker": 1},
        "first_run_with_start_seconds": 40.2,
        "one_process_seconds": [3.0, 2.0, 2.5],
        "cluster_seconds": [2.0, 1.5, 1.6],
        "ratio": {"median": 1.5, "least": 1.333, "most": 1.563},
    }
    cluster_local.write_sentence(document, cluster_local.sentence(found))
    said = cluster_local.within(document.read_text(encoding="utf-8"))
    assert "8 pictures of 256x256 in 20 steps by the embedded Flux, 3 rounds in turns" in said
    assert (
        "with 1 thread(s) a worker is 1.50x as fast (1.33 to 1.56) as one process with 2: 1.6 s instead of 2.5 s"
        in said
    )
    cluster_local.write_sentence(document, cluster_local.sentence(two_workers()))
    assert document.read_text(encoding="utf-8") == cluster_local.DOCUMENTS[1].read_text(encoding="utf-8")


def test_the_target_is_met() -> None:
    """A fact of the data file, not of the machine that runs this."""
    assert FOUND["workers"] == 200
    assert PACED["overhead_ms_per_job"] <= 20
    assert RECOVERY["ended_once"] == RECOVERY["jobs"]

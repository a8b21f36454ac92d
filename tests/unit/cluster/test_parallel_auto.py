"""What "auto" finds in two real processes is remembered: the next ones need no trial. How long steps take is played."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastdiffusers import cli
from fastdiffusers.cluster import parcel
from fastdiffusers.cluster.batch import BATCH
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.optimizations.tuning.store import default_store
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

pytestmark = pytest.mark.alone

REQUEST = SampleRequest("a fox", steps=12, width=64, height=64, seed=7)

MEMBER = """
import json, sys
from pathlib import Path

import torch
from fastdiffusers.cluster.parallel.group import Group
from fastdiffusers.cluster.parallel.making import Maker
from fastdiffusers.cluster.parallel.probation import Probation
from fastdiffusers.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()
torch.set_num_threads(1)
rank, seconds, *folders = int(sys.argv[1]), float(sys.argv[2]), *map(Path, sys.argv[3:])
measured = Probation.on_step
Probation.on_step = lambda self, _, split, counts=True: measured(self, seconds if split else 1.0, split, counts)
maker = Maker(Group(folders[0], rank, 2, cards=False), "auto")
records = []
for folder in folders:
    result = maker.make(folder, lambda progress: None, lambda: False, previews=False)
    records.append(result.report["parallel"])
print(json.dumps([(record.applied, record.reason) for record in records]), flush=True)
"""


def made(root: Path, seconds: float, *requests: SampleRequest) -> list[tuple[str, str]]:
    """How two new processes made each, and why so; a step takes 1 s in one of them, and so long in both."""
    handle = PipelineHandle(resolve("tiny:sd3", device="cpu", dtype="float32"))
    folders = [root / str(number) for number in range(len(requests))]
    for folder, request in zip(folders, requests, strict=True):
        folder.mkdir(parents=True)
        parcel.write(folder / BATCH, (handle, request, OptimizationSettings.plain(), ""))
    start = lambda rank: subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(rank), str(seconds), *map(str, folders)], stdout=subprocess.PIPE, text=True
    )
    pair = [start(0), start(1)]
    try:
        said: Any = [json.loads(each.communicate(timeout=900)[0].splitlines()[-1]) for each in pair]
    finally:
        for each in pair:
            each.kill()
    assert [applied for applied, _ in said[0]] == [applied for applied, _ in said[1]]
    return [(applied, reason) for applied, reason in said[0]]


@pytest.mark.parametrize(
    ("seconds", "verdict", "first", "then"),
    [
        (0.6, "faster", "cfg over 2 processes, 8 of 12 calls", "cfg over 2 processes"),
        (1.5, "slower", "cfg over 2 processes, 4 of 12 calls", "off"),
    ],
)
def test_the_second_run_on_a_machine_needs_no_trial(
    seconds: float, verdict: str, first: str, then: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((applied, reason),) = made(tmp_path / "first", seconds, REQUEST)
    figures = f"1 s a step on one card, {seconds:g} s on all"
    assert applied == first
    assert reason.startswith(f"{verdict}: {figures}; a split call was ")
    (row,) = default_store().rows()
    assert (row.verdict, row.source, row.settings) == (
        *(verdict, "probation"),
        (("parallel", "cfg over 2 processes, guided"),),
    )
    assert row.gain == pytest.approx(1 - seconds)

    # Another kind of run is not known: without guidance there is but one call, which is not split.
    (applied, reason), other = made(tmp_path / "second", seconds, REQUEST, replace(REQUEST, guidance=1.0))
    assert applied == then
    assert reason.startswith(f"{verdict} on {row.when[:10]}: {figures}")
    assert other[0] == "off"
    assert "on " + row.when[:10] not in other[1]
    assert default_store().rows() == [row]

    assert cli.main(["bench", "--show"]) == 0
    shown = capsys.readouterr().out
    assert f"parallel cfg over 2 processes, guided: {verdict} {seconds - 1:+.0%} time" in shown
    assert f"(probation, {row.when[:10]}): {figures}" in shown

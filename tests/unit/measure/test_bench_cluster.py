"""`bench --cluster`: one worker of each kind of machine measures; the workers are played, what they measure is real."""

from __future__ import annotations

import csv
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cluster"))

from test_drive import PlayedFleet

from fastdiffusers import cli
from fastdiffusers.callbacks import SILENT
from fastdiffusers.cluster.connection import ClusterError
from fastdiffusers.cluster.each import ask_each, gather
from fastdiffusers.commands.comparing import machines
from fastdiffusers.commands.comparing.machines import ComparingWork, folder_name, keep
from fastdiffusers.optimizations.tuning.store import Store, default_store

KINDS = {"w1": "Card A, 24 GiB", "w2": "Card B, 80 GiB", "w3": "Card A, 24 GiB"}
SMALL = ["--steps", "2", "--width", "32", "--height", "32", "--compare", "math", "--runs", "1"]


def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Any, *more: str) -> int:
    @contextmanager
    def connected(settings: Any) -> Any:
        assert settings.address == "h:1"
        yield None

    monkeypatch.setattr(machines, "connected", connected)
    monkeypatch.setattr(machines, "RayFleet", lambda *_: PlayedFleet(3, script))
    words = ["bench", "--model", "tiny:flux", "--output", str(tmp_path / "out"), "--cluster", "h:1"]
    return cli.main([*words, *SMALL, *more])


def test_each_kind_is_measured_once_with_a_table_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ComparingWork()
    measuring: list[str] = []

    def script(worker: str, args: Any) -> list[tuple[Any, ...]]:
        if args is None:
            kind, _ = work(None, SILENT, {})
            assert "threads" in kind
            return [("done", KINDS[worker], 0.1, 0.0)]
        measuring.append(worker)
        result, _ = work(args, SILENT, {})
        return [("done", result, 1.0, 0.0)]

    assert bench(tmp_path, monkeypatch, script) == 0
    assert sorted(measuring) == ["w1", "w2"]
    printed = capsys.readouterr().out
    for kind in set(KINDS.values()):
        assert kind in printed
        folder = tmp_path / "out" / folder_name(kind)
        assert sorted(path.name for path in folder.iterdir()) == [
            "chart.png",
            "report.md",
            "results.csv",
            "results.json",
        ]
        names = [row[0] for row in csv.reader((folder / "results.csv").open(encoding="utf-8"))]
        assert names[1:] == ["plain", "math"]
    assert {row.settings for row in default_store().rows()} >= {()}


def test_a_kind_that_fails_is_said_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ComparingWork()

    def script(worker: str, args: Any) -> list[tuple[Any, ...]]:
        if worker == "w3":
            return [("lost", "killed")]
        if args is None:
            return [("done", KINDS[worker], 0.1, 0.0)]
        if worker == "w2":
            return [("failed", "item", "OutOfMemoryError: 80 GiB")]
        return [("done", work(args, SILENT, {})[0], 1.0, 0.0)]

    assert bench(tmp_path, monkeypatch, script, "--no-store", "--quiet") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "w3 could not be asked: killed"
    assert said[1].endswith("1 of 2 kinds were not measured: Card B, 80 GiB (w2): OutOfMemoryError: 80 GiB")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["card_a_24_gib"]
    assert default_store().rows() == []


def test_a_cluster_without_workers_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = PlayedFleet(2, lambda *_: [], joins=0)
    with pytest.raises(ClusterError, match=r"2 workers could not start within 0\.01 s: each worker takes"):
        gather(fleet, 0.01, lambda: False)
    assert fleet.members == []


def test_a_worker_that_is_late_is_left_out() -> None:
    fleet = PlayedFleet(2, lambda *_: [], joins=1)
    (note,) = gather(fleet, 0.2, lambda: False)
    assert note.startswith("1 workers could not start")
    assert [member.name for member in fleet.members] == ["w1"]


def test_stopping_reaches_everyone_who_works() -> None:
    fleet = PlayedFleet(2, lambda *_: [("tick", None)] * 10**6)
    gather(fleet, 10, lambda: False)
    stop = threading.Event()
    said = []
    for member, event in ask_each(fleet, dict.fromkeys(fleet.members, "work"), stop.is_set):
        said.append((member.name, event[0]))
        stop.set()
    assert sorted(fleet.stopped) == ["w1", "w2"]
    assert {("w1", "stopped"), ("w2", "stopped")} <= set(said)


def test_what_is_known_already_is_not_written_again(tmp_path: Path) -> None:
    from fastdiffusers.optimizations.tuning.key import TuningKey
    from fastdiffusers.optimizations.tuning.store import Row

    rows = [Row(TuningKey(*("x" for _ in range(7))), (), "plain")]
    store = Store(tmp_path / "measurements.jsonl")
    assert keep(rows, store) == 1
    assert keep(rows, store) == 0
    assert store.rows() == rows

"""The driver and what it makes of workers that end, refuse, or never come; the workers are played."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fastdiffusers import cli
from fastdiffusers.callbacks import SILENT, Progress
from fastdiffusers.cluster import events
from fastdiffusers.cluster.connection import ClusterError
from fastdiffusers.cluster.drive import drive
from fastdiffusers.cluster.schedule import Job
from fastdiffusers.commands.prompts import remote


@dataclass(eq=False)
class Played:
    """A worker that says what its script has for it."""

    name: str
    since: float
    hello: object = None
    payload: Any = None
    model: Any = None
    waiting: list[tuple[Any, ...]] = field(default_factory=list)


class PlayedFleet:
    """Workers that join at once; `script(worker, payload)` gives what one says of its job."""

    def __init__(self, wanted: int, script: Callable[[str, Any], list[tuple[Any, ...]]], joins: int = 10**6) -> None:
        self.wanted, self.script, self.joins = wanted, script, joins
        self.members: list[Played] = []
        self.stopped: list[str] = []
        self.count = 0

    def close(self) -> None: ...

    def start(self) -> None:
        for _ in range(self.wanted):
            self.add()

    def add(self) -> None:
        self.count += 1
        member = Played(f"w{self.count}", time.monotonic(), hello="asked")
        member.waiting = [("joined",)] if self.count <= self.joins else []
        self.members.append(member)

    def idle(self) -> list[Played]:
        return [member for member in self.members if member.hello is None and member.payload is None]

    def submit(self, member: Played, payload: Any) -> None:
        member.payload = payload
        member.waiting = list(self.script(member.name, payload))

    def stop(self, member: Played) -> None:
        self.stopped.append(member.name)
        member.waiting = [("stopped",)]

    def poll(self, seconds: float) -> Iterator[tuple[Played, tuple[Any, ...]]]:
        for member in list(self.members):
            if member.waiting:
                event = member.waiting.pop(0)
                if event[0] == "joined":
                    member.hello = None
                elif event[0] == "lost":
                    self.members.remove(member)
                elif event[0] != "tick":
                    member.payload = None
                yield member, event
        time.sleep(0.001)

    def remove(self, member: Played) -> None:
        self.members.remove(member)

    def missing(self) -> str:
        return "each worker takes 1 card(s); of 1, 0 are free"


def jobs(models: str) -> list[Job]:
    return [Job(number, model, number) for number, model in enumerate(models)]


def done(result: Any = "made") -> list[tuple[Any, ...]]:
    return [("tick", Progress("denoise", 1, 2)), ("done", result, 1.0, 0.0)]


def ends(happened: list[events.Event]) -> dict[int, str]:
    """What became of every job; each ends once."""
    found: dict[int, str] = {}
    for event in happened:
        if isinstance(event, events.Finished | events.Failed):
            assert event.job.number not in found
            found[event.job.number] = event.kind if isinstance(event, events.Failed) else "done"
    return found


def never() -> bool:
    return False


def test_every_job_is_made_once() -> None:
    happened = list(drive(PlayedFleet(3, lambda *_: done()), jobs("abcabcabc"), never, 60))
    assert ends(happened) == dict.fromkeys(range(9), "done")
    assert sum(isinstance(event, events.Ticked) for event in happened) == 9


def test_whoever_has_the_model_takes_its_job_before_all_others() -> None:
    fleet = PlayedFleet(2, lambda *_: done())
    assert ends(list(drive(fleet, jobs("ab"), never, 60))) == dict.fromkeys(range(2), "done")
    warm = {member.model: member.name for member in fleet.members}
    fleet.wanted = 0
    for model in "ab":
        (started, *_) = (each for each in drive(fleet, jobs(model), never, 60) if isinstance(each, events.Started))
        assert started.worker == warm[model]


def test_a_worker_that_ends_is_replaced_and_its_job_made_elsewhere() -> None:
    attempts: list[tuple[str, int]] = []

    def script(worker: str, number: int) -> list[tuple[Any, ...]]:
        attempts.append((worker, number))
        return [("lost", "killed")] if (worker, number) == ("w1", 0) else done()

    fleet = PlayedFleet(1, script)
    happened = list(drive(fleet, jobs("aa"), never, 60))
    assert ends(happened) == {0: "done", 1: "done"}
    assert attempts == [("w1", 0), ("w2", 0), ("w2", 1)]
    assert [event.reason for event in happened if isinstance(event, events.Lost)] == ["killed"]


def test_a_job_that_ends_three_workers_is_given_up_and_the_others_are_made() -> None:
    script = lambda worker, number: [("lost", "out of memory")] if number == 1 else done()
    happened = list(drive(PlayedFleet(2, script), jobs("aaaa"), never, 60))
    assert ends(happened) == {0: "done", 1: "worker", 2: "done", 3: "done"}
    (failed,) = (event for event in happened if isinstance(event, events.Failed))
    assert failed.text == "it has ended 3 workers, the last one because: out of memory"


def test_a_model_that_one_worker_cannot_read_is_made_by_another() -> None:
    script = lambda worker, number: [("failed", "model", "gone")] if worker == "w1" and number < 2 else done()
    happened = list(drive(PlayedFleet(2, script), jobs("aab"), never, 60))
    assert ends(happened) == {0: "done", 1: "done", 2: "done"}


def test_a_model_that_nobody_can_read_fails_and_the_others_are_made() -> None:
    script = lambda worker, number: [("failed", "model", "gone")] if number < 2 else done()
    happened = list(drive(PlayedFleet(2, script), jobs("aab"), never, 60))
    assert ends(happened) == {0: "model", 1: "model", 2: "done"}


def test_a_bad_item_is_not_tried_again() -> None:
    attempts: list[int] = []

    def script(worker: str, number: int) -> list[tuple[Any, ...]]:
        attempts.append(number)
        return [("failed", "item", "no")] if number == 0 else done()

    assert ends(list(drive(PlayedFleet(1, script), jobs("aa"), never, 60))) == {0: "item", 1: "done"}
    assert attempts == [0, 1]


def test_no_free_card_ends_in_one_line_and_fewer_cards_do_not() -> None:
    with pytest.raises(ClusterError, match=r"no worker could start within 0.1 s: each worker takes 1 card\(s\)"):
        list(drive(PlayedFleet(2, lambda *_: done(), joins=0), jobs("a"), never, 0.1))

    def slow(worker: str, number: int) -> list[tuple[Any, ...]]:
        return [("tick", Progress("denoise", step, 200)) for step in range(200)] + done()

    happened = list(drive(PlayedFleet(2, slow, joins=1), jobs("aaa"), never, 0.1))
    assert ends(happened) == dict.fromkeys(range(3), "done")
    assert any(isinstance(event, events.Noted) and "1 workers less" in event.text for event in happened)


def test_workers_that_end_before_they_are_there_end_the_run() -> None:
    class Hopeless(PlayedFleet):
        def add(self) -> None:
            super().add()
            self.members[-1].waiting = [("lost", "No module named 'fastdiffusers'")]

    fleet = Hopeless(1, lambda *_: done())
    with pytest.raises(ClusterError, match="all workers have ended, the last one because: No module named"):
        list(drive(fleet, jobs("a"), never, 60))
    assert fleet.count == 3


def test_stopping_cancels_what_runs_and_takes_nothing_more() -> None:
    asked: list[bool] = []
    taken: list[int] = []

    def script(worker: str, number: int) -> list[tuple[Any, ...]]:
        taken.append(number)
        return [("tick", Progress("denoise", step, 10**6)) for step in range(1000)]

    fleet = PlayedFleet(2, script)
    happened = drive(fleet, jobs("aaaa"), lambda: bool(asked), 60)
    with pytest.raises(KeyboardInterrupt):
        asked.extend(True for event in happened if isinstance(event, events.Ticked))
    assert taken == [0, 1]
    assert fleet.stopped == ["w1", "w2"]


def spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[..., list[tuple[Any, ...]]]) -> int:
    """`generate --cluster` with played workers."""

    class Connected:
        def __init__(self, *settings: object) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(remote, "connected", Connected)
    monkeypatch.setattr(remote, "RayFleet", lambda *_: PlayedFleet(2, script))
    (tmp_path / "p.txt").write_text("a fox\na cat\na dog\n")
    words = ["generate", "--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "out"), "--resume", "--quiet"]
    options = ["--model", "tiny:flux", "--width", "64", "--height", "64", "--steps", "1", "--torch-compile", "off"]
    return cli.main([*words, *options, "--device", "cpu", "--dtype", "float32", "--cluster", "local:2"])


def entries(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]


def test_what_another_machine_has_made_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = remote.RemoteWork()

    def far_away(worker: str, parcel: Any) -> list[tuple[Any, ...]]:
        result, loading = work(remote.Parcel(parcel.item, Path("/not/here/1"), parcel.mark), SILENT, {"worker": worker})
        assert sorted(result[1]) == sorted(result[0].files)
        return [("done", result, 1.0, loading)]

    def near(worker: str, parcel: Any) -> list[tuple[Any, ...]]:
        result, loading = work(parcel, SILENT, {"worker": worker})
        assert result[1] == {}
        return [("done", result, 1.0, loading)]

    for name, script in (("far", far_away), ("near", near)):
        (tmp_path / name).mkdir()
        assert spread(tmp_path / name, monkeypatch, script) == 0
    for number in (1, 2, 3):
        near_file, far_file = (tmp_path / name / "out" / f"0000{number}.png" for name in ("near", "far"))
        assert near_file.read_bytes() == far_file.read_bytes()
    report = json.loads((tmp_path / "far" / "out" / "00001.json").read_text())
    assert report["facts"]["worker"] in ("w1", "w2")


def test_a_full_disk_at_a_worker_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = lambda worker, parcel: [("failed", "disk", "OSError: No space left on device")]
    assert spread(tmp_path, monkeypatch, script) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the disk is full. Free some space and run again with --resume" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.jsonl"]


def test_an_item_that_fails_at_a_worker_is_reported_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = remote.RemoteWork()

    def script(worker: str, parcel: Any) -> list[tuple[Any, ...]]:
        if parcel.item.number == 2:
            return [("lost", "killed")]
        result, loading = work(parcel, SILENT, {"worker": worker})
        return [("done", result, 1.0, loading)]

    assert spread(tmp_path, monkeypatch, script) == 1
    assert "1 of 3 items failed 00002 (p.txt line 2): it has ended 3 workers" in capsys.readouterr().err
    assert sorted((entry["name"], entry["state"]) for entry in entries(tmp_path)) == [
        ("00001", "done"),
        ("00002", "failed"),
        ("00003", "done"),
    ]
    made: list[int] = []

    def whole(worker: str, parcel: Any) -> list[tuple[Any, ...]]:
        made.append(parcel.item.number)
        result, loading = work(parcel, SILENT, {"worker": worker})
        return [("done", result, 1.0, loading)]

    assert spread(tmp_path, monkeypatch, whole) == 0
    assert made == [2]

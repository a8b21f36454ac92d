"""A real Ray on this machine: what comes of two workers is what one process makes, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import prompt_runs
import pytest

sys.path.append(str(Path(__file__).parent))

from processes import MARK, commands, marked, wait_for
from prompt_runs import entries, generate

from fastdiffusers import cli
from fastdiffusers.callbacks import Progress
from fastdiffusers.cluster.fleet import RayFleet
from fastdiffusers.commands.prompts import remote
from fastdiffusers.commands.prompts.progress import QueueProgress

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

OPTIONS = ["--width", "64", "--height", "64", "--dtype", "float32", "--torch-compile", "off", "--quiet"]
MODELS = ("tiny:flux-random", "tiny:sd3")


class KeptFleet(RayFleet):
    """Its workers stay for the next test, as long as they live: starting them takes long."""

    def close(self) -> None:
        for member in [each for each in self.members if not each.idle]:
            self.remove(member)


@pytest.fixture(scope="module")
def cluster() -> Iterator[SimpleNamespace]:
    """A Ray with two processors at an address of this machine, and its fleet of two workers."""
    import ray
    from ray.cluster_utils import Cluster

    from fastdiffusers.cluster.settings import parse_cluster

    os.environ[MARK] = f"head-{os.getpid()}"
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=started.address, log_to_driver=False, configure_logging=False, namespace="fastdiffusers")
        fleet = KeptFleet(ray, parse_cluster(started.address, cpus=1), remote.RemoteWork)
        yield SimpleNamespace(address=started.address, ray=ray, started=started, fleet=fleet)
        for member in list(fleet.members):
            fleet.remove(member)
    finally:
        ray.shutdown()
        started.shutdown()
        mark = os.environ.pop(MARK)
    wait_for(lambda: marked(mark) == [], "the end of Ray", lambda: commands(marked(mark)))


@pytest.fixture
def spread(cluster: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`generate --prompts --cluster` with the kept workers."""
    monkeypatch.setattr(remote, "RayFleet", lambda *_: cluster.fleet)
    return lambda prompts, output, *more: run(prompts, output, "--cluster", cluster.address, "--cpus", "1", *more)


def run(prompts: Path, output: Path, *more: str) -> int:
    return generate(prompts, output, *OPTIONS, *more)


def written(path: Path, count: int, steps: int = 2, long: int = 0) -> Path:
    """Prompts that take turns with the two models; the one with number `long` takes many steps."""
    lines = [
        {"prompt": f"picture {n}", "model": MODELS[n % 2], "seed": n, "steps": 600 if n + 1 == long else steps}
        for n in range(count)
    ]
    return prompt_runs.written(path, lines)


def has_line(path: Path) -> bool:
    return path.is_file() and b"\n" in path.read_bytes()


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[str], None]], list[str]]:
    """Does something once when an item is at its steps; gives the workers that it was done at."""

    def watch(name: str, act: Callable[[str], None]) -> list[str]:
        acted: list[str] = []

        def working(self: object, worker: str, item: str, progress: Progress | None) -> None:
            if item == name and not acted and progress is not None and progress.stage == "denoise":
                acted.append(worker)
                act(worker)

        monkeypatch.setattr(QueueProgress, "working", working)
        return acted

    return watch


def test_two_workers_make_what_one_process_makes(tmp_path: Path, spread: Callable[..., int]) -> None:
    prompts = written(tmp_path / "p.jsonl", 12)
    assert spread(prompts, tmp_path / "many") == 0
    assert run(prompts, tmp_path / "one") == 0
    assert len(pictures(tmp_path / "one")) == 12
    assert pictures(tmp_path / "many") == pictures(tmp_path / "one")
    made = entries(tmp_path / "many")
    assert sorted(entry["item"] for entry in made) == list(range(1, 13))
    loads = [(entry["worker"], entry["item"] % 2) for entry in made if "load" in entry["seconds"]]
    assert len(loads) == len(set(loads)), "at most one load per model and worker"
    assert len({entry["worker"] for entry in made}) == 2
    for entry in made:
        facts = json.loads((tmp_path / "many" / f"{entry['name']}.json").read_text())["facts"]
        assert facts["worker"] == entry["worker"]
        assert facts["threads"] == 1
    assert hidden(tmp_path / "many") == []


def test_clips_are_decoded_where_they_are_made(tmp_path: Path, spread: Callable[..., int]) -> None:
    lines = [
        {"prompt": f"clip {n}", "model": "tiny:wan21-t2v", "seed": n, "steps": 2, "num_frames": 5} for n in range(4)
    ]
    prompts = prompt_runs.written(tmp_path / "p.jsonl", lines)
    assert spread(prompts, tmp_path / "many") == 0
    assert run(prompts, tmp_path / "one") == 0
    clips = lambda folder: {path.name: path.read_bytes() for path in folder.glob("*.mp4")}
    assert len(clips(tmp_path / "one")) == 4
    assert clips(tmp_path / "many") == clips(tmp_path / "one")
    for entry in entries(tmp_path / "many"):
        assert entry["seconds"]["decode"] > 0, "the worker has decoded"
        facts = json.loads((tmp_path / "many" / f"{entry['name']}.json").read_text())["facts"]
        assert facts["worker"] == entry["worker"]
    assert hidden(tmp_path / "many") == []


def test_cancelling_stops_within_a_step_and_keeps_what_is_loaded(
    tmp_path: Path,
    cluster: SimpleNamespace,
    spread: Callable[..., int],
    at_step: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = written(tmp_path / "p.jsonl", 4, long=3)
    acted = at_step("00003", lambda worker: signal.raise_signal(signal.SIGINT))
    assert spread(prompts, tmp_path / "many") == 130
    assert "--resume does the rest" in capsys.readouterr().err
    assert "00003.png" not in pictures(tmp_path / "many")
    assert hidden(tmp_path / "many") == []
    before = len(entries(tmp_path / "many"))
    workers = {member.name for member in cluster.fleet.members}
    assert workers >= set(acted), "the cancelled process is still there"
    assert spread(prompts, tmp_path / "many", "--resume") == 0
    after = entries(tmp_path / "many")
    assert sorted(entry["item"] for entry in after) == [1, 2, 3, 4]
    (again,) = (entry for entry in after[before:] if entry["item"] == 3)
    assert again["worker"] in workers, "no process was started anew"
    assert "load" not in again["seconds"], "the model is still there"
    assert run(prompts, tmp_path / "one") == 0
    assert pictures(tmp_path / "many") == pictures(tmp_path / "one")


def test_a_killed_worker_loses_nothing(
    tmp_path: Path, spread: Callable[..., int], at_step: Callable[..., list[str]]
) -> None:
    prompts = written(tmp_path / "p.jsonl", 6, long=3)
    killed = at_step("00003", lambda worker: os.kill(int(worker.rpartition("/")[2]), signal.SIGKILL))
    assert spread(prompts, tmp_path / "many") == 0
    made = {entry["item"]: entry for entry in entries(tmp_path / "many")}
    assert len(entries(tmp_path / "many")) == 6
    assert len(killed) == 1
    assert made[3]["attempt"] == 2
    assert made[3]["worker"] not in killed
    assert run(prompts, tmp_path / "one") == 0
    assert pictures(tmp_path / "many") == pictures(tmp_path / "one")
    assert hidden(tmp_path / "many") == []


def test_a_lost_node_loses_nothing(
    tmp_path: Path, cluster: SimpleNamespace, spread: Callable[..., int], at_step: Callable[..., list[str]]
) -> None:
    node = cluster.started.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    before = {member.name for member in cluster.fleet.members}
    cluster.fleet.add()
    wait_for(
        lambda: bool(list(cluster.fleet.poll(0.1))) or all(m.hello is None for m in cluster.fleet.members),
        "a worker on the other node",
        lambda: cluster.fleet.missing(),
    )
    (elsewhere,) = {member.name for member in cluster.fleet.members} - before
    prompts = written(tmp_path / "p.jsonl", 6, steps=300)
    process = int(elsewhere.rpartition("/")[2])
    lost: list[int] = []

    def watch(self: QueueProgress, worker: str, item: str, progress: Progress | None) -> None:
        if not lost and worker == elsewhere and progress is not None and progress.stage == "denoise":
            lost.append(int(item))
            # Nothing more is heard of a machine that is gone: neither a result nor that its connection ends.
            os.kill(process, signal.SIGSTOP)
            cluster.started.remove_node(node, allow_graceful=False)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(QueueProgress, "working", watch)
            assert spread(prompts, tmp_path / "many") == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    made = entries(tmp_path / "many")
    assert sorted(entry["item"] for entry in made) == list(range(1, 7))
    assert len(lost) == 1, "the other node was given none"
    assert {entry["item"]: entry["attempt"] for entry in made} == {n: 1 + (n in lost) for n in range(1, 7)}
    assert [entry["worker"] for entry in made if entry["item"] in lost] != [elsewhere]


def test_doctor_lists_machines_and_missing_models(
    tmp_path: Path, cluster: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    missing = tmp_path / "flux"
    words = ["doctor", "--cluster", cluster.address, "--look-for", str(tmp_path), "--look-for", str(missing)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    assert "0 card(s), 2 processor core(s)" in said
    assert f"{missing} is missing on" in said
    assert f"{tmp_path} is missing" not in said


def test_no_free_processor_is_one_line(
    tmp_path: Path, cluster: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = written(tmp_path / "p.jsonl", 1)
    wait = ["--cluster-wait", "1"]
    assert run(prompts, tmp_path / "out", "--cluster", cluster.address, "--cpus", "64", *wait) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no worker could start within 1 s: each worker takes 64 processor core(s)" in line


def test_a_killed_driver_leaves_no_process_and_is_resumed(tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.jsonl", 3, long=2)
    mark = f"driver-{os.getpid()}"
    options = [each for each in OPTIONS if each != "--quiet"]
    command = [sys.executable, "-m", "fastdiffusers", "generate", "--prompts", str(prompts), *options]
    said = tmp_path / "said.txt"
    with said.open("w") as stream:
        driver = subprocess.Popen(
            [*command, "--output", str(tmp_path / "out"), "--cluster", "local:1", "--cluster-wait", "600"],
            env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
            stderr=stream,
        )
    try:
        wait_for(
            lambda: driver.poll() is not None or has_line(tmp_path / "out" / "manifest.jsonl"),
            "the first picture",
            lambda: f"{said.read_text()}\n{commands(marked(mark))}",
            600,
        )
        assert driver.poll() is None, said.read_text()
        (worker,) = {entry["worker"] for entry in entries(tmp_path / "out")}
        assert int(worker.rpartition("/")[2]) in marked(mark)
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: marked(mark) == [], "the end of the worker and of Ray", lambda: commands(marked(mark)))
    before = pictures(tmp_path / "out")
    assert run(prompts, tmp_path / "out", "--resume") == 0
    assert sorted(entry["item"] for entry in entries(tmp_path / "out")) == [1, 2, 3]
    after = pictures(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert hidden(tmp_path / "out") == []

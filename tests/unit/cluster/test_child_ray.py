"""A batch of ComfyUI's on a real Ray: equal to single runs, cancelled, and whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from at_step import AtStep, Cancelled
from processes import MARK, commands, has_ended, marked, named, nothing_left, wait_for

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.cluster.child import client
from fastdiffusers.cluster.child.process import DriverProcess
from fastdiffusers.cluster.connection import ClusterError
from fastdiffusers.cluster.settings import ClusterSettings, parse_cluster
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

PLAIN = OptimizationSettings.plain()
CLUSTER = parse_cluster("local:2", cpus=1, patience=600)
ONE = parse_cluster("local:1", cpus=1, patience=600)
"""With a single worker, where all of it is ended and started anew: each worker takes long to start."""
REQUEST = SampleRequest("a fox", steps=2, width=64, height=64, seed=7, batch=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the drivers have their files. Afterwards none is left, nor any process that they have started."""
    made = tmp_path_factory.mktemp("temporary")
    with nothing_left(f"child-{os.getpid()}", made, lambda: client.end(wait=True)):
        yield made


@pytest.fixture(scope="module")
def handle() -> PipelineHandle:
    return PipelineHandle(resolve("tiny:flux-random", device="cpu", dtype="float32"))


@pytest.fixture
def spread(folder: Path, handle: PipelineHandle) -> Callable[..., SampleResult]:
    """Makes the request on the cluster; what the driver wrote last is printed."""

    def make(callbacks: Callbacks | None = None, cluster: ClusterSettings = CLUSTER, **changes: Any) -> SampleResult:
        try:
            request = replace(REQUEST, **changes)
            return client.generate_on(cluster, handle, request, PLAIN, callbacks or Callbacks(), folder)
        finally:
            print(client.running() and client.running().last_words())  # type: ignore[union-attr]

    return make


def driver() -> DriverProcess:
    found = client.running()
    assert found is not None
    return found


def workers(result: SampleResult) -> dict[str, list[int]]:
    """The seeds that each worker has made, by "HOST/PID"."""
    found: dict[str, list[int]] = result.report.facts["seeds by worker"]
    return found


def process_of(worker: str) -> int:
    return int(worker.rpartition("/")[2])


def equals_single_runs(result: SampleResult, handle: PipelineHandle) -> bool:
    """Whether each item is, bit for bit, what a run of its own makes here."""
    assert result.frames is not None
    assert result.latent is not None
    same = []
    for index, seed in enumerate(result.seeds):
        alone = generate(handle, replace(REQUEST, batch=1, seed=seed), PLAIN)
        assert alone.frames is not None
        assert alone.latent is not None
        same.append(torch.equal(alone.frames[0], result.frames[index]))
        same.append(torch.equal(alone.latent[0], result.latent[index]))
    return all(same)


def test_a_batch_equals_single_runs_with_its_seeds(spread: Callable[..., Any], handle: PipelineHandle) -> None:
    watch = AtStep(10**6)
    result = spread(watch.callbacks)
    assert result.seeds == (7, 8, 9)
    assert sorted(seed for seeds in workers(result).values() for seed in seeds) == [7, 8, 9]
    assert equals_single_runs(result, handle)
    assert any(progress.preview_latent is not None for progress in watch.seen)
    assert max(progress.done for progress in watch.seen) == 6
    # The next one finds process and model there.
    before = driver().process.pid
    again = spread(seed=20)
    assert driver().process.pid == before
    assert set(workers(again)) <= set(named_workers())
    assert equals_single_runs(again, handle)
    assert list(driver().folder.glob("run_*")) == []


def named_workers() -> dict[str, int]:
    """The workers that live, as reports name them."""
    import socket

    return {f"{socket.gethostname()}/{each}": each for each in named(marked(os.environ[MARK]), "ray::Worker")}


def test_cancel_reaches_the_workers_and_leaves_them_warm(spread: Callable[..., Any], handle: PipelineHandle) -> None:
    warm = spread(seed=30, batch=4)
    before = set(named_workers())
    watch = AtStep(2, cancel=True)
    with pytest.raises(Cancelled):
        spread(watch.callbacks, steps=900, batch=2)
    told = [progress for progress in watch.seen if progress.stage == "denoise"]
    assert told[-1].done < 1800
    result = spread(seed=40, batch=4)
    assert set(named_workers()) == before
    assert set(workers(result)) | set(workers(warm)) <= before
    assert equals_single_runs(result, handle)
    (worker,) = {progress.message.split("; ")[1].split(" ")[0] for progress in told[-1:]}
    assert worker not in result.report.facts["loads by worker"], "what it has loaded is there still"


def test_a_killed_worker_costs_its_image_a_second_attempt(spread: Callable[..., Any], handle: PipelineHandle) -> None:
    killed: list[int] = []

    def kill(message: str) -> None:
        worker = message.split("; ")[1].split(" ")[0]
        killed.append(process_of(worker))
        os.kill(killed[0], signal.SIGKILL)

    result = spread(AtStep(2, kill).callbacks, seed=50, steps=400, batch=3)
    assert len(killed) == 1
    assert killed[0] not in map(process_of, workers(result))
    assert any("has ended while it made image" in note for note in result.report.notes)
    assert any("was made at attempt 2" in note for note in result.report.notes)
    assert result.seeds == (50, 51, 52)
    short = spread(seed=60)
    assert equals_single_runs(short, handle)


def test_a_killed_driver_is_one_line_and_the_next_run_works(spread: Callable[..., Any], handle: PipelineHandle) -> None:
    spread()
    ended = driver()
    before = marked(os.environ[MARK])
    with pytest.raises(ClusterError) as caught:
        spread(AtStep(1, lambda message: ended.process.kill()).callbacks, steps=900)
    assert str(caught.value) == (
        "the driver of cluster local:2 has ended: it was ended by signal 9. Run again: it is started anew"
    )
    result = spread(seed=70, cluster=ONE)
    assert equals_single_runs(result, handle)
    assert driver() is not ended
    left = lambda: sorted(set(before) & set(marked(os.environ[MARK])))
    wait_for(lambda: left() == [], "the end of what the killed driver had started", lambda: commands(left()))


@pytest.mark.parametrize("part", ["gcs_server", "raylet/raylet"])
def test_a_killed_head_is_at_most_one_line_and_the_next_run_works(
    part: str, spread: Callable[..., Any], handle: PipelineHandle
) -> None:
    """In the middle of a run, Ray may finish it, or end its driver; between two runs, it is noticed before the next."""
    spread(cluster=ONE)
    before = marked(os.environ[MARK])
    (head, *_) = named(before, part)
    told: list[str] = []
    try:
        spread(AtStep(1, lambda message: os.kill(head, signal.SIGKILL)).callbacks, steps=20, cluster=ONE)
    except ClusterError as error:
        told.append(str(error))
    assert not any("\n" in text for text in told)
    assert equals_single_runs(spread(seed=80, cluster=ONE), handle)
    (head, *_) = named(marked(os.environ[MARK]), part)
    os.kill(head, signal.SIGKILL)
    wait_for(lambda: has_ended(head), "the end of what was killed", lambda: commands([head]))
    assert equals_single_runs(spread(seed=90, cluster=ONE), handle)
    left = lambda: sorted(set(before) & set(marked(os.environ[MARK])))
    wait_for(lambda: left() == [], "the end of what belonged to the head", lambda: commands(left()))


HOST = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.append(sys.argv[2])
from fastdiffusers.torchvision_ops import declare_torchvision_ops
declare_torchvision_ops()
from test_child_ray import ONE, PLAIN, REQUEST, PipelineHandle, client, resolve
from fastdiffusers.callbacks import Callbacks
handle = PipelineHandle(resolve("tiny:flux-random", device="cpu", dtype="float32"))
show = lambda progress: print(progress.stage, progress.done, progress.message, flush=True)
client.generate_on(ONE, handle, replace(REQUEST, steps=900), PLAIN, Callbacks(show), Path(sys.argv[1]))
"""


def test_a_killed_host_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    client.end(wait=True)
    mark = f"host-{os.getpid()}"
    words = [sys.executable, "-c", HOST, str(tmp_path / "temporary"), str(Path(__file__).parent)]
    host = subprocess.Popen(words, env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    said: list[str] = []
    try:
        for line in host.stdout:
            said.append(line)
            if line.startswith("denoise"):
                break
        assert said[-1].startswith("denoise"), said
        there = marked(mark)
        assert named(there, "raylet/raylet")
    finally:
        host.kill()
        host.wait()
    wait_for(lambda: marked(mark) == [], "the end of all processes", lambda: commands(marked(mark)))
    wait_for(lambda: list((tmp_path / "temporary").iterdir()) == [], "the end of its files", lambda: "".join(said))

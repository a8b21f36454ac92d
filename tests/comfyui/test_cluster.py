"""Cluster Settings in a real ComfyUI with a real Ray: the batch, Cancel, and the death of all that is not ComfyUI."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from test_interrupt import TEXT_EVENT, after_steps, cancel_when

if TYPE_CHECKING:
    from comfy_client import Client

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="knows Ray's processes by their names")

TINY = "embedded tiny: flux"
PLAIN = {"torch_compile": "off", "attention": "sdpa", "vae_tiling": "off", "width": 64, "height": 64, "steps": 3}
SECONDS = 900
"""How long a run may take, the start of Ray and of its workers included, where the machine has much else to do."""


def spread(server: Client, workers: int = 2, **widgets: Any) -> dict[str, Any]:
    """A batch of three on so many workers."""
    prompt = server.sampling(TINY, **{**PLAIN, "batch_size": 3, **widgets})
    prompt["cluster"] = server.node("FastDiffusersClusterSettings", address=f"local:{workers}", threads=1, wait=600.0)
    prompt["sample"]["inputs"]["cluster"] = ["cluster", 0]
    return prompt


def below(server: Client) -> list[psutil.Process]:
    """What ComfyUI has started."""
    return psutil.Process(server.server._process.pid).children(recursive=True)


def named(processes: list[psutil.Process], word: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def driver(server: Client) -> psutil.Process:
    (found,) = named(below(server), "fastdiffusers.cluster.child")
    return found


def wrote(server: Client) -> str:
    """What ComfyUI, the driver and Ray have written last."""
    logs = [path.read_text(errors="replace")[-3000:] for path in server.base.glob("temp/**/driver.log")]
    return "\n".join([server.server.log_tail(), *logs, *(str(each) for each in below(server))])


@pytest.fixture
def said(server: Client, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Prints what all of them wrote: pytest shows it where the test fails."""
    yield
    print(wrote(server))


def equals_single_runs(server: Client, entry: dict[str, Any], seeds: list[int]) -> None:
    """Compare pictures and latents of a batch with runs of one seed each, without a cluster."""
    pictures, latents = server.images(entry), server.latent(entry)
    assert len(pictures) == len(latents) == len(seeds)
    for index, seed in enumerate(seeds):
        alone = server.succeed(server.sampling(TINY, **PLAIN, seed=seed), SECONDS)
        assert np.array_equal(pictures[index], server.images(alone)[0]), seed
        assert bool((latents[index] == server.latent(alone)[0]).all()), seed
    assert len({picture.tobytes() for picture in pictures}) == len(seeds)


def wait_until(condition: Callable[[], bool], what: str, server: Client) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came:\n{wrote(server)}"
        time.sleep(0.2)


@pytest.mark.usefixtures("said")
def test_one_picture_is_made_by_two_processes_together(server: Client) -> None:
    prompt = spread(server, seed=70, batch_size=1)
    prompt["cluster"]["inputs"]["parallel"] = "ulysses"
    entry = server.succeed(prompt, SECONDS)
    alone = server.succeed(server.sampling(TINY, **PLAIN, seed=70), SECONDS)
    assert float((server.latent(entry) - server.latent(alone)).abs().max()) <= 1e-5
    (first, *_) = named(below(server), "fastdiffusers.cluster.parallel")
    assert len(named([first, *first.children(recursive=True)], "fastdiffusers.cluster.parallel")) == 2


@pytest.mark.usefixtures("said")
def test_two_processes_make_a_branch_of_guidance_each(server: Client) -> None:
    model, guided = "embedded tiny: sd3", {"guidance": 4.0, "negative_prompt": "grey", "seed": 80}
    prompt = server.sampling(model, **PLAIN, **guided)
    cluster = server.node("FastDiffusersClusterSettings", address="local:2", threads=1, parallel="cfg")
    prompt["cluster"] = cluster
    prompt["sample"]["inputs"]["cluster"] = ["cluster", 0]
    entry = server.succeed(prompt, SECONDS)
    record = next(each for each in server.report(entry)["optimizations"] if each["name"] == "parallel")
    assert (record["requested"], record["applied"]) == ("cfg", "cfg over 2 processes"), record
    alone = server.latent(server.succeed(server.sampling(model, **PLAIN, **guided), SECONDS))
    difference = float((server.latent(entry) - alone).abs().max())
    assert difference <= 1e-5 * max(1.0, float(alone.abs().max()))
    prompt["sample"]["inputs"]["guidance"] = 1.0
    record = next(
        each for each in server.report(server.succeed(prompt, SECONDS))["optimizations"] if each["name"] == "parallel"
    )
    assert (record["applied"], record["reason"]) == ("off", "with guidance = 1 there is no second branch")
    refused = {**prompt, "cluster": server.node(cluster["class_type"], address="local:3", parallel="cfg")}
    with pytest.raises(RuntimeError, match="guidance has two branches"):
        server.run(refused)


@pytest.mark.usefixtures("said")
def test_a_batch_is_spread_and_equals_single_runs(server: Client) -> None:
    entry = server.succeed(spread(server, seed=7), SECONDS)
    assert named(below(server), "fastdiffusers.cluster.parallel") == [], "another cluster takes the place of the last"
    facts = server.report(entry)["facts"]
    assert facts["seeds"] == [7, 8, 9]
    assert facts["cluster"] == "local:2"
    assert sorted(seed for seeds in facts["seeds by worker"].values() for seed in seeds) == [7, 8, 9]
    assert "ray" not in {process.name() for process in named(below(server), "main.py")}
    equals_single_runs(server, entry, [7, 8, 9])
    before = driver(server).pid
    again = server.succeed(spread(server, seed=2**64 - 1), SECONDS)
    assert driver(server).pid == before, "it stays between two runs"
    equals_single_runs(server, again, [2**64 - 1, 0, 1])
    assert list(server.base.glob("temp/fastdiffusers_cluster_*/run_*")) == []


@pytest.mark.usefixtures("said")
def test_cancel_reaches_the_workers_and_leaves_them_warm(server: Client) -> None:
    server.succeed(spread(server, seed=100, batch_size=4), SECONDS)
    workers = {process.pid for process in named(below(server), "ray::Worker")}
    assert len(workers) == 2
    messages = asyncio.run(cancel_when(server, spread(server, seed=7, steps=900), after_steps(4), seconds=SECONDS))
    assert messages[-1]["type"] == "execution_interrupted", messages[-1]["data"].get("exception_message")
    assert messages[-1]["data"]["node_id"] == "sample"
    texts = [m[8:] for m in messages if isinstance(m, bytes) and m[:4] == TEXT_EVENT]
    assert b"cancelled at" in texts[-1]
    (worker,) = re.findall(rb"0 of 3 made; (\S+) makes image", texts[-1])
    entry = server.succeed(spread(server, seed=110, batch_size=4), SECONDS)
    assert {process.pid for process in named(below(server), "ray::Worker")} == workers
    assert worker.decode() not in server.report(entry)["facts"]["loads by worker"]
    equals_single_runs(server, entry, [110, 111, 112, 113])


@pytest.mark.parametrize(
    ("who", "word"), [("worker", "ray::Worker"), ("driver", "cluster.child"), ("head", "gcs_server")]
)
@pytest.mark.usefixtures("said")
def test_comfyui_survives_the_death_of(who: str, word: str, server: Client) -> None:
    seed = {"worker": 200, "driver": 300, "head": 400}[who]
    workers = 1 if who == "head" else 2
    server.succeed(spread(server, workers, seed=seed), SECONDS)
    before = below(server)
    victim = named(before, word)[0].pid

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)

    messages = asyncio.run(
        cancel_when(server, spread(server, workers, seed=seed + 10, steps=60), after_steps(2), kill, seconds=SECONDS)
    )
    last = messages[-1]
    if who == "worker":
        assert last["type"] == "execution_success", last["data"].get("exception_message")
    if who == "driver":
        assert last["type"] == "execution_error"
    if last["type"] == "execution_error":
        assert last["data"]["node_id"] == "sample"
        assert len(last["data"]["exception_message"].strip().splitlines()) == 1, last["data"]["exception_message"]
        assert "Run again" in last["data"]["exception_message"]
    # Where all of it starts anew, one worker is enough: each takes long to start.
    entry = server.succeed(spread(server, 2 if who == "worker" else 1, seed=seed + 20), SECONDS)
    equals_single_runs(server, entry, [seed + 20, seed + 21, seed + 22])
    assert len(named(below(server), "fastdiffusers.cluster.child")) >= 1
    if who != "worker":
        theirs = [process for process in before if process.pid != server.server._process.pid]
        left = lambda: [each for each in named(theirs, "ray") if each.is_running() and each.status() != "zombie"]
        wait_until(lambda: not left(), "the end of what it had started", server)


@pytest.mark.usefixtures("said")
def test_another_cluster_and_what_is_refused(server: Client) -> None:
    refused = spread(server)
    refused["cluster"]["inputs"]["address"] = "somewhere"
    with pytest.raises(RuntimeError, match="it names no cluster"):
        server.run(refused)
    nobody = spread(server)
    nobody["cluster"]["inputs"]["address"] = "127.0.0.1:9"
    message = server.error(server.run(nobody, SECONDS))["exception_message"]
    assert "nothing answers there" in message
    assert len(message.strip().splitlines()) == 1
    too_many = spread(server, steps=1, batch_size=65)
    with pytest.raises(RuntimeError, match="65 bigger than max of 64"):
        server.run(too_many)

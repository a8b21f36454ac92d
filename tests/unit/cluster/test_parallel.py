"""One picture in two real processes: equal to one, cancelled, declined, undone, and whoever is killed meanwhile.

Starting a pair takes longest. So those that use the same pair stand together, and those that end it come last.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from at_step import AtStep, Cancelled
from processes import MARK, commands, has_ended, marked, nothing_left, wait_for

from fastdiffusers import cli
from fastdiffusers.callbacks import SILENT, Callbacks
from fastdiffusers.cluster.child import client
from fastdiffusers.cluster.child.process import DriverProcess
from fastdiffusers.cluster.connection import ClusterError
from fastdiffusers.cluster.parallel.choice import parallel_settings
from fastdiffusers.cluster.parallel.client import generate_together
from fastdiffusers.cluster.parallel.trial import SAME
from fastdiffusers.cluster.settings import ClusterSettings
from fastdiffusers.errors import InputError
from fastdiffusers.fallback import largest_difference
from fastdiffusers.optimizations.settings import OptimizationSettings, TilingSettings
from fastdiffusers.pipelines.generate import decode, generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

PLAIN = OptimizationSettings.plain()
TWO = parallel_settings("ulysses", 2, cpus=1)
BRANCHES = parallel_settings("cfg", 2, cpus=1)
REQUEST = SampleRequest("a fox", steps=2, width=64, height=64, seed=7)
SOON = 30.0
"""Seconds within which the end of a process has to be told, on a machine that has much else to do."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the processes have their files. Afterwards none is left, nor any of the processes."""
    made = tmp_path_factory.mktemp("temporary")
    with nothing_left(f"parallel-{os.getpid()}", made, lambda: client.end(wait=True)):
        yield made


def handle(family: str) -> PipelineHandle:
    return PipelineHandle(resolve(f"tiny:{family}", device="cpu", dtype="float32"))


@pytest.fixture
def together(folder: Path) -> Callable[..., SampleResult]:
    """Makes a request in two processes; what the first wrote last is printed."""

    def make(
        family: str = "flux-random",
        callbacks: Callbacks = SILENT,
        settings: OptimizationSettings = PLAIN,
        cluster: ClusterSettings = TWO,
        **changes: Any,
    ) -> SampleResult:
        chosen, request = handle(family), replace(REQUEST, **changes)
        alone = lambda: generate(chosen, request, settings)
        try:
            return generate_together(cluster, chosen, request, settings, callbacks, folder, alone)
        finally:
            print(client.running() and client.running().last_words())  # type: ignore[union-attr]

    return make


def first() -> DriverProcess:
    found = client.running()
    assert found is not None
    return found


def second() -> int:
    """The process that the first has started."""
    (found,) = (each for each in marked(os.environ[MARK]) if each != first().process.pid)
    return found


def off(result: SampleResult, family: str, **changes: Any) -> float:
    """How far a result is from what this process makes."""
    here = generate(handle(family), replace(REQUEST, **changes), PLAIN)
    assert here.frames is not None
    assert here.latent is not None
    assert result.frames is not None
    assert result.latent is not None
    assert here.seeds == result.seeds
    return max(largest_difference(here.frames, result.frames), largest_difference(here.latent, result.latent))


@pytest.mark.parametrize(
    ("family", "changes", "calls"),
    [
        ("sdxl", {"guidance": 5.0, "negative_prompt": "blurred"}, ""),
        ("sd3", {"batch": 2, "seed": 20}, ""),
        ("zimage", {"guidance": 3.0}, ""),
        # Called twice a step, by two experts in turn: of each expert the first step shows which calls these are.
        ("wan21-t2v", {"num_frames": 5, "steps": 3, "negative_prompt": "blurred and grey"}, ", 4 of 6 calls"),
        ("wan22-t2v", {"num_frames": 5, "steps": 4, "guidance": 4.0}, ", 4 of 8 calls"),
    ],
)
def test_two_processes_make_a_branch_of_guidance_each(
    together: Callable[..., Any], family: str, changes: dict[str, Any], calls: str
) -> None:
    result = together(family, cluster=BRANCHES, **changes)
    record = result.report["parallel"]
    assert (record.requested, record.applied, record.failed) == ("cfg", f"cfg over 2 processes{calls}", False)
    assert "at most 1e-05 is taken" in record.reason
    here = generate(handle(family), replace(REQUEST, **changes), PLAIN)
    largest = max(1.0, float(here.latent.abs().max()))  # type: ignore[union-attr]
    assert largest_difference(here.latent, result.latent) / largest <= SAME  # type: ignore[arg-type]
    assert largest_difference(here.frames, result.frames) <= SAME  # type: ignore[arg-type]
    again = together(family, cluster=BRANCHES, **changes)
    assert again.report.facts["parallel"]["trials"] == 0


def test_a_single_step_of_two_calls_is_made_whole_and_said(together: Callable[..., Any]) -> None:
    result = together("wan21-t2v", cluster=BRANCHES, num_frames=5, steps=1)
    record = result.report["parallel"]
    assert (record.applied, record.failed) == ("off", True)
    assert record.reason.startswith("the first step is made whole, to see which calls are guidance's")
    assert off(result, "wan21-t2v", num_frames=5, steps=1) == 0.0


def test_a_process_killed_with_its_branch_is_one_line_and_the_next_run_works(together: Callable[..., Any]) -> None:
    together("sd3", cluster=BRANCHES)
    pair = [first().process.pid, second()]
    killed_at = 0.0

    def kill(message: str) -> None:
        nonlocal killed_at
        killed_at = time.monotonic()
        os.kill(pair[1], signal.SIGKILL)

    with pytest.raises(ClusterError) as caught:
        together("sd3", AtStep(1, kill).callbacks, cluster=BRANCHES, steps=900)
    assert time.monotonic() - killed_at < SOON
    assert str(caught.value).startswith(f"process 2 of 2 (pid {pair[1]}) that make one picture has ended: it was ended")
    assert "\n" not in str(caught.value)
    wait_for(lambda: all(map(has_ended, pair)), "the end of both", lambda: commands(pair))
    result = together("sd3", cluster=BRANCHES, seed=50)
    assert result.report["parallel"].applied == "cfg over 2 processes"


def test_cancel_while_they_start_is_at_once(together: Callable[..., Any]) -> None:
    client.end(wait=True)
    begun = time.monotonic()

    def cancel() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        together("flux-random", Callbacks(check_cancel=cancel))
    assert time.monotonic() - begun < SOON
    assert off(together(seed=41), "flux-random", seed=41) <= SAME


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("flux-random", {}),
        ("flux-random", {"batch": 2, "seed": 20}),
        ("wan22-t2v", {"num_frames": 5, "guidance": 4.0}),
    ],
)
def test_two_processes_make_what_one_makes(together: Callable[..., Any], family: str, changes: dict[str, Any]) -> None:
    watch = AtStep(10**6)
    result = together(family, watch.callbacks, **changes)
    record = result.report["parallel"]
    assert (record.requested, record.applied, record.failed) == ("ulysses", "ulysses over 2 processes", False)
    assert "at most 1e-05 is taken" in record.reason
    assert result.report.facts["parallel"]["devices"] == ["cpu", "cpu"]
    holds = result.report.facts["parallel"]["holds"]
    assert len(holds) == 2
    assert all(each.startswith("cpu: ") and "transformer " in each and "vae " in each for each in holds)
    assert result.report.facts["parallel"]["work"] == ["each process encodes the texts", "the first one decodes"]
    assert off(result, family, **changes) <= SAME
    assert any(progress.preview_latent is not None for progress in watch.seen)
    assert max(progress.done for progress in watch.seen if progress.stage == "denoise") == 2


def test_the_processes_stay_and_keep_the_model(together: Callable[..., Any]) -> None:
    together(seed=1)
    before = first().process.pid, second()
    again = together(seed=2)
    assert (first().process.pid, second()) == before
    assert "load" not in again.report.facts["seconds"]
    assert again.report.facts["parallel"]["trials"] == 0
    assert "at most 1e-05 is taken" in again.report["parallel"].reason
    assert off(again, "flux-random", seed=2) <= SAME


def test_an_odd_number_of_tokens_is_declined_and_made_whole(together: Callable[..., Any]) -> None:
    # 5 x 5 tokens of 16 pixels cannot be halved.
    result = together(width=80, height=80)
    record = result.report["parallel"]
    assert (record.applied, record.failed) == ("off", True)
    assert "cannot be shared equally by 2 processes; " in record.reason
    assert "is the next larger size that can" in record.reason
    assert off(result, "flux-random", width=80, height=80) == 0.0
    even = together()
    assert even.report["parallel"].applied == "ulysses over 2 processes"
    assert off(even, "flux-random") <= SAME


def test_what_splits_badly_is_left_out_and_named(together: Callable[..., Any]) -> None:
    asked = OptimizationSettings.plain(step_cache="balanced", torch_compile="on")
    report = together(settings=asked).report
    for name in ("step_cache", "torch_compile"):
        record = report[name]
        assert (record.requested, record.failed) == (getattr(asked, name), True)
        assert record.applied == "off"
        assert "split over several processes goes without it" in record.reason


def test_cancel_stops_all_within_a_step_and_keeps_the_model(together: Callable[..., Any]) -> None:
    together()
    before = first().process.pid, second()
    watch = AtStep(2, cancel=True)
    with pytest.raises(Cancelled):
        together("flux-random", watch.callbacks, steps=900)
    assert watch.seen[-1].done < 900
    result = together(seed=40)
    assert (first().process.pid, second()) == before
    assert "load" not in result.report.facts["seconds"]
    assert off(result, "flux-random", seed=40) <= SAME


def test_an_error_of_the_run_keeps_its_kind(together: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="scheduler"):
        together(scheduler="no such one")
    assert off(together(seed=52), "flux-random", seed=52) <= SAME


def tiled(loops: int) -> tuple[OptimizationSettings, dict[str, Any]]:
    """Settings and size of a clip with so many latent frames after the first in each of its 6 tiles."""
    size = {"width": 128, "height": 64, "num_frames": 1 + 4 * loops}
    return OptimizationSettings.plain(vae_tiling=TilingSettings(mode="on", tile_size=64)), size


def test_two_processes_make_the_tiles_that_one_makes(together: Callable[..., Any]) -> None:
    settings, size = tiled(1)
    result = together("wan21-t2v", settings=settings, **size)
    record = result.report["parallel_decode"]
    assert (record.applied, record.failed) == ("6 tiles over 2 processes", False)
    assert record.reason.startswith("3, 3 each, and each is the one that one process makes")
    assert result.report.facts["parallel"]["work"][1] == "all decode"
    assert "parallel_decode 6 tiles over 2 processes" in result.report.for_speed
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of them has
    try:
        here, _ = decode(handle("wan21-t2v"), result.latent, settings)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(here, result.frames)
    whole = together("wan21-t2v", **size).report["parallel_decode"]
    assert (whole.applied, whole.failed) == ("off", False)
    assert whole.reason == "the first process decodes alone: vae_tiling is off"


def test_cancel_and_a_killed_process_while_tiles_are_made(together: Callable[..., Any]) -> None:
    settings, long = tiled(80)
    watch = AtStep(1, cancel=True, stage="decode")
    with pytest.raises(Cancelled):
        together("wan21-t2v", watch.callbacks, settings=settings, steps=1, **long)
    assert watch.seen[-1].done < 6
    pair = [first().process.pid, second()]
    result = together("wan21-t2v", settings=settings, **tiled(1)[1])
    assert [first().process.pid, second()] == pair
    assert "load" not in result.report.facts["seconds"]
    assert result.report["parallel_decode"].applied == "6 tiles over 2 processes"
    killing = AtStep(1, lambda message: os.kill(pair[1], signal.SIGKILL), stage="decode")
    with pytest.raises(ClusterError) as caught:
        together("wan21-t2v", killing.callbacks, settings=settings, steps=1, **long)
    assert str(caught.value).startswith(f"process 2 of 2 (pid {pair[1]}) that make one picture has ended: it was ended")
    assert "\n" not in str(caught.value)
    wait_for(lambda: all(map(has_ended, pair)), "the end of both", lambda: commands(pair))


@pytest.mark.parametrize("which", ["the first", "the second"])
def test_a_killed_process_is_one_line_and_the_next_run_works(together: Callable[..., Any], which: str) -> None:
    together()
    pair = [first().process.pid, second()]
    victim = pair[which == "the second"]
    killed_at = 0.0

    def kill(message: str) -> None:
        nonlocal killed_at
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)

    with pytest.raises(ClusterError) as caught:
        together("flux-random", AtStep(1, kill).callbacks, steps=900)
    assert time.monotonic() - killed_at < SOON
    expected = {
        "the first": "the driver of parallel ulysses over 2 processes has ended: it was ended by signal 9. Run again",
        "the second": f"process 2 of 2 (pid {victim}) that make one picture has ended: it was ended by signal 9. Run",
    }
    assert str(caught.value).startswith(expected[which])
    assert "\n" not in str(caught.value)
    wait_for(lambda: all(map(has_ended, pair)), "the end of both", lambda: commands(pair))
    assert off(together(seed=50), "flux-random", seed=50) <= SAME


def test_a_killed_process_between_runs_is_replaced(together: Callable[..., Any]) -> None:
    together()
    driver, victim = first(), second()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: not driver.running, "the end of the first process", driver.last_words)
    assert off(together(seed=51), "flux-random", seed=51) <= SAME


UNDONE = """
import json, sys
from pathlib import Path

import torch
from fastdiffusers.cluster.parallel.gate import Gates
from fastdiffusers.cluster.parallel.group import Group
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import run_loaded
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest
from fastdiffusers.torchvision_ops import declare_torchvision_ops

declare_torchvision_ops()
torch.set_num_threads(1)
group = Group(Path(sys.argv[1]), int(sys.argv[2]), 2, cards=False)
request = SampleRequest("a fox", steps=4, width=64, height=64, seed=7, guidance=4.0)


def things(pipeline):
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    modules = list(denoiser.modules())
    processors = [getattr(each, "processor", None) for each in modules]
    named = lambda each: sorted(name for name in getattr(each, "__dict__", {}))
    kinds = [type(each) for each in modules]
    return kinds, [named(each) for each in (*modules, *processors)], [id(each) for each in processors]


for case in sys.argv[3:]:
    family, parallel = case.split()
    handle = PipelineHandle(resolve(f"tiny:{family}", device="cpu", dtype="float32"))
    with CACHE.use(handle.key) as loaded:
        run = lambda: run_loaded(loaded, handle, request, OptimizationSettings.plain()).latent
        before, state = run(), things(loaded.pipeline)
        gates = Gates(loaded.pipeline, group, parallel=parallel)
        with gates.held():
            split = run()
        after = run()
        told = {
            "same": bool(torch.equal(before, after)),
            "untouched": things(loaded.pipeline) == state,
            "calls": [gates.split, gates.whole],
            "off": float((split - before).abs().max() / before.abs().max().clamp(min=1.0)),
        }
    print(json.dumps({case: told}), flush=True)
"""
UNDONE_CASES = {"flux-random ulysses": 0, "wan22-t2v ulysses": 0, "sdxl cfg": 0, "wan21-t2v cfg": 2}
"""How many calls of each are made whole."""


@pytest.fixture(scope="module")
def undone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each of two processes, which make one case after the other, has to tell of each."""
    folder = tmp_path_factory.mktemp("undone")
    start = lambda rank: subprocess.Popen(
        [sys.executable, "-c", UNDONE, str(folder), str(rank), *UNDONE_CASES], stdout=subprocess.PIPE, text=True
    )
    pair = [start(0), start(1)]
    try:
        lines = [line for each in pair for line in each.communicate(timeout=600)[0].splitlines()]
    finally:
        for each in pair:
            each.kill()
    said: dict[str, list[dict[str, Any]]] = {case: [] for case in UNDONE_CASES}
    for told in (json.loads(line) for line in lines if line.startswith("{")):
        for case, found in told.items():
            said[case].append(found)
    return said


@pytest.mark.parametrize(("case", "whole"), UNDONE_CASES.items())
def test_a_split_run_is_undone_bit_for_bit(case: str, whole: int, undone: dict[str, list[dict[str, Any]]]) -> None:
    assert len(undone[case]) == 2
    for told in undone[case]:
        assert told["same"]
        assert told["untouched"]
        assert told["calls"][0] >= 2
        assert told["calls"][1] == whole
        assert told["off"] <= SAME


@pytest.mark.parametrize(("parallel", "steps", "calls"), [("ulysses", "2", ""), ("cfg", "3", ", 4 of 6 calls")])
def test_the_command_line_makes_it_and_leaves_nothing(
    parallel: str,
    steps: str,
    calls: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client.end(wait=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    common = ["generate", "--model", "tiny:wan21-t2v", "--prompt", "a fox", "--num-frames", "5"]
    common += ["--steps", steps, "--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu"]
    report = tmp_path / "report.json"
    more = ["--parallel", parallel, "--parallel-devices", "2", "--report", str(report)]
    assert cli.main([*common, "--output", str(tmp_path / "two.safetensors"), *more]) == 0
    assert f"for speed: parallel {parallel} over 2 processes{calls}" in capsys.readouterr().out
    assert cli.main([*common, "--output", str(tmp_path / "one.safetensors")]) == 0
    from fastdiffusers.commands.latent_file import read_latent

    latents = [read_latent(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    tensors = [each if hasattr(each, "shape") else each[0] for each in latents]
    assert largest_difference(*tensors) <= SAME
    records = {record["name"]: record for record in json.loads(report.read_text())["optimizations"]}
    assert records["parallel"]["applied"] == f"{parallel} over 2 processes{calls}"
    assert list((tmp_path / "temporary").iterdir()) == []
    assert marked(os.environ[MARK]) == []

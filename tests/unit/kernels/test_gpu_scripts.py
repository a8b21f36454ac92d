"""The scripts for a rented card, tried without one: they must not fail there for a reason that shows here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastdiffusers.benchmarks import gpu_all, kernel_cases, kernels


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "work"
    folder.mkdir()
    return gpu_all.prepare(folder, tmp_path / "no_wheels")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_pack_is_importable_without_an_installation(environment: dict[str, str], tmp_path: Path) -> None:
    code = "import fastdiffusers, sys; print(fastdiffusers.__file__)"
    outcome = gpu_all.run("part", python(code), 60, tmp_path / "log", environment)
    assert outcome.ok
    assert Path(outcome.last).resolve() == gpu_all.ROOT / "__init__.py"


def test_failures_and_timeouts_are_outcomes(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    failed = gpu_all.run("part", python("import sys; print('reason'); sys.exit(3)"), 60, log, environment)
    assert (failed.state, failed.last) == ("failed (3)", "reason")
    assert gpu_all.run("part", python("1"), 0, log, environment).state == "not run"


def test_what_runs_out_of_time_is_stopped_with_its_children(environment: dict[str, str], tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    outcome = gpu_all.run("part", python(code), 5, tmp_path / "log", environment)
    assert outcome.state == "out of time"
    if pid_file.exists():
        deadline = time.monotonic() + 20
        while alive(int(pid_file.read_text())):
            assert time.monotonic() < deadline, "the child was left running"
            time.sleep(0.05)


def test_an_interrupted_benchmark_can_store_what_it_has(environment: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    begin = f"import time; from pathlib import Path; kept = Path({str(kept)!r})"
    code = f"{begin}\ntry:\n    kept.touch(); time.sleep(600)\nexcept KeyboardInterrupt:\n    kept.write_text('half')"
    for limit in (2, 10, 60):  # on a busy machine, until it has begun at all
        assert gpu_all.run("part", python(code), limit, tmp_path / "log", environment).state == "out of time"
        if kept.exists():
            break
    assert kept.read_text() == "half"


def test_benchmarks_that_take_minutes_are_told_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in gpu_all.PARTS:
        told = "--time-limit" in gpu_all.commands(part, small=False, seconds=300)[0]
        assert told == (part in gpu_all.TIMED)
    assert gpu_all.commands("cold_start", small=True, seconds=300)[0][-3:] == ["--small", "--time-limit", "240"]


def alive(pid: int) -> bool:
    """Whether a process is there and not only waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_new_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(gpu_all, "RESULTS", results)
    for name, when in (("old.json", 1_000), ("new.json", 3_000)):
        (results / name).write_text(name)
        os.utime(results / name, (when, when))
    assert [path.name for path in gpu_all.keep_results(tmp_path / "out", 2_000)] == ["new.json"]
    assert (tmp_path / "out" / "results" / "new.json").read_text() == "new.json"


def test_every_part_has_commands_and_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for part in gpu_all.PARTS:
        assert gpu_all.commands(part, small=True)
    assert (gpu_all.ROOT / gpu_all.KERNEL_TESTS).is_dir()
    with pytest.raises(SystemExit):
        gpu_all.main(["everything"])
    assert "unknown part 'everything'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_all.main(["kernels", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "sees no CUDA card" in said[0]
    assert not (tmp_path / "out").exists()


def test_asked_to_end_it_leaves_no_child(tmp_path: Path) -> None:
    note = tmp_path / "child"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from fastdiffusers.benchmarks import gpu_all as g; "
        f"g.commands = lambda *a, **k: [[sys.executable, '-c', {child!r}]]; "
        f"g.main(['tests', '--small', '--output', {str(tmp_path / 'out')!r}])"
    )
    process = subprocess.Popen(python(code))
    try:
        end = time.monotonic() + 60
        while not (note.exists() and note.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert not alive(int(note.read_text()))


def test_kernels_are_measured_where_they_run_and_say_why_where_not() -> None:
    data = kernels.measure(torch.device("cpu"), torch.float32, small=True, runs=1, only="shuffle")
    assert min(data["ceilings"].values()) > 0
    rows = {(row["size"], row["way"]): row for row in data["rows"]}
    assert {way for _, way in rows} == {"plain", "eager", "triton_pixel_shuffle"}
    for (_, way), row in rows.items():
        assert bool(row["problem"]) == (way == "triton_pixel_shuffle")
        assert (row["microseconds"] is None) == bool(row["problem"])


@pytest.mark.parametrize("small", [False, True])
def test_every_case_counts_its_work(small: bool) -> None:
    cases = list(kernel_cases.all_cases(torch.device("cpu"), torch.bfloat16, small))
    assert {case.operation for case in cases} >= {"group_norm_silu", "rms_norm_silu", "pixel_shuffle_3d", "causal conv"}
    assert all(case.bytes > 0 for case in cases)
    assert len({(case.operation, case.size, case.way) for case in cases}) == len(cases)


def test_the_large_norm_is_the_published_one() -> None:
    cases = kernel_cases.all_cases(torch.device("cpu"), torch.bfloat16, small=False)
    published = [case for case in cases if case.size == "1x128x20x256x256 channels_last"]
    assert {case.bytes for case in published} == {2 * 2 * 128 * 20 * 256 * 256}

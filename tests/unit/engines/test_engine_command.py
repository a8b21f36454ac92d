"""`generate --engine`: one prompt and a file of them on a server, and what is refused of the options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import prompt_runs
import pytest
from engine_server import MODEL, RATE, EngineServer, clip_pixels, pixels, serving, status
from PIL import Image
from prompt_runs import entries, files, written

from fastdiffusers import cli
from fastdiffusers.commands.media import read_frames
from fastdiffusers.engines import connection, videos
from fastdiffusers.engines.settings import KEY

IMAGES = "/v1/images/generations"
SECRET = "sk-never-shown-1234"  # noqa: S105 - of no server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PAUSES", (0.01,))
    monkeypatch.setattr(videos, "POLL_SECONDS", 0.02)
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def server() -> Iterator[EngineServer]:
    with serving("vllm-omni") as server:
        yield server


def generate(server: EngineServer, output: Path, *more: str) -> int:
    return cli.main(["generate", "--engine", server.url, "--prompt", "a fox", "--output", str(output), *more])


def shown(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pictures_and_their_report(
    server: EngineServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    server.key = SECRET
    report = tmp_path / "run.json"
    options = ("--seed", "5", "--batch", "2", "--attention", "sage", "--memory-mode", "gpu", "--model", MODEL)
    assert generate(server, tmp_path / "fox.png", *options, "--report", str(report)) == 0
    assert files(tmp_path) == ["fox_0.png", "fox_1.png", "run.json"]
    for index in range(2):
        assert np.array_equal(shown(tmp_path / f"fox_{index}.png"), pixels(5 + index, "a fox"))
    said = json.loads(report.read_text())
    assert said["facts"]["engine"] == f"vLLM-Omni at {server.url}"
    assert said["facts"]["seeds"] == [5, 6]
    assert [record["name"] for record in said["optimizations"]] == ["engine", "attention", "memory_mode"]
    printed = "".join(capfd.readouterr())
    assert "not had: attention sage" in printed
    assert SECRET not in printed + report.read_text()


def test_the_name_of_the_output_says_what_is_made(server: EngineServer, tmp_path: Path) -> None:
    assert generate(server, tmp_path / "fox.mp4", "--num-frames", "4", "--quiet") == 0
    (job,) = server.to("/v1/videos")
    frames, rate = read_frames(tmp_path / "fox.mp4")
    assert (frames.shape[0], rate) == (4, RATE)
    assert np.abs((frames * 255).numpy() - clip_pixels(job.fields)).mean() < 5
    server.asked.clear()
    assert generate(server, tmp_path / "frames", "--num-frames", "1", "--quiet") == 0
    assert files(tmp_path / "frames") == ["frame_00000.png"]
    assert [asked.path for asked in server.asked] == ["/v1/models", IMAGES]


def refused(server: EngineServer, capsys: pytest.CaptureFixture[str], output: Path, *more: str) -> str:
    assert generate(server, output, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert server.to(IMAGES) == server.to("/v1/videos") == []
    return line


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--lora", "tiny:wan-high-noise"), "lora = "),
        (("--vae", "ae.safetensors"), "--vae = "),
        (("--diffusion-model", "flux.safetensors"), "--diffusion-model = "),
        (("--text-encoder", "t5.safetensors"), "--text-encoder = "),
        (("--quantization", "sdnq-int8"), "--quantization = "),
        (("--dtype", "float32"), "--dtype = "),
        (("--device", "cpu"), "--device = "),
        (("--revision", "main"), "--revision = "),
        (("--scheduler", "euler"), "--scheduler = "),
        (("--guidance-2", "3"), "--guidance-2 = "),
        (("--strength", "0.5"), "--strength = "),
        (("--flow-shift", "3"), "--flow-shift = "),
        (("--image", "missing.png"), "--image = "),
        (("--model", "Qwen/Qwen-Image"), "--model = "),
        (("--engine-wait", "0"), "--engine-wait = "),
        (("--cluster", "local"), "--cluster = "),
    ],
)
def test_what_a_server_has_no_option_for_is_refused_by_name(
    more: tuple[str, ...], says: str, server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(server, capsys, tmp_path / "fox.png", *more)


def test_a_latent_is_refused(server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no latent comes back" in refused(server, capsys, tmp_path / "fox.safetensors")


def test_options_of_an_engine_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "tiny:flux", "--prompt", "a", "--output", str(tmp_path / "a.png")]
    assert cli.main([*words, "--engine-server", "sglang"]) == 2
    assert "it goes with --engine" in capsys.readouterr().err


def test_a_server_whose_model_makes_video_writes_no_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving("sglang", task="T2V") as server:
        assert ".mp4" in refused(server, capsys, tmp_path / "fox.png")


def test_a_failure_of_the_server_is_a_line_and_a_status(
    server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults[IMAGES] = [status(500, {"error": {"message": "CUDA out of memory"}})]
    assert generate(server, tmp_path / "fox.png") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUDA out of memory" in line
    assert files(tmp_path) == []


LINES = [{"prompt": "a fox", "seed": 1}, {"prompt": "a cat", "seed": 2, "output": "cat.mp4"}, {"prompt": "a dog"}]


def test_a_file_of_prompts_is_worked_through_and_resumed(
    server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    server.key = SECRET
    prompts, output = written(tmp_path / "p.jsonl", LINES), tmp_path / "out"
    server.faults[IMAGES] = [None, status(400, {"detail": "this dog cannot be drawn"})]
    assert prompt_runs.generate(prompts, output, "--engine", server.url, "--quiet") == 1
    assert "this dog cannot be drawn" in capsys.readouterr().err
    done = ["00001.json", "00001.png", "cat.json", "cat.mp4", "manifest.jsonl"]
    assert files(output) == done
    assert np.array_equal(shown(output / "00001.png"), pixels(1, "a fox"))
    server.asked.clear()
    assert prompt_runs.generate(prompts, output, "--engine", server.url, "--quiet", "--resume") == 0
    assert [asked.fields["prompt"] for asked in server.to(IMAGES)] == ["a dog"]
    assert server.to("/v1/videos") == []
    assert files(output) == sorted([*done, "00003.json", "00003.png"])
    assert {entry["state"] for entry in entries(output)} == {"done", "failed"}
    everything = b"".join((output / name).read_bytes() for name in files(output))
    assert SECRET.encode() not in everything


CANNOT = status(400, {"detail": "this one cannot be drawn"})


def test_the_finished_pictures_of_a_batch_are_written_and_the_missing_one_is_named(
    server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults[IMAGES] = [None, None, CANNOT]
    report = tmp_path / "run.json"
    assert generate(server, tmp_path / "fox.png", "--seed", "5", "--batch", "3", "--report", str(report)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "picture 3 of 3 is missing: " in said
    assert "this one cannot be drawn" in said
    assert str(tmp_path / "fox_1.png") in said
    assert files(tmp_path) == ["fox_0.png", "fox_1.png", "run.json"]
    for index in range(2):
        assert np.array_equal(shown(tmp_path / f"fox_{index}.png"), pixels(5 + index, "a fox"))
    assert any("picture 3 of 3 is missing" in note for note in json.loads(report.read_text())["notes"])


def test_of_a_file_of_prompts_too_and_resume_makes_that_item_again(
    server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"prompt": "a fox", "batch": 3, "seed": 5}, {"prompt": "a cat"}]
    prompts, output = written(tmp_path / "p.jsonl", lines), tmp_path / "out"
    server.faults[IMAGES] = [None, None, CANNOT]
    assert prompt_runs.generate(prompts, output, "--engine", server.url, "--quiet") == 1
    assert "1 of 2 items failed 00001 (p.jsonl line 1): picture 3 of 3 is missing: " in capsys.readouterr().err
    there = ["00001.json", "00001_0.png", "00001_1.png", "00002.json", "00002.png", "manifest.jsonl"]
    assert files(output) == there
    server.asked.clear()
    assert prompt_runs.generate(prompts, output, "--engine", server.url, "--quiet", "--resume") == 0
    assert [asked.fields["seed"] for asked in server.to(IMAGES)] == [5, 6, 7]
    assert files(output) == sorted([*there, "00001_2.png"])


@pytest.mark.parametrize(
    ("more", "count"),
    [
        (("--attention", "sage"), 0),
        (("--memory-mode", "gpu", "--torch-compile", "off"), 0),
        (("--engine-wait", "900"), 0),
        (("--steps", "9"), 1),
        (("--negative-prompt", "blur"), 1),
    ],
)
def test_an_option_that_the_server_is_not_told_makes_nothing_again(
    more: tuple[str, ...], count: int, server: EngineServer, tmp_path: Path
) -> None:
    prompts, output = written(tmp_path / "p.jsonl", [{"prompt": "a fox"}]), tmp_path / "out"
    assert prompt_runs.generate(prompts, output, "--engine", server.url, "--quiet") == 0
    server.asked.clear()
    assert prompt_runs.generate(prompts, output, "--engine", server.url, "--quiet", "--resume", *more) == 0
    assert len(server.to(IMAGES)) == count


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "a", "argument": ["eta=0.5"]}, "argument = 'eta': the servers have no field for it"),
        ({"prompt": "a", "engine": "http://127.0.0.1:1"}, "it is for all lines"),
        ({"prompt": "a", "output": "a.safetensors"}, "no latent comes back"),
        ({"prompt": "a", "scheduler": "euler"}, "scheduler = 'euler'"),
        ({"prompt": "a", "model": "Qwen/Qwen-Image"}, f"the server has {MODEL}"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_made(
    line: dict[str, str], says: str, server: EngineServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = written(tmp_path / "p.jsonl", [{"prompt": "a fox"}, line])
    assert prompt_runs.generate(prompts, tmp_path / "out", "--engine", server.url) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "p.jsonl line 2" in said
    assert says in said
    assert server.to(IMAGES) == []


def test_ctrl_c_deletes_the_job_and_leaves_nothing(server: EngineServer, tmp_path: Path) -> None:
    server.held = True
    words = ["generate", "--engine", server.url, "--prompt", "a fox", "--output", str(tmp_path / "fox.mp4")]
    program = [sys.executable, "-m", "fastdiffusers", *words]
    done = threading.Event()
    with subprocess.Popen(program, env=os.environ, stderr=subprocess.PIPE, text=True) as process:
        while not any(job["polls"] for job in list(server.jobs.values())):
            assert process.poll() is None, process.stderr.read()
            done.wait(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "cancelled" in said
    assert server.jobs == {}
    assert files(tmp_path) == []

"""The one line that a run leaves on the console, and the report that people read."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdiffusers import cli
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.report import OptimizationRecord, OptimizationReport, in_words, log_run

SMALL = ["--width", "32", "--height", "32", "--dtype", "float32", "--device", "cpu"]


def report_of(*records: OptimizationRecord, **seconds: float) -> OptimizationReport:
    return OptimizationReport(list(records), facts={"seconds": seconds})


def test_it_says_what_is_active_what_was_declined_and_the_seconds() -> None:
    report = report_of(
        OptimizationRecord("attention", "xformers", "sdpa", "no such\npackage", failed=True),
        OptimizationRecord("torch_compile", "auto", "off", "compiling takes 60 s", cost="compiling took 3 s"),
        OptimizationRecord("vae_tiling", "off", "off", "never asked for"),
        OptimizationRecord("step_cache", "auto", "off"),
        OptimizationRecord("memory_mode", "auto", "gpu", "everything fits"),
        load=1.5,
        denoise=12.345,
    )
    assert report.in_one_line() == (
        "attention sdpa · memory_mode gpu | attention xformers declined (no such package) | "
        "torch_compile auto declined (compiling takes 60 s) | load 1.50 s · denoise 12.35 s"
    )


def test_what_compiling_took_is_part_of_it() -> None:
    compiled = OptimizationRecord("torch_compile", "on", "4 blocks", cost="compiling took 41.2 s (once)")
    assert report_of(compiled).in_one_line() == "torch_compile 4 blocks | compiling took 41.2 s (once)"


def test_nothing_active_is_said() -> None:
    assert report_of().in_one_line() == "everything off"


def test_it_is_logged_under_one_name_at_info_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fastdiffusers.run"):
        log_run("a node", report_of(denoise=1.0))
    assert [record.getMessage() for record in caplog.records] == ["a node: everything off | denoise 1.00 s"]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the command that just ran has logged about its run."""
    found = [record.getMessage() for record in caplog.records if record.name == "fastdiffusers.run"]
    caplog.clear()
    return found


def test_every_command_that_runs_a_model_leaves_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CACHE.clear()
    latent = str(tmp_path / "latent.safetensors")
    generate = ["generate", "--model", "tiny:flux", "--prompt", "a fox", "--steps", "2", "--output", latent, *SMALL]
    assert cli.main(generate) == 0
    (line,) = lines(caplog)
    assert line.startswith("generate: attention sdpa · memory_mode on the cpu")
    assert " | load " in line
    assert " · denoise " in line
    assert cli.main([*generate, "--torch-compile", "off"]) == 0
    (line,) = lines(caplog)
    assert "load " not in line, "it was loaded before"
    decode = ["decode", "--model", "tiny:flux", "--latents", latent, "--output", str(tmp_path / "out.png")]
    assert cli.main([*decode, "--dtype", "float32", "--device", "cpu"]) == 0
    (line,) = lines(caplog)
    assert line.startswith("decode: ")
    assert "decode 0." in line
    assert cli.main([*decode, "--dtype", "float32", "--device", "cpu", "--quiet"]) == 0
    assert lines(caplog) == []


def test_the_video_vae_leaves_one_line_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastdiffusers.vae import VaeConfig, VideoVAE

    torch.manual_seed(0)
    weights, latent = tmp_path / "vae.safetensors", str(tmp_path / "latent.safetensors")
    save_file(VideoVAE(VaeConfig(block_out_channels=(32, 32, 64, 64))).state_dict(), weights)
    save_file({"latent_tensor": torch.randn(1, 16, 1, 2, 2)}, latent)
    vae = ["--vae", str(weights), "--dtype", "float32", "--device", "cpu"]
    assert cli.main(["decode", *vae, "--latents", latent, "--output", str(tmp_path / "out.png")]) == 0
    (line,) = lines(caplog)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= 5
    assert printed[0].startswith("causal 3D video VAE | 16x16x1 | decode ")
    assert line.startswith("decode: spatial ")
    assert line.endswith(" s")
    assert cli.main(["encode", *vae, "--frames", str(tmp_path / "out.png"), "--output", latent]) == 0
    (line,) = lines(caplog)
    assert line.startswith("encode: spatial ")
    assert " | encode " in line


def test_the_summary_says_what_a_person_wants_to_know_first() -> None:
    report = report_of(
        OptimizationRecord("attention", "xformers", "sdpa", "it is not installed (pip install xformers)", failed=True),
        OptimizationRecord("torch_compile", "on", "28 blocks, inductor"),
        OptimizationRecord("vae_tiling", "auto", "off", "the whole decode fits"),
        OptimizationRecord("channels_last", "on", "off", "the model has no convolutions"),
        OptimizationRecord("memory_mode", "auto", "gpu"),
        OptimizationRecord("step_cache", "off", "off"),
    )
    report.facts |= {"model": "owner/model", "size": "1024x768", "steps": 28}
    report.timed({"load": 1.5, "denoise": 12.25})
    report.facts["finished_at"] = "2026-02-03T14:05:06+01:00"
    report.note("250 became 256")
    assert report.summary() == [
        "owner/model | 1024x768 | 28 steps | 13.75 s: load 1.50 s · denoise 12.25 s | at 14:05:06",
        "for speed: torch_compile 28 blocks, inductor",
        "not had: attention xformers, sdpa instead: it is not installed (pip install xformers)",
        "not had: channels_last on, off instead: the model has no convolutions",
        "note: 250 became 256",
    ]
    text = report.as_table()
    assert text.startswith(report.as_text() + "\n\noptimization ")
    assert "seconds: load 1.5 · denoise 12.25" in text
    assert "finished_at: 2026-02-03 14:05:06" in text


def test_the_time_of_day_is_that_at_which_the_run_ended() -> None:
    report = OptimizationReport()
    before = datetime.datetime.now().astimezone().replace(microsecond=0)
    report.timed({"decode": 1.0})
    assert (
        before <= datetime.datetime.fromisoformat(report.facts["finished_at"]) <= datetime.datetime.now().astimezone()
    )
    assert report.summary()[1] == "for speed: nothing switched on"


def test_a_fact_that_only_looks_like_a_moment_is_left_as_it_is() -> None:
    assert in_words({"model": "owner/Model-T", "seeds": [1, 2]}) == "model owner/Model-T · seeds 1, 2"

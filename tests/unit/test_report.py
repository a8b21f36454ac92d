"""The one line that a run leaves on the console."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdiffusers import cli
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.report import OptimizationRecord, OptimizationReport, log_run

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


def test_the_video_vae_leaves_one_line_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from fastdiffusers.vae import VaeConfig, VideoVAE

    torch.manual_seed(0)
    weights, latent = tmp_path / "vae.safetensors", str(tmp_path / "latent.safetensors")
    save_file(VideoVAE(VaeConfig(block_out_channels=(32, 32, 64, 64))).state_dict(), weights)
    save_file({"latent_tensor": torch.randn(1, 16, 1, 2, 2)}, latent)
    vae = ["--vae", str(weights), "--dtype", "float32", "--device", "cpu"]
    assert cli.main(["decode", *vae, "--latents", latent, "--output", str(tmp_path / "out.png")]) == 0
    (line,) = lines(caplog)
    assert line.startswith("decode: spatial ")
    assert line.endswith(" s")
    assert cli.main(["encode", *vae, "--frames", str(tmp_path / "out.png"), "--output", latent]) == 0
    (line,) = lines(caplog)
    assert line.startswith("encode: spatial ")
    assert " | encode " in line

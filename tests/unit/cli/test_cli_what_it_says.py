"""What the command line tells a newcomer: where results are, what the choices are, which line to type again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch

from fastdiffusers.cli import build_parser, main
from fastdiffusers.commands import decode
from fastdiffusers.commands.latent_file import latent_shape, write_latent
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.quantization.schemes import quantization_choices
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import SampleRequest

PACK = Path(__file__).resolve().parents[3]
SMALL = ["--prompt", "a", "--steps", "1", "--width", "32", "--height", "32"]


def test_what_was_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate = ["generate", "--model", "tiny:sdxl", *SMALL]
    report = tmp_path / "r.json"
    assert main([*generate, "--output", str(tmp_path / "out.png"), "--report", str(report), "--batch", "2"]) == 0
    said = [line.removeprefix("written to ") for line in capsys.readouterr().out.splitlines() if "written to" in line]
    assert said == [str(tmp_path / "out_0.png"), str(tmp_path / "out_1.png"), str(report)]
    assert all(Path(path).is_file() for path in said)
    assert main([*generate, "--output", str(tmp_path / "l.safetensors")]) == 0
    assert f"written to {tmp_path / 'l.safetensors'}" in capsys.readouterr().out
    again = ["decode", "--model", "tiny:sdxl", "--latents", str(tmp_path / "l.safetensors")]
    assert main([*again, "--output", str(tmp_path / "pictures")]) == 0
    assert f"written to {tmp_path / 'pictures'}" in capsys.readouterr().out
    assert main([*again, "--output", str(tmp_path / "b.png"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_help_lists_the_quantization_schemes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = "".join(capsys.readouterr().out.split()).replace("-", "")
    assert all(name.replace("-", "") in text for name in quantization_choices())


def test_the_range_of_the_seed_is_exact() -> None:
    with pytest.raises(InputError, match=f"between 0 and {2**64 - 1}\\."):
        check_request(family_of("FluxPipeline"), SampleRequest("a", seed=2**64))


@pytest.mark.parametrize("started", ["FOLDER", "with a space", "FOLDER/__main__.py", "bin/fastdiffusers", "."])
def test_usage_shows_the_line_that_works(
    started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("FOLDER", "with a space"):
        (tmp_path / folder).symlink_to(PACK, target_is_directory=True)
    monkeypatch.chdir(PACK if started == "." else tmp_path)
    monkeypatch.setattr(sys, "argv", [started])
    expected = {"FOLDER/__main__.py": "python -m fastdiffusers", "bin/fastdiffusers": "fastdiffusers"}.get(
        started, f"python {shlex.quote(started)}"
    )
    assert build_parser().prog == expected
    assert main(["decode"]) == 2
    assert f"(see {expected} decode --help)" in capsys.readouterr().err


def test_the_form_of_the_output_is_told_from_the_header_of_a_latent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.safetensors"
    write_latent(torch.zeros(1, 16, 3, 4, 4), clip, {})
    assert latent_shape(clip) == (1, 16, 3, 4, 4)

    def read(path: Path) -> None:
        raise AssertionError("the numbers of the clip were read")

    monkeypatch.setattr(decode, "read_latent", read)
    words = ["decode", "--model", "tiny:wan22-t2v", "--latents", str(clip), "--output", str(tmp_path / "a.png")]
    assert main(words) == 2
    assert "ending in .mp4" in capsys.readouterr().err


def test_bench_speaks_of_other_options_before_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", "tiny:sdxl"]
    for options, said in (
        (["--steps", "0"], "steps = 0"),
        (["--width", "-33"], "width = -33"),
        (["--runs", "0"], "runs = 0"),
        (["--compare", "nonsense"], "nonsense"),
        ([], "give --output FOLDER"),
    ):
        assert main([*words, *options]) == 2
        assert said.lower() in capsys.readouterr().err.lower()

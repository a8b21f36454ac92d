"""The demo, with a compiler backend that only traces, so that it takes seconds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastdiffusers import cli
from fastdiffusers.commands import demo
from fastdiffusers.commands.media import read_frames, read_picture

SHORT = 5
"""Frames of the clip here."""


@pytest.mark.usefixtures("trained_weights")
def test_the_demo_shows_every_optimization_as_applied_or_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traced = replace(demo.LOSSLESS.compile, backend="eager")
    monkeypatch.setattr(demo, "LOSSLESS", replace(demo.LOSSLESS, compile=traced))
    monkeypatch.setattr(demo, "EVERYTHING", replace(demo.EVERYTHING, compile=traced))
    monkeypatch.setattr(demo, "CLIP_FRAMES", SHORT)
    output = tmp_path / "demo"
    assert cli.main(["demo", "--output", str(output), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((output / "report_and_tiled.json").read_text())
    records = {record["name"]: record for record in report["optimizations"]}
    assert {"attention", "torch_compile", "vae_tiling", "memory_mode", "tf32", "step_cache"} <= set(records)
    for name, record in records.items():
        assert name in shown
        assert record["applied"] != "off" or record["requested"] == "off" or record["reason"], name
    assert "blocks" in records["torch_compile"]["applied"]
    picture = read_picture(output / "flux_plain_optimized_tiled.png")
    width = picture.shape[0]  # square pictures, with a gap of a thirty-second between them
    gap = width // 32
    assert picture.shape[1] == 3 * width + 2 * gap
    plain, optimized = picture[:, :width], picture[:, width + gap : 2 * width + gap]
    assert plain.std() > 0.01
    assert (plain - optimized).abs().max() <= 1.5 / 255
    near = dict(re.findall(r"^(optimized|and tiled) .* step, (.+?) (?:as|from) plain", shown, re.MULTILINE))
    decibels = {name: math.inf if said == "the same" else float(said[:-3]) for name, said in near.items()}
    assert decibels["optimized"] > 50
    assert decibels["and tiled"] > 30
    clips = dict(re.findall(r"^clip, (\w+) .* s, (.+?) (?:as|from) (?:whole|what went in)", shown, re.MULTILINE))
    decibels = {name: math.inf if said == "the same" else float(said[:-3]) for name, said in clips.items()}
    assert decibels["whole"] > 20, "it gives back what went in"
    assert decibels["exact"] > 90
    assert decibels["tiles"] > 30
    film, rate = read_frames(output / "clip_whole_exact_tiles_difference.mp4")
    assert (len(film), rate) == (SHORT, 16)
    assert film.shape[2] == 2 * (4 * 192 + 3 * 6), "four pictures of twice the size, with gaps between them"


def test_an_unknown_family_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--family", "nothing", "--output", str(tmp_path / "demo"), "--device", "cpu"]) == 2
    assert "flux" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_demo_says_which_steps_are_faster() -> None:
    assert demo.faster(20.0, 15.0) == "optimized steps take 25% less time than plain ones"
    assert "plain steps are the faster ones here" in demo.faster(20.0, 84.0)

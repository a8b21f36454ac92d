"""`decode --exactness`: it reaches the decode, and the report file says what ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastdiffusers.cli import main
from fastdiffusers.commands.latent_file import write_latent


@pytest.mark.parametrize("exactness", [None, "bit-identical", "fast"])
def test_the_report_says_how_exactly_the_clip_was_decoded(exactness: str | None, tmp_path: Path) -> None:
    latents, report = tmp_path / "clip.safetensors", tmp_path / "report.json"
    write_latent(torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0)), latents, {})
    arguments = ["decode", "--model", "tiny:wan22-t2v", "--latents", str(latents), "--report", str(report), "--quiet"]
    if exactness:
        arguments += ["--exactness", exactness]
    assert main([*arguments, "--output", str(tmp_path / "clip.mp4")]) == 0
    records = {record["name"]: record for record in json.loads(report.read_text())["optimizations"]}
    record = records["exactness"]
    assert record["requested"] == (exactness or "bit-identical")
    if exactness == "fast":  # faster or not, both ways were compared
        assert "differ by" in record["cost"]
    else:
        assert record["applied"] == "bit-identical"


def test_another_exactness_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--model", "x", "--latents", "y", "--output", "z.mp4", "--exactness", "exact"]) == 2
    assert "--exactness" in capsys.readouterr().err

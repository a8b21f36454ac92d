"""`generate --recommended`: what the results were measured on is held against the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.cache_folder import device_name, software
from fastdiffusers.optimizations.settings import OptimizationSettings, Workload
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.tuning_key import tuning_key
from fastdiffusers.pipelines.types import PipelineHandle

PLAIN = OptimizationSettings.plain()
KEY = tuning_key(PipelineHandle(resolve("tiny:flux-random", dtype="float32", device="cpu")), Workload(64, 64), PLAIN)
FACTS = {
    "model": KEY.model,
    "work": "64x64, 1 steps",
    "dtype": "float32",
    "memory mode": "auto",
    "device": device_name(torch.device("cpu")),
    "software": software(),
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"work": "66x64, 8 steps", "measured": "5 runs each"}, ""),
        (
            {
                "model": "tiny:wan@1 + 1 LoRA",
                "LoRA": "a 1",
                "work": "128x64, 5 frames, 1 steps, batch 2",
                "device": "a card",
            },
            f"model tiny:wan@1 + 1 LoRA, here {KEY.model}; LoRA a 1, here none; "
            f"size 0.00819 Mpx x 5 f, batch 2, here 0.0041 Mpx; device a card, here {FACTS['device']}.",
        ),
    ],
)
def test_a_run_says_in_what_it_differs_from_the_measurement(
    changes: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, report = tmp_path / "results.json", tmp_path / "report.json"
    row = {"name": "plain", "settings": asdict(PLAIN)}
    results.write_text(json.dumps({"recommended": "plain", "rows": [row], "facts": {**FACTS, **changes}}))
    words = "--model tiny:flux-random --prompt a --steps 1 --width 64 --height 64 --dtype float32 --device cpu --quiet"
    given = [*words.split(), "--recommended", str(results), "--report", str(report)]
    assert cli.main(["generate", *given, "--output", str(tmp_path / "a.png")]) == 0, capsys.readouterr().err
    notes = [note for note in json.loads(report.read_text())["notes"] if note.startswith("recommended")]
    assert notes == ([f"recommended: results.json was measured on something else: {said}"] if said else [])

"""A quantization that leaves every layer as it is says so, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from fastdiffusers.optimizations.quantization.quantize import NOTHING, nothing_quantized_note, outcome
from fastdiffusers.optimizations.quantization.schemes import SCHEMES
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest


@pytest.mark.skipif(importlib.util.find_spec("sdnq") is None, reason="sdnq is not installed")
@pytest.mark.parametrize("name", ["sdnq-uint4", "sdnq-int8"])
def test_a_folder_of_which_sdnq_takes_no_layer_is_told_so_in_the_report(name: str, tmp_path: Path) -> None:
    folder = tiny.save("sdxl", tmp_path / "model")
    handle = PipelineHandle(loader.resolve(str(folder), device="cpu", quantization=name))
    settings = replace(OptimizationSettings.plain(), quantized_matmul="on")
    report = generate(handle, SampleRequest("a", steps=1, width=64, height=64), settings).report
    (note,) = [note for note in report.notes if note.startswith("quantization: ")]
    assert f"{name} quantized nothing: SDNQ leaves layers of fewer than 16384 weights as they are" in note
    assert "the largest of unet has 8192" in report.facts["quantization"][NOTHING]
    (matmul,) = [record for record in report.records if record.name == "quantized_matmul"]
    assert matmul.reason == "SDNQ was to quantize this model, and left every layer of it as it is"


@pytest.mark.parametrize("name", SCHEMES)
def test_every_kind_says_that_it_took_nothing(name: str) -> None:
    pipelines = {
        "this model has none that could be": SimpleNamespace(components={"vae": nn.Linear(2, 2), "scheduler": None}),
        "no layer of unet is of a kind that it takes": SimpleNamespace(
            components={"unet": nn.Linear(2, 2)}, unet=nn.Linear(2, 2)
        ),
    }
    for why, pipeline in pipelines.items():
        found = outcome(pipeline, name)
        assert why in found[NOTHING]
        assert nothing_quantized_note(name, found).startswith(f"quantization: {name} quantized nothing: ")
        assert outcome(pipeline, "none") == {}
    assert nothing_quantized_note(name, {"unet": "int8 in 2 of 2 layers"}) == ""

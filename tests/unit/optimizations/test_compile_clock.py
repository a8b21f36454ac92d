"""What compiling took, as reported: every compilation and recompilation, and nothing else."""

from __future__ import annotations

import time

import pytest
import torch
from torch._dynamo.backends import registry

from fastdiffusers.compile_clock import Compilations, counted
from fastdiffusers.optimizations.apply import active, apply
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
PAUSE = 0.2
SETTINGS = OptimizationSettings(
    torch_compile="on",
    compile=CompileSettings(backend="slow", dynamic="off"),
    vae_tiling=TilingSettings(mode="off", slicing="off"),
)


@pytest.fixture
def compiled(monkeypatch):
    """A backend named "slow" that takes `PAUSE` seconds a graph, and the list of those it was given."""
    seen = []

    def slow(graph, example_inputs):
        time.sleep(PAUSE)
        seen.append(graph)
        return graph.forward

    slow._tags = ()
    monkeypatch.setitem(registry._COMPILER_FNS, "slow", slow)
    monkeypatch.setitem(registry._BACKENDS, "slow", None)
    return seen


def run(pipeline, picture, edge):
    report = apply(pipeline, SETTINGS)
    with active(pipeline, SETTINGS, report):
        picture(pipeline, "flux", edge=edge)
    return report


def test_the_report_counts_compilations_and_recompilations(tiny_pipeline, picture, compiled):
    pipeline = tiny_pipeline("flux")
    for edge in (32, 48, 64):  # each size is compiled anew
        before = len(compiled)
        report = run(pipeline, picture, edge=edge)
        assert len(compiled) > before
    cost = report["torch_compile"].cost
    count, seconds = len(compiled), float(cost.split()[2])
    assert f"({count} times)" in cost
    assert seconds >= PAUSE * count

    began = time.perf_counter()
    report = run(pipeline, picture, edge=64)
    assert report["torch_compile"].cost == cost  # warm code costs nothing
    warm = time.perf_counter() - began
    began = time.perf_counter()
    report = run(pipeline, picture, edge=80)
    more = float(report["torch_compile"].cost.split()[2]) - seconds
    assert PAUSE <= more <= time.perf_counter() - began
    assert more >= (time.perf_counter() - began - warm) * 0.5  # nothing large is left out


def test_what_fails_to_compile_counts_too(monkeypatch):
    def broken(graph, example_inputs):
        time.sleep(PAUSE)
        raise RuntimeError("no compiler")

    made = Compilations()
    function = torch.compile(lambda x: x + 1, backend=broken)
    with pytest.raises(Exception, match="no compiler"), counted(made):
        function(torch.ones(2))
    assert made.count == 1
    assert made.seconds >= PAUSE
    assert str(made).endswith("(once)")


def test_a_reset_of_dynamo_in_between_does_no_harm():
    made = Compilations()
    with counted(made):
        torch._dynamo.reset()
    assert made.count == 0

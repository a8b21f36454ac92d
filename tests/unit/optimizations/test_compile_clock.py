"""What compiling took, as reported: every compilation and recompilation, and nothing else."""

from __future__ import annotations

import re
import time

import pytest
import torch
from torch._dynamo.backends import registry

from fastdiffusers.cache_folder import default_folder
from fastdiffusers.callbacks import Callbacks
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


def test_the_next_process_is_told_what_compiling_took(tiny_pipeline, picture, compiled):
    ticks = []

    def go():
        pipeline = tiny_pipeline("flux")
        report = apply(pipeline, SETTINGS, callbacks=Callbacks(on_progress=ticks.append))
        with active(pipeline, SETTINGS, report):
            picture(pipeline, "flux")
        return report["torch_compile"].cost

    first = go()
    assert first.endswith("first run only")
    seconds = float(first.split()[2])
    torch._dynamo.reset()  # as a new process
    second = go()
    remembered = re.search(r"first run only, ([\d.]+) s last time", second)
    assert remembered, second
    # What is kept is counted to the end of the call, the report's when its text is made.
    assert float(remembered[1]) == pytest.approx(seconds, rel=0.2, abs=0.2)
    assert f"{seconds:.1f} s last time" in ticks[-2].message
    (default_folder() / "compile_seconds.json").write_text("[not ours")
    torch._dynamo.reset()
    assert go().endswith("first run only")

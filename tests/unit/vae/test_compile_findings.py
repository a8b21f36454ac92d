"""What was found of compiled code serves the next process, which tries and compares nothing unless the code is new."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends import registry
from torch._dynamo.utils import counters

from fastdiffusers.vae import VaeConfig, VaeSettings, VideoVAE, compile_trial, compiled, compiled_units, decode_raw
from fastdiffusers.vae.kernels import eager
from fastdiffusers.vae.kernels.saved_choices import SavedChoices

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fresh_dynamo")]

PLAIN = VaeSettings(mode="whole", temporal_slice=1)
CHOSEN = VaeSettings(mode="whole", temporal_slice=1, compile={"backend": "watched"})


class Backend:
    """Dynamo's backend "watched": runs graphs as they are, `running` seconds longer, `off` by that much."""

    def __init__(self) -> None:
        self.graphs, self.calls, self.running, self.off, self.new = 0, 0, 0.0, 0.0, False

    def compile(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        self.graphs += 1
        if self.new:
            counters["inductor"]["fxgraph_cache_miss"] += 1

        def run(*args: torch.Tensor) -> object:
            self.calls += 1
            time.sleep(self.running)
            made: Any = graph.forward(*args)
            return tuple(t + self.off if isinstance(t, torch.Tensor) else t for t in made)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()
    function = lambda graph, inputs: made.compile(graph, inputs)
    function._tags = ()  # type: ignore[attr-defined]
    monkeypatch.setitem(registry._COMPILER_FNS, "watched", function)
    monkeypatch.setitem(registry._BACKENDS, "watched", None)
    return made


@pytest.fixture
def plain_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the plain statistics, which are slow here, so that compiled code wins; units have no part in them."""
    calls, statistics = [0], eager.group_norm_statistics

    def slow(x: torch.Tensor, groups: int, **options: Any) -> object:
        if x.device.type != "meta":
            calls[0] += 1
            time.sleep(0.03)
        return statistics(x, groups, **options)

    monkeypatch.setattr(eager, "group_norm_statistics", slow)
    return calls


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VideoVAE]:
    """Begins a process: nothing is known but what the file says."""
    config = VaeConfig(block_out_channels=(8, 16), layers_per_block=1, temporal_scale_num=1, norm_num_groups=4)

    def begin(**versions: str) -> VideoVAE:
        torch._dynamo.reset()
        saved = SavedChoices(tmp_path / "kernels.json", versions)
        monkeypatch.setattr(compile_trial, "SAVED", saved)
        monkeypatch.setattr(compiled, "SAVED", saved)
        for name in ("_trials", "_taken", "_last"):
            monkeypatch.setattr(compiled, name, {})
        monkeypatch.setattr(compiled_units, "_units", {})
        torch.manual_seed(0)
        return VideoVAE(config).eval().requires_grad_(False)

    return begin


Z = torch.randn(1, 16, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_code_that_was_slower_is_not_compiled_again(process: Any, backend: Backend) -> None:
    backend.running = 0.03
    _, first = decode_raw(process(), Z, CHOSEN)
    assert "are slower, so plain ones run" in first["torch_compile"].reason
    graphs = backend.graphs
    vae = process()
    frames, second = decode_raw(vae, Z, CHOSEN)
    assert backend.graphs == graphs
    assert torch.equal(frames, decode_raw(vae, Z, PLAIN)[0])
    assert second["torch_compile"].applied == "off"
    assert second["torch_compile"].reason == first["torch_compile"].reason + compile_trial.EARLIER
    assert second["torch_compile"].cost == ""
    decode_raw(process(torch="another"), Z, CHOSEN)
    assert backend.graphs > graphs


def test_code_that_was_faster_is_neither_tried_nor_compared_again(
    process: Any, backend: Backend, plain_calls: list[int]
) -> None:
    expected, first = decode_raw(process(), Z, CHOSEN)
    assert "are faster and kept" in first["torch_compile"].reason
    assert "checking it" in first["torch_compile"].cost
    vae, graphs = process(), backend.graphs
    plain_calls[0] = 0
    frames, second = decode_raw(vae, Z, CHOSEN)
    assert backend.graphs > graphs
    assert plain_calls == [0]
    assert torch.equal(frames, expected)
    assert second["torch_compile"].reason.endswith(compile_trial.EARLIER)
    assert "compiling took" in second["torch_compile"].cost
    assert "checking it" not in second["torch_compile"].cost


def test_code_that_is_made_anew_is_compared_anew(process: Any, backend: Backend, plain_calls: list[int]) -> None:
    decode_raw(process(), Z, CHOSEN)
    backend.new, plain_calls[0] = True, 0
    _, report = decode_raw(process(), Z, CHOSEN)
    assert plain_calls[0] > 0
    assert report["torch_compile"].applied != "off"
    backend.off = 5.0
    vae = process()
    frames, report = decode_raw(vae, Z, CHOSEN)
    assert report["torch_compile"].failed
    assert torch.equal(frames, decode_raw(vae, Z, PLAIN)[0])


def test_a_backend_without_a_name_leaves_nothing(process: Any, backend: Backend) -> None:
    backend.running = 0.03
    unnamed = VaeSettings(mode="whole", temporal_slice=1, compile={"backend": backend.compile})
    decode_raw(process(), Z, unnamed)
    graphs = backend.graphs
    decode_raw(process(), Z, unnamed)
    assert backend.graphs > graphs

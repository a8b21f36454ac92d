"""torch.compile of a slice: one graph, the same result, no needless recompilation; and the memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from golden_models import golden_config, golden_weights

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.optimizations.decode_memory import LiveElements
from fastdiffusers.vae import VaeSettings, VideoVAE, decode_raw, encode_raw, from_state_dict, planner
from fastdiffusers.vae.execution import Execution, Layout, StreamState

Latents = Callable[..., torch.Tensor]


class Counter:
    """A dynamo backend that runs what it is given and counts how often it was asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def tiny() -> VideoVAE:
    return from_state_dict(golden_weights("small_q"), config=golden_config("small_q"))


@pytest.mark.parametrize(("carry", "layout"), [(False, Layout()), (True, Layout()), (True, Layout(rows=2, columns=2))])
def test_a_decode_slice_is_one_graph(tiny: VideoVAE, latents: Latents, carry: bool, layout: Layout) -> None:
    run = Execution(StreamState(), carry, layout)
    explained = torch._dynamo.explain(tiny.decode_slice)(latents(2, 4, 4), run)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


def test_a_later_slice_is_one_graph_too(tiny: VideoVAE, latents: Latents) -> None:
    state = StreamState()
    with torch.no_grad():
        tiny.decode_slice(latents(2, 4, 4), Execution(state, carry=True))
    explained = torch._dynamo.explain(tiny.decode_slice)(latents(1, 4, 4), Execution(state, carry=True))
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


def test_compiled_and_eager_agree(tiny: VideoVAE, latents: Latents) -> None:
    z = latents(4, 4, 4)
    plain, _ = decode_raw(tiny, z, VaeSettings(mode="whole", temporal_slice=1))
    counter = Counter()
    chosen = VaeSettings(mode="whole", temporal_slice=1, compile={"backend": counter})
    compiled, report = decode_raw(tiny, z, chosen)
    assert counter.graphs > 0
    assert float((compiled - plain).abs().max() / plain.std()) <= 2e-5
    assert report["torch_compile"].applied != "off"
    pixels = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, _ = encode_raw(tiny, pixels, VaeSettings(mode="whole"))
    result, _ = encode_raw(tiny, pixels, chosen)
    assert float((result - expected).abs().max() / expected.std()) <= 2e-5


def test_further_clips_and_resolutions_settle(tiny: VideoVAE, latents: Latents) -> None:
    counter = Counter()
    chosen = VaeSettings(mode="whole", temporal_slice=1, compile={"backend": counter})
    decode_raw(tiny, latents(4, 4, 4), chosen)
    first = counter.graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        decode_raw(tiny, latents(4, 4, 4, seed=1), chosen)  # a second clip
        decode_raw(tiny, latents(6, 4, 4), chosen)  # a longer one: more slices of the same kind
    assert counter.graphs == first
    decode_raw(tiny, latents(4, 6, 5), chosen)  # a second resolution: once more for each kind of slice
    assert counter.graphs <= 2 * first
    settled = counter.graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        decode_raw(tiny, latents(4, 7, 8), chosen)  # a third one is free
    assert counter.graphs == settled


@pytest.mark.parametrize(("frames", "height", "width"), [(3, 8, 8), (1, 5, 7)])
def test_generated_code_agrees(tiny: VideoVAE, latents: Latents, frames: int, height: int, width: int) -> None:
    """With the compiler that users have, not only its graphs run as they are."""
    z = latents(frames, height, width)
    plain, _ = decode_raw(tiny, z, VaeSettings(mode="whole", temporal_slice=1))
    compiled, report = decode_raw(tiny, z, VaeSettings(mode="whole", temporal_slice=1, compile={}))
    assert not report["torch_compile"].failed, report["torch_compile"].reason
    assert float((compiled - plain).abs().max() / plain.std()) <= 2e-5


def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    raise ValueError("this compiler is broken")


def broken_later(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    def run(*args: torch.Tensor) -> object:
        raise RuntimeError("this code is broken")

    return run


@pytest.mark.parametrize("backend", [broken, broken_later])
def test_a_failing_compiler_costs_the_compilation_not_the_frames(
    tiny: VideoVAE, latents: Latents, backend: Callable[..., object]
) -> None:
    z = latents(3, 4, 4)
    plain, _ = decode_raw(tiny, z, VaeSettings(mode="whole", temporal_slice=1))
    result, report = decode_raw(tiny, z, VaeSettings(mode="whole", temporal_slice=1, compile={"backend": backend}))
    assert torch.equal(result, plain)
    record = report["torch_compile"]
    assert (record.applied, record.failed) == ("off", True)
    assert "is broken" in record.reason


def test_memory_that_runs_out_in_compiled_code_is_retried_with_less(tiny: VideoVAE, latents: Latents) -> None:
    calls = []

    def once_too_much(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        def run(*args: torch.Tensor) -> object:
            calls.append(1)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("out of memory")
            return graph.forward(*args)

        return run

    z = latents(3, 4, 4)
    plain, _ = decode_raw(tiny, z, VaeSettings(temporal_slice=1))
    result, report = decode_raw(tiny, z, VaeSettings(temporal_slice=1, compile={"backend": once_too_much}))
    assert float((result - plain).abs().max() / plain.std()) <= 2e-5
    assert any("out of memory" in note for note in report.notes)


def test_compiled_code_is_left_its_room(tiny: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "free_bytes", lambda device: 2 << 30)
    _, report = decode_raw(tiny, latents(2, 4, 4), VaeSettings(compile={"backend": "eager"}))
    assert "1 GiB for compiled code" in report["spatial"].cost
    _, report = decode_raw(tiny, latents(2, 4, 4), VaeSettings())
    assert "for compiled code" not in report["spatial"].cost


@pytest.mark.parametrize("share", [0.9, 0.7])
def test_the_budget_is_respected(small: VideoVAE, latents: Latents, share: float) -> None:
    z = latents(3, 24, 24)

    def peak(chosen: VaeSettings) -> int:
        with torch.no_grad(), LiveElements() as live:
            result, _ = decode_raw(small, z, chosen, Callbacks())
        return 4 * (live.peak - result.numel())

    budget = int(share * peak(VaeSettings(mode="whole", temporal_slice=1)))
    assert peak(VaeSettings(mode="exact", memory_budget_gib=budget / 2**30)) <= 1.1 * budget

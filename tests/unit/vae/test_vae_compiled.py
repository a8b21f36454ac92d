"""torch.compile of a slice: one graph, the same result, no needless recompilation; and the memory budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import golden_config, golden_weights

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.compile_clock import Compilations
from fastdiffusers.memory import LiveBytes, MemoryState
from fastdiffusers.vae import (
    VaeConfig,
    VaeSettings,
    VideoVAE,
    compiled,
    compiled_units,
    decode_raw,
    encode_raw,
    from_state_dict,
    planner,
)
from fastdiffusers.vae.compiled import compiled_network, with_our_graphs
from fastdiffusers.vae.kernels import Kernels, eager
from fastdiffusers.vae.kernels.conv_choice import rules
from fastdiffusers.vae.kernels.probe import probe
from fastdiffusers.vae.kernels.saved_choices import SavedChoices
from fastdiffusers.vae.network import blocks, causal_conv, convolution, polyphase, sources
from fastdiffusers.vae.network.execution import CarriedFrames, Execution, Layout
from fastdiffusers.vae.settings import COMPILE_SCOPES

Latents = Callable[..., torch.Tensor]

# dynamo runs the code by its own interpreter, twice as long where every line is counted.
pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fresh_dynamo")]


class Counter:
    """A dynamo backend that runs what it is given and counts how often it was asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def tiny() -> VideoVAE:
    return from_state_dict(golden_weights("small_q"), config=golden_config("small_q"))


@pytest.fixture
def least() -> VideoVAE:
    """Prepared as a loaded one is, and with every kind of layer of `tiny`, but the fewest: dynamo takes its time."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16, 32), "layers_per_block": 1, "temporal_scale_num": 1, "norm_num_groups": 4}
    config = VaeConfig(**sizes, use_quant_conv=True, use_post_quant_conv=True)
    return from_state_dict(VideoVAE(config).state_dict(), config=config)


@pytest.fixture
def shallow() -> VideoVAE:
    """With every kind of layer, and as few of them as can be: dynamo takes its time for each."""
    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(8, 16, 32), layers_per_block=1, temporal_scale_num=1, norm_num_groups=4)
    return VideoVAE(config).eval().requires_grad_(False)


@pytest.fixture
def flat() -> VideoVAE:
    """With a single upsampler: for what depends on the number of slices and their shapes."""
    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(8, 16), layers_per_block=1, temporal_scale_num=1, norm_num_groups=4)
    return VideoVAE(config).eval().requires_grad_(False)


def test_the_least_has_every_kind_of_layer(tiny: VideoVAE, least: VideoVAE) -> None:
    def kinds(vae: VideoVAE) -> set[object]:
        sizes = ("kernel_size", "stride", "temporal")
        return {(type(part), *(getattr(part, name, None) for name in sizes)) for part in vae.modules()}

    assert kinds(least) == kinds(tiny)
    assert len(list(least.decoder.modules())) < 0.8 * len(list(tiny.decoder.modules()))


@pytest.mark.parametrize(("carry", "layout"), [(False, Layout()), (True, Layout()), (True, Layout(rows=2, columns=2))])
def test_a_decode_slice_is_one_graph(least: VideoVAE, latents: Latents, carry: bool, layout: Layout) -> None:
    run = Execution(CarriedFrames(), carry, layout)
    explained = torch._dynamo.explain(least.decode_slice)(latents(2, 4, 4), run)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


def test_a_later_slice_is_one_graph_too(least: VideoVAE, latents: Latents) -> None:
    state = CarriedFrames()
    with torch.no_grad():
        least.decode_slice(latents(2, 4, 4), Execution(state, carry=True))
    explained = torch._dynamo.explain(least.decode_slice)(latents(1, 4, 4), Execution(state, carry=True))
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


def test_what_only_cards_do_is_one_graph_too(
    least: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias that is added later; and no choice of a convolution, which nothing can trace."""
    monkeypatch.setattr(convolution, "on_card", lambda x: True)
    with rules(alternatives=True):
        explained = torch._dynamo.explain(least.decode_slice)(latents(3, 4, 4), Execution(CarriedFrames(), carry=True))
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@pytest.mark.parametrize(
    ("compile", "left", "graphs"),
    [
        (None, None, False),
        ({"mode": "max-autotune-no-cudagraphs"}, {"mode": "max-autotune-no-cudagraphs"}, False),
        ({"mode": "reduce-overhead", "dynamic": True}, {"dynamic": True}, True),
        ({"mode": "max-autotune"}, {"mode": "max-autotune-no-cudagraphs"}, True),
        ({"backend": "cudagraphs"}, None, True),
    ],
)
def test_graphs_are_recorded_by_us_and_not_by_the_compiler(compile: Any, left: Any, graphs: bool) -> None:
    """The compiler's would be overwritten under the frames that are carried on."""
    settings = with_our_graphs(VaeSettings(compile=compile))
    assert settings.compile == left
    assert settings.cuda_graphs == graphs


@pytest.mark.parametrize("scope", COMPILE_SCOPES)
def test_compiled_and_eager_agree(shallow: VideoVAE, flat: VideoVAE, latents: Latents, scope: str) -> None:
    vae = flat if scope == "slice" else shallow  # of a slice every layer is traced
    z = latents(4, 4, 4)
    plain, _ = decode_raw(vae, z, VaeSettings(mode="whole", temporal_slice=1))
    counter = Counter()
    chosen = VaeSettings(
        mode="whole", temporal_slice=1, compile_trial=False, compile={"backend": counter}, compile_scope=scope
    )
    compiled, report = decode_raw(vae, z, chosen)
    assert counter.graphs > 0
    assert float((compiled - plain).abs().max() / plain.std()) <= 2e-5
    assert report["torch_compile"].applied != "off"
    assert f"({counter.graphs} times)" in report["torch_compile"].cost
    pixels = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, _ = encode_raw(vae, pixels, VaeSettings(mode="whole"))
    result, _ = encode_raw(vae, pixels, chosen)
    assert float((result - expected).abs().max() / expected.std()) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("operation", compiled_units.UNITS)
def test_units_do_what_the_operations_they_stand_for_do(operation: str, last: bool, dtype: torch.dtype) -> None:
    """With every option that there is: the check that fused kernels have to pass.

    Two channels make a group: of a single one the norm would take any bias away.
    """
    units = compiled_units.CompiledKernels(Kernels("eager"), {"backend": "eager"}, lambda run: run())
    assert probe(operation, getattr(units, operation), "cpu", dtype, 64, last) == ""


@pytest.mark.parametrize("scope", COMPILE_SCOPES)
def test_compiled_and_eager_agree_where_biases_are_added_later(
    scope: str, flat: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card the norm adds the bias of the convolution before it."""
    for module in (causal_conv, polyphase, sources, blocks):
        monkeypatch.setattr(module, "bias_is_a_pass", lambda _x: True)
    z = latents(4, 4, 4)
    plain, _ = decode_raw(flat, z, VaeSettings(mode="whole", temporal_slice=1))
    chosen = VaeSettings(
        mode="whole", temporal_slice=1, compile_trial=False, compile={"backend": "eager"}, compile_scope=scope
    )
    result, report = decode_raw(flat, z, chosen)
    assert report["torch_compile"].applied != "off", report["torch_compile"].reason
    assert float((result - plain).abs().max() / plain.std()) <= 2e-5


def test_further_clips_and_resolutions_settle(flat: VideoVAE, latents: Latents) -> None:
    counter = Counter()
    chosen = VaeSettings(
        mode="whole", temporal_slice=1, compile_trial=False, compile={"backend": counter}, compile_scope="slice"
    )
    decode_raw(flat, latents(4, 4, 4), chosen)
    first = counter.graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        decode_raw(flat, latents(4, 4, 4, seed=1), chosen)  # a second clip
        decode_raw(flat, latents(6, 4, 4), chosen)  # a longer one: more slices of the same kind
    assert counter.graphs == first
    decode_raw(flat, latents(4, 6, 5), chosen)  # a second resolution: once more for each kind of slice
    assert counter.graphs <= 2 * first
    settled = counter.graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        decode_raw(flat, latents(4, 7, 8), chosen)  # a third one is free
    assert counter.graphs == settled


def test_units_are_compiled_once_for_every_size_layer_and_strip(shallow: VideoVAE, latents: Latents) -> None:
    """So that a full-size decoder compiles no more than this one, and another resolution or clip nothing at all."""
    counter = Counter()

    def run(z: torch.Tensor, **how: Any) -> None:
        chosen = VaeSettings(temporal_slice=2, compile_trial=False, compile={"backend": counter}, **how)
        result, report = decode_raw(shallow, z, chosen)
        expected, _ = decode_raw(shallow, z, VaeSettings(mode="whole"))
        assert float((result - expected).abs().max() / expected.std()) <= 2e-5
        assert report["torch_compile"].applied == "repeated units, for any size"
        assert "group_norm_silu: torch.compile" in report["kernels"].applied

    run(latents(4, 4, 4), mode="whole")
    first = counter.graphs
    assert first == 3  # moments, norms with activation and without
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(latents(6, 5, 7, seed=1), mode="whole")
    assert counter.graphs == first
    run(latents(4, 6, 5), mode="exact", strips=(2, 2))
    assert counter.graphs <= first + 4  # views of whole planes, which their statistics may be taken of too
    settled = counter.graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(latents(3, 9, 8), mode="exact", strips=(3, 2))
    assert counter.graphs == settled


def test_the_report_counts_every_unit(flat: VideoVAE, latents: Latents) -> None:
    class Slow(Counter):
        def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
            time.sleep(0.1)
            return super().__call__(graph, inputs)

    slow, began = Slow(), time.perf_counter()
    chosen = VaeSettings(mode="whole", compile={"backend": slow}, compile_trial=False)
    _, report = decode_raw(flat, latents(1, 4, 4), chosen)
    cost = report["torch_compile"].cost
    assert f"({slow.graphs} times), first run only; checking it against plain code took" in cost
    assert 0.1 * slow.graphs <= float(cost.split()[2]) <= time.perf_counter() - began
    _, report = decode_raw(flat, latents(1, 4, 4), chosen)
    assert report["torch_compile"].cost == ""  # of that run, in which nothing was compiled


def test_generated_code_agrees(tiny: VideoVAE) -> None:
    """With the compiler that users have, not only its graphs run as they are: one block at the beginning of a clip."""
    block = tiny.decoder.up_blocks[0].resnets[0]
    x = torch.randn(1, 48, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        plain = block(x.clone(memory_format=torch.preserve_format), Execution())
        compiled = torch.compile(block, fullgraph=True)(x.clone(memory_format=torch.preserve_format), Execution())
    assert float((compiled - plain).abs().max() / plain.std()) <= 2e-5


def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    raise ValueError("this compiler is broken")


def broken_later(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    def run(*args: torch.Tensor) -> object:
        raise RuntimeError("this code is broken")

    return run


def wrong(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    def run(*args: torch.Tensor) -> object:
        made = [2 * value for value in graph.forward(*args)]
        for tensor in () if made else args:  # units write to where they are told; a slice returns what it makes
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 3:
                tensor.mul_(2)
        return made

    return run


def test_statistics_of_what_was_put_together_in_time() -> None:
    """The one-pass variance of torch 2.13's inductor is wrong here; the compiler that users have is asked."""
    weight = torch.randn(512, 512, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    x = torch.randn(1, 512, 3, 34, 34).contiguous(memory_format=torch.channels_last_3d)

    def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty((1, 512, 3, 32, 32), memory_format=torch.channels_last_3d)
        for frame in range(3):
            kernel = weight[:, :, 2 - frame :].contiguous(memory_format=torch.channels_last_3d)
            out[:, :, frame : frame + 1].copy_(torch.nn.functional.conv3d(x[:, :, : frame + 1], kernel))
        moments = eager.group_norm_statistics(out, 32)
        return moments.mean, moments.deviations

    with torch.inference_mode():
        expected = statistics(x)
        mean, deviations = torch.compile(statistics)(x)
    torch.testing.assert_close(mean, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(deviations, expected[1], atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    ("backend", "scope"), [(broken, "blocks"), (broken_later, "blocks"), (wrong, "blocks"), (wrong, "slice")]
)
def test_a_failing_compiler_costs_the_compilation_not_the_frames(
    shallow: VideoVAE, latents: Latents, backend: Callable[..., object], scope: str
) -> None:
    z = latents(3, 4, 4)
    plain, _ = decode_raw(shallow, z, VaeSettings(mode="whole", temporal_slice=1))
    chosen = VaeSettings(mode="whole", temporal_slice=1, compile={"backend": backend}, compile_scope=scope)
    result, report = decode_raw(shallow, z, chosen)
    assert torch.equal(result, plain)
    record = report["torch_compile"]
    assert (record.applied, record.failed) == ("off", True)
    assert "is broken" in record.reason or "is off by" in record.reason


def test_what_failed_to_compile_is_not_tried_again_at_the_next_decode(shallow: VideoVAE, latents: Latents) -> None:
    tries = 0

    def failing(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        nonlocal tries
        tries += 1
        raise ValueError("this compiler is broken")

    chosen = VaeSettings(mode="whole", temporal_slice=1, compile={"backend": failing})
    _, first = decode_raw(shallow, latents(3, 4, 4), chosen)
    assert tries == 1
    _, second = decode_raw(shallow, latents(3, 4, 4), chosen)
    assert tries == 1
    assert (first["torch_compile"].cost != "", second["torch_compile"].cost) == (True, "")
    assert second["torch_compile"].reason == first["torch_compile"].reason


def test_memory_that_runs_out_in_compiled_code_is_no_fault_of_the_compiler(shallow: VideoVAE, latents: Latents) -> None:
    """So that the decode is tried again with less, which `test_vae_robustness` shows."""

    def too_much(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        def run(*args: torch.Tensor) -> object:
            raise torch.OutOfMemoryError("injected")

        return run

    network = compiled_network(shallow, planner.decoding(shallow.config), {"backend": too_much})
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError, match="injected"):
        network(latents(1, 4, 4), Execution())


def test_compiled_code_is_left_its_room(shallow: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "device_memory", lambda device: MemoryState(2 << 30, 4 << 30))
    _, report = decode_raw(shallow, latents(2, 4, 4), VaeSettings(compile={"backend": "eager"}))
    assert "1 GiB for compiled code" in report["spatial"].cost
    free = VaeSettings(compile={"backend": "eager"}, compile_memory_check=False)
    _, report = decode_raw(shallow, latents(2, 4, 4), free)
    assert "for compiled code" not in report["spatial"].cost
    assert not any("memory check" in note for note in report.notes)  # there was nothing to overrule
    little = replace(free, compile_headroom_gib=3.0)
    _, report = decode_raw(shallow, latents(2, 4, 4), little)
    assert any("against the memory check" in note and "3 for compiled code" in note for note in report.notes)
    _, report = decode_raw(shallow, latents(2, 4, 4), VaeSettings())
    assert "for compiled code" not in report["spatial"].cost


def test_the_budget_is_respected(small: VideoVAE, latents: Latents) -> None:
    z = latents(3, 16, 16)

    def peak(chosen: VaeSettings) -> int:
        with torch.no_grad(), LiveBytes() as live:
            result, _ = decode_raw(small, z, chosen, Callbacks())
        return live.peak - result.nbytes

    whole = peak(VaeSettings(mode="whole", temporal_slice=1))
    for budget in (0.9 * whole, 0.7 * whole):
        assert peak(VaeSettings(mode="exact", memory_budget_gib=budget / 2**30)) <= 1.1 * budget


def test_the_next_process_is_told_what_compiling_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "SAVED", SavedChoices(tmp_path / "kernels.json", {}))
    monkeypatch.setattr(compiled, "_taken", {})
    settings, cpu = VaeSettings(compile={}), torch.device("cpu")

    def time(**changes: Any) -> compiled.CompileTime:
        monkeypatch.setattr(compiled, "_last", {})  # as a new process
        return compiled.CompileTime("decode", replace(settings, **changes), cpu)

    first = time()
    for made in (Compilations(2, 3.0), Compilations(), Compilations(1, 1.5)):
        first.add(made)
    assert first.last is None
    assert time().last == 4.5
    assert time(compile_scope="slice").last is None

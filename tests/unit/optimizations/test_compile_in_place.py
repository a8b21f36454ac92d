"""torch.compile on real pipelines: what is compiled, how it fails, and that nothing of it stays."""

from __future__ import annotations

import os
import re
from itertools import groupby

import pytest
import torch
import torch._dynamo
import torch._dynamo.config

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations import attention, compile
from fastdiffusers.optimizations.apply import active, apply, revert
from fastdiffusers.optimizations.components import denoisers, repeated_blocks
from fastdiffusers.optimizations.quantization.sdnq import import_sdnq_safely, is_sdnq, sdnq_installed
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings, Workload
from fastdiffusers.pipelines.tiny import TINY_FAMILIES


def compiling(backend="eager", choice="on", tiling="off", memory_mode="gpu", attention="sdpa", **how):
    return OptimizationSettings(
        attention=attention,
        torch_compile=choice,
        compile=CompileSettings(backend=backend, **how),
        vae_tiling=TilingSettings(mode=tiling, slicing="off"),
        memory_mode=memory_mode,
    )


pytestmark = pytest.mark.usefixtures("fresh_dynamo", "room")

PLAIN = OptimizationSettings.plain(memory_mode="gpu")


@pytest.fixture
def graphs(monkeypatch):
    """A backend named "counting" that runs graphs as they are, and the list of those it was given."""
    seen = []

    def counting(graph, example_inputs):
        seen.append(graph)
        return graph.forward

    register(monkeypatch, "counting", counting)
    return seen


def register(monkeypatch, name, function):
    from torch._dynamo.backends import registry

    function._tags = ()
    monkeypatch.setitem(registry._COMPILER_FNS, name, function)
    monkeypatch.setitem(registry._BACKENDS, name, None)


def run(pipeline, family, settings, picture, report=None, **options):
    report = report or apply(pipeline, settings)
    with active(pipeline, settings, report):
        return picture(pipeline, family, **options), report


def compiled_modules(pipeline):
    parts = [*denoisers(pipeline).values(), pipeline.vae]
    return [m for part in parts for m in part.modules() if m._compiled_call_impl is not None]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_compiles_its_blocks_to_the_same_picture(family, tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline(family)
    plain = picture(pipeline, family)
    ticks = []
    settings = compiling("counting")
    report = apply(pipeline, settings, callbacks=Callbacks(on_progress=ticks.append))
    with active(pipeline, settings, report):
        result = picture(pipeline, family)

    record = report["torch_compile"]
    assert not record.failed, record.reason
    assert graphs
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    expected = {name: repeated_blocks(model) for name, model in denoisers(pipeline).items()}
    assert compiled_modules(pipeline) == [block for blocks in expected.values() for block in blocks]
    for name, blocks in expected.items():
        assert f"{name} ({len(blocks)} blocks)" in record.applied
    assert "compiling took" in record.cost
    assert {tick.stage for tick in ticks} == {"compile"}
    steps = [done for done, _ in groupby(tick.done for tick in ticks)]  # while one compiles, its seconds go up
    assert steps == [done for blocks in expected.values() for done in range(len(blocks) + 1)]
    assert ticks[-1].done == ticks[-1].total
    told = re.compile(r"\w+: (block (\d+) of (\d+)|whole), \d+ s so far \(first run only")
    for tick in (tick for tick in ticks if tick.done < tick.total):
        found = told.match(tick.message)
        assert found, tick.message
        assert found[2] is None or (int(found[2]), int(found[3])) == (tick.done + 1, tick.total)

    revert(pipeline)
    assert compiled_modules(pipeline) == []
    assert not any("_compiled_call_impl" in m.__dict__ for p in denoisers(pipeline).values() for m in p.modules())
    assert torch.equal(picture(pipeline, family), plain)
    assert not any(key.startswith("_orig_mod") for key in pipeline.components)


def test_blocks_are_found_where_diffusers_names_none(tiny_pipeline):
    sd3 = tiny_pipeline("sd3").transformer
    assert not sd3._repeated_blocks
    assert repeated_blocks(sd3) == list(sd3.transformer_blocks)
    unet = tiny_pipeline("sdxl").unet
    unet._repeated_blocks = []
    found = repeated_blocks(unet)
    assert len(set(found)) == len(found)
    inside = {module for block in found for module in block.modules() if module is not block}
    assert not inside & set(found)


@pytest.mark.parametrize("family", ["sdxl", "zimage"])
def test_after_the_second_size_nothing_compiles_again(family, tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline(family)
    settings = compiling("counting")
    run(pipeline, family, settings, picture, edge=32, prompt="a cat")
    run(pipeline, family, settings, picture, edge=48, prompt="a cat and a dog")
    count = len(graphs)
    for edge, prompt in ((64, "a horse on a very large green meadow"), (80, "x"), (32, "two cats")):
        run(pipeline, family, settings, picture, edge=edge, prompt=prompt)
    assert len(graphs) == count


def test_hot_settings_keep_compiled_code(tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline("sd3")
    run(pipeline, "sd3", compiling("counting"), picture)
    count, calls = len(graphs), [m._compiled_call_impl for m in compiled_modules(pipeline)]
    _, report = run(pipeline, "sd3", compiling("counting", tiling="on"), picture)
    assert report["vae_tiling"].applied != "off"
    assert [m._compiled_call_impl for m in compiled_modules(pipeline)] == calls
    run(pipeline, "sd3", PLAIN, picture)
    assert compiled_modules(pipeline) == []
    run(pipeline, "sd3", compiling("counting"), picture)
    assert len(graphs) == count  # dynamo had kept the code


def test_whole_model(tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline("sd3")
    plain = picture(pipeline, "sd3")
    result, report = run(pipeline, "sd3", compiling("counting", scope="model"), picture)
    assert report["torch_compile"].applied.startswith("transformer (whole)")
    assert compiled_modules(pipeline) == [pipeline.transformer]
    assert len(graphs) == 1
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    assert not any("_orig_mod" in name for name in pipeline.transformer.state_dict())


@pytest.mark.parametrize(("family", "tiling"), [("sdxl", "off"), ("wan22-t2v", "on")])
def test_the_decoders_stages_with_and_without_tiles(family, tiling, tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline(family)
    settings = compiling("counting", compile_vae=True, tiling=tiling)
    plain, _ = run(pipeline, family, OptimizationSettings.plain(vae_tiling=settings.vae_tiling), picture)
    result, report = run(pipeline, family, settings, picture)
    record = report["torch_compile"]
    assert not record.failed, record.reason
    assert "vae (" in record.applied
    assert set(compile.decoder_blocks(pipeline.vae)) < set(compiled_modules(pipeline))
    assert pipeline.vae not in compiled_modules(pipeline)
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    run(pipeline, family, compiling("counting"), picture)
    assert not set(compile.decoder_blocks(pipeline.vae)) & set(compiled_modules(pipeline))


@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_a_backend_that_raises_costs_the_compilation_not_the_picture(scope, tiny_pipeline, picture, monkeypatch):
    def broken(graph, example_inputs):
        raise ValueError("this compiler is broken")

    register(monkeypatch, "broken", broken)
    pipeline = tiny_pipeline("wan22-t2v")
    plain = picture(pipeline, "wan22-t2v")
    settings = compiling("broken", scope=scope)
    result, report = run(pipeline, "wan22-t2v", settings, picture)
    record = report["torch_compile"]
    assert torch.equal(result, plain)
    assert (record.applied, record.failed) == ("off", True)
    assert "this compiler is broken" in record.reason
    assert compiled_modules(pipeline) == []

    again = apply(pipeline, settings)["torch_compile"]  # not tried again
    assert (again.applied, again.failed, again.reason) == ("off", True, record.reason)
    revert(pipeline)
    assert not apply(pipeline, compiling("eager", scope=scope))["torch_compile"].failed


def test_a_graph_break_is_allowed_after_the_first_try(tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline("sd3")
    plain = picture(pipeline, "sd3")
    block = pipeline.transformer.transformer_blocks[0]
    original = type(block).forward

    def broken_up(self, *args, **kwargs):
        torch._dynamo.graph_break()
        return original(self, *args, **kwargs)

    for block in pipeline.transformer.transformer_blocks:
        block.forward = broken_up.__get__(block)
    result, report = run(pipeline, "sd3", compiling("counting"), picture)
    assert not report["torch_compile"].failed, report["torch_compile"].reason
    assert len(compiled_modules(pipeline)) == 3
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    revert(pipeline)
    torch._dynamo.reset()

    result, report = run(pipeline, "sd3", compiling("counting", fullgraph="on"), picture)
    assert report["torch_compile"].failed  # asked for by name, so it is not given up
    assert torch.equal(result, plain)


def test_compiled_code_that_gives_nan_is_replaced(tiny_pipeline, picture, monkeypatch):
    def poisonous(graph, example_inputs):
        return lambda *args: tuple(out * float("nan") for out in graph(*args))

    register(monkeypatch, "poisonous", poisonous)
    pipeline = tiny_pipeline("sd3")
    plain = picture(pipeline, "sd3")
    result, report = run(pipeline, "sd3", compiling("poisonous"), picture)
    assert torch.equal(result, plain)
    assert "NaN" in report["torch_compile"].reason


def test_a_failure_at_a_later_call_is_caught_too(tiny_pipeline, picture, monkeypatch):
    calls = []

    def tiring(graph, example_inputs):
        def call(*args):
            calls.append(1)
            if len(calls) > 4:
                raise RuntimeError("worn out")
            return graph(*args)

        return call

    register(monkeypatch, "tiring", tiring)
    pipeline = tiny_pipeline("sd3")
    plain = picture(pipeline, "sd3")
    result, report = run(pipeline, "sd3", compiling("tiring"), picture)
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    assert "a later call" in report["torch_compile"].reason
    assert "worn out" in report["torch_compile"].reason


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_out_of_memory_and_interrupts_travel(error, tiny_pipeline, picture, monkeypatch):
    def failing(graph, example_inputs):
        def call(*args):
            raise error

        return call

    register(monkeypatch, "failing", failing)
    pipeline = tiny_pipeline("sd3")
    with pytest.raises(type(error)):
        run(pipeline, "sd3", compiling("failing"), picture)
    assert torch.equal(run(pipeline, "sd3", PLAIN, picture)[0], picture(tiny_pipeline("sd3"), "sd3"))


def test_a_cancel_between_two_blocks_travels_and_leaves_the_pipeline_usable(tiny_pipeline, picture, graphs):
    class Interrupted(Exception):
        """An ordinary exception, as ComfyUI's own is."""

    ticks = []

    def cancel():
        if ticks[-1].done == 1:
            raise Interrupted

    pipeline = tiny_pipeline("sd3")
    plain = picture(pipeline, "sd3")
    settings = compiling("counting")
    report = apply(pipeline, settings, callbacks=Callbacks(ticks.append, cancel))
    with pytest.raises(Interrupted), active(pipeline, settings, report):
        picture(pipeline, "sd3")
    assert {tick.done for tick in ticks} == {0, 1}
    assert not report["torch_compile"].failed
    pipeline.maybe_free_model_hooks()
    result, report = run(pipeline, "sd3", settings, picture)
    assert not report["torch_compile"].failed
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


def test_a_failing_kernel_is_not_blamed_on_the_compiler(tiny_pipeline, picture, graphs, kernels):
    pipeline = tiny_pipeline("sd3")
    plain = picture(pipeline, "sd3")
    settings = compiling("counting", attention="xformers")
    report = apply(pipeline, settings)
    assert report["attention"].applied == "xformers"
    kernels.fail = RuntimeError("illegal instruction")
    result, report = run(pipeline, "sd3", settings, picture, report)
    assert report["attention"].failed
    assert report["attention"].applied == "sdpa"
    assert not report["torch_compile"].failed, report["torch_compile"].reason
    assert len(compiled_modules(pipeline)) == 3
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", ["sdxl", "flux2-klein"])
def test_compiled_code_with_another_kernel(family, tiny_pipeline, picture, graphs, kernels):
    """The redirection of older processors is traced into one graph like any other code."""
    pipeline = tiny_pipeline(family)
    plain = picture(pipeline, family)
    result, report = run(pipeline, family, compiling("counting", attention="flash", fullgraph="on"), picture)
    assert not report["torch_compile"].failed, report["torch_compile"].reason
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


def test_errors_of_the_model_itself_are_its_own(tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline("sd3")
    del pipeline.transformer.transformer_blocks[0].ff
    with pytest.raises(AttributeError, match="ff"):
        run(pipeline, "sd3", compiling("counting"), picture)


def test_group_offloading_and_compiling_together(tiny_pipeline, picture, graphs):
    pipeline = tiny_pipeline("sd3")
    plain = picture(pipeline, "sd3")
    result, report = run(pipeline, "sd3", compiling("counting", memory_mode="group_offload_block"), picture)
    record = report["torch_compile"]
    assert not record.failed, record.reason
    assert "no fullgraph: group offloading" in record.reason
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


def test_a_model_quantized_with_sdnq_compiles(tiny_pipeline, picture, graphs):
    if not sdnq_installed():
        pytest.skip("SDNQ is an optional package")
    pipeline = tiny_pipeline("sd3")
    scheme = {"weights_dtype": "uint4", "torch_dtype": torch.float32, "minimum_allowed_numel": 256}
    with import_sdnq_safely():
        from sdnq.quantizer import sdnq_post_load_quant

        pipeline.transformer = sdnq_post_load_quant(pipeline.transformer, **scheme)
    assert is_sdnq(pipeline.transformer)
    plain = picture(pipeline, "sd3")
    result, report = run(pipeline, "sd3", compiling("counting"), picture)
    assert not report["torch_compile"].failed, report["torch_compile"].reason
    assert graphs
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


def test_global_limits_hold_only_while_active(tiny_pipeline):
    config = torch._dynamo.config
    before = (config.recompile_limit, config.accumulated_recompile_limit, config.suppress_errors)
    pipeline, settings = tiny_pipeline("flux"), compiling(recompile_limit=77)
    report = apply(pipeline, settings)
    assert config.recompile_limit == before[0]
    with active(pipeline, settings, report):
        assert config.recompile_limit == 77
        assert config.accumulated_recompile_limit >= 77
    with pytest.raises(ZeroDivisionError), active(pipeline, settings, report):
        raise ZeroDivisionError
    assert (config.recompile_limit, config.accumulated_recompile_limit, config.suppress_errors) == before


def test_artifacts_go_to_the_packs_folder_and_the_environment_is_restored(tiny_pipeline, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTDIFFUSERS_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    pipeline, settings = tiny_pipeline("flux"), compiling()
    report = apply(pipeline, settings)
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # torch may have set it to its own default
    with active(pipeline, settings, report):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
        os.environ["TRITON_CACHE_DIR"] = "inductor's"
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before
    assert os.environ["TRITON_CACHE_DIR"] == "mine"

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "the user's")
    with active(pipeline, settings, report):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "the user's"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    with active(pipeline, compiling(keep_artifacts=False), report):
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_too_little_memory_declines_with_figures(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    little = lambda device: MemoryState(int(2.5 * GIB), 24 * GIB)
    record = apply(pipeline, compiling(), memory=little)["torch_compile"]
    assert (record.applied, record.failed) == ("off", True)
    for figure in ("2.00 GiB assumed for compiled code", "1.00 GiB to stay free", "2.50 GiB of 24.00 GiB are free"):
        assert figure in record.reason
    assert apply(pipeline, compiling(headroom_gib=0.25), memory=little)["torch_compile"].applied != "off"
    assert compiled_modules(pipeline)
    apply(pipeline, compiling(), memory=little)
    assert not compiled_modules(pipeline)


def test_compiled_code_that_is_already_there_is_not_declined_again(tiny_pipeline, picture, graphs):
    pipeline, settings = tiny_pipeline("sd3"), compiling("counting")
    run(pipeline, "sd3", settings, picture)
    none_left = lambda device: MemoryState(0, 24 * GIB)
    assert apply(pipeline, settings, memory=none_left)["torch_compile"].applied != "off"


def test_an_unknown_backend_is_named_with_the_known_ones(tiny_pipeline):
    record = apply(tiny_pipeline("flux"), compiling("inducto"))["torch_compile"]
    assert record.failed
    assert "'inducto'" in record.reason
    assert "inductor" in record.reason


def test_a_mode_that_the_backend_cannot_have_is_caught(tiny_pipeline, monkeypatch):
    from fastdiffusers.optimizations import compiled_region

    def refuse(*args, **kwargs):
        raise RuntimeError("either mode or options, not both")

    monkeypatch.setattr(compiled_region.torch, "compile", refuse)
    pipeline = tiny_pipeline("flux")
    record = apply(pipeline, compiling())["torch_compile"]
    assert record.failed
    assert "either mode or options" in record.reason
    assert not compiled_modules(pipeline)


def test_mode_and_dynamic_are_passed_on_and_options_never(tiny_pipeline, monkeypatch):
    from fastdiffusers.optimizations import compiled_region

    seen = []
    monkeypatch.setattr(compiled_region.torch, "compile", lambda call, **kwargs: seen.append(kwargs) or call)
    pipeline = tiny_pipeline("sd3")
    apply(pipeline, compiling("inductor"))
    apply(pipeline, compiling("inductor", mode="max-autotune-no-cudagraphs", dynamic="on", fullgraph="off"))
    apply(pipeline, compiling("eager", mode="max-autotune", dynamic="off"))
    first, second, third = seen[0], seen[3], seen[6]
    assert first == {"backend": "inductor", "dynamic": None, "fullgraph": True}
    expected = {"backend": "inductor", "dynamic": True, "fullgraph": False, "mode": "max-autotune-no-cudagraphs"}
    assert second == expected
    assert third == {"backend": "eager", "dynamic": False, "fullgraph": True}


def test_auto_says_what_it_is_missing(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    record = apply(pipeline, compiling(choice="auto"))["torch_compile"]
    assert (record.applied, record.failed) == ("off", False)
    assert "processor" in record.reason
    assert "measured" in compile.auto_refusal("cuda", Workload(1024, 1024, steps=28))
    assert "pays back after" in compile.auto_refusal("cuda", Workload(1024, 1024, steps=4, step_seconds=0.1))
    assert compile.auto_refusal("cuda", Workload(1024, 1024, steps=28, step_seconds=60.0)) == ""


def test_bookkeeping_keeps_no_model_alive(tiny_pipeline, picture, graphs, kernels):
    import gc
    import weakref

    pipeline = tiny_pipeline("sd3")
    run(pipeline, "sd3", compiling("counting", attention="xformers", scope="model"), picture)
    references = [weakref.ref(pipeline), weakref.ref(pipeline.transformer), weakref.ref(pipeline.vae)]
    torch._dynamo.reset()
    graphs.clear()
    del pipeline
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    assert not attention._in_use or all(model is not None for model in attention._in_use)

"""The front door: applying A and then B is applying B, bit for bit, on every family; and nothing stays behind."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch._dynamo

from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations.apply import active, apply, apply_to_vae, revert
from fastdiffusers.optimizations.components import attention_layers, denoisers, modules
from fastdiffusers.optimizations.settings import (
    CompileSettings,
    OptimizationSettings,
    PrecisionSettings,
    TilingSettings,
    Workload,
)
from fastdiffusers.pipelines.tiny import TINY_FAMILIES

EDGE = 96
pytestmark = pytest.mark.usefixtures("room")

WORK = Workload(EDGE, EDGE, steps=2)
TILES = TilingSettings("on", 64, 16, slicing="on")
RECORDS = (
    "attention",
    "step_cache",
    "memory_mode",
    "vae_tiling",
    "vae_slicing",
    "tf32",
    "cudnn_benchmark",
    "channels_last",
    "fused_projections",
    "torch_compile",
)

SETTINGS = {
    "plain": OptimizationSettings.plain(),
    "math": OptimizationSettings.plain(attention="math", precision=PrecisionSettings(channels_last="on")),
    "xformers in blocks": OptimizationSettings.plain(attention="xformers", memory_mode="group_offload_block"),
    "tiles": OptimizationSettings.plain(vae_tiling=TILES),
    "everything": OptimizationSettings(
        attention="flash", vae_tiling=TilingSettings("on", 80), memory_mode="group_offload_leaf"
    ),
}
COMPILED = {
    "plain": OptimizationSettings.plain(),
    "compiled": OptimizationSettings.plain(torch_compile="on", compile=CompileSettings("eager", dynamic="on")),
    "compiled tiles": OptimizationSettings.plain(
        torch_compile="on", compile=CompileSettings("eager", dynamic="on"), vae_tiling=TILES
    ),
}


def every_pair(names):
    """A walk through all settings in which each follows each other exactly once."""
    names = list(names)
    walk = [name for i, first in enumerate(names) for second in names[i + 1 :] for name in (first, second)]
    walk.append(names[0])
    assert len(set(pairwise(walk))) == len(walk) - 1 == len(names) * (len(names) - 1)
    return walk


def structure(pipeline):
    """What the optimizations may touch, by name: comparable, and holding nothing by reference that they change."""
    found = {}
    for name, model in modules(pipeline).items():
        for path, module in model.named_modules():
            keys = set(module.__dict__) & {"forward", "_diffusers_hook", "_hf_hook", "_compiled_call_impl"}
            if keys:
                found[name, path] = keys
        for path, parameter in model.named_parameters():
            found[name, path, "stride"] = (id(parameter), parameter.stride(), parameter.device)
    for name, model in denoisers(pipeline).items():
        for number, layer in enumerate(attention_layers(model)):
            found[name, number] = (id(layer.processor), sorted(vars(layer.processor)))
    vae = pipeline.vae
    found["vae"] = {key: value for key, value in vae.__dict__.items() if key.startswith(("tile_", "use_"))}
    return copy.deepcopy(found)


def run(pipeline, family, settings, picture):
    report = apply(pipeline, settings, workload=WORK)
    with active(pipeline, settings, report):
        return picture(pipeline, family, edge=EDGE), report


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_then_b_is_b(family, tiny_pipeline, picture, kernels):
    fresh = tiny_pipeline(family)
    bare = picture(fresh, family, edge=EDGE)
    alone = {name: run(tiny_pipeline(family), family, settings, picture) for name, settings in SETTINGS.items()}
    assert torch.equal(alone["plain"][0], bare)
    for name, (_, report) in alone.items():
        assert tuple(record.name for record in report) == RECORDS
        assert not [record for record in report if record.failed], name

    before = structure(fresh)
    for name in every_pair(SETTINGS):
        result, report = run(fresh, family, SETTINGS[name], picture)
        assert torch.equal(result, alone[name][0]), name
        assert report.records == alone[name][1].records, name
    revert(fresh)
    assert structure(fresh) == before
    assert torch.equal(picture(fresh, family, edge=EDGE), bare)


@pytest.mark.parametrize("family", ["sdxl", "wan22-t2v"])
def test_a_then_b_is_b_with_compiled_code(family, tiny_pipeline, picture, fresh_dynamo):
    fresh = tiny_pipeline(family)
    bare = picture(fresh, family, edge=EDGE)
    alone = {name: run(tiny_pipeline(family), family, settings, picture)[0] for name, settings in COMPILED.items()}
    before = structure(fresh)
    for name in every_pair(COMPILED):
        result, report = run(fresh, family, COMPILED[name], picture)
        assert torch.equal(result, alone[name]), name
        assert not report["torch_compile"].failed
    revert(fresh)
    assert structure(fresh) == before
    assert torch.equal(picture(fresh, family, edge=EDGE), bare)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_applying_twice_is_applying_once(family, tiny_pipeline, kernels):
    pipeline = tiny_pipeline(family)
    for settings in (*SETTINGS.values(), COMPILED["compiled"]):
        first = apply(pipeline, settings, workload=WORK)
        state = structure(pipeline)
        assert apply(pipeline, settings, workload=WORK) == first
        assert structure(pipeline) == state
    revert(pipeline)
    revert(pipeline)


def test_tiles_change_the_picture_and_untiled_is_back(tiny_pipeline, picture):
    """The comparisons above would pass if tiling did nothing."""
    pipeline = tiny_pipeline("flux")
    plain, _ = run(pipeline, "flux", SETTINGS["plain"], picture)
    tiled, _ = run(pipeline, "flux", SETTINGS["tiles"], picture)
    assert not torch.equal(tiled, plain)
    assert torch.equal(run(pipeline, "flux", SETTINGS["plain"], picture)[0], plain)


def test_the_defaults_change_nothing_on_a_machine_with_room(tiny_pipeline, picture):
    pipeline = tiny_pipeline("flux")
    bare, before = picture(pipeline, "flux", edge=EDGE), structure(pipeline)
    room = lambda device: MemoryState(100 * GIB, 100 * GIB)
    report = apply(pipeline, OptimizationSettings(), workload=WORK, memory=room)
    assert structure(pipeline) == before
    assert torch.equal(picture(pipeline, "flux", edge=EDGE), bare)
    assert {record.applied for record in report} == {"sdpa", "off", "on the cpu"}


def test_a_decode_by_itself_leaves_the_denoisers_alone(tiny_pipeline, kernels):
    pipeline = tiny_pipeline("wan22-t2v")
    settings = OptimizationSettings.plain(attention="xformers", torch_compile="on", compile=CompileSettings("eager"))
    apply(pipeline, settings)
    denoiser = lambda: {key: value for key, value in structure(pipeline).items() if key[0].startswith("trans")}
    before = denoiser()
    report = apply_to_vae(pipeline, SETTINGS["tiles"], workload=WORK)
    with active(pipeline, SETTINGS["tiles"], report):
        assert pipeline.vae.use_tiling
    assert denoiser() == before
    assert "attention" not in report
    assert report["vae_tiling"].applied == "tiles of 64 px"


def test_a_decode_by_itself_compiles_the_decoder_alone(tiny_pipeline):
    pipeline = tiny_pipeline("sdxl")
    before = structure(pipeline)
    how = CompileSettings("eager", compile_vae=True)
    settings = OptimizationSettings.plain(torch_compile="on", compile=how)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = pipeline.vae.decode(latents).sample
        report = apply_to_vae(pipeline, settings, workload=WORK)
        with active(pipeline, settings, report, vae_only=True):
            compiled = pipeline.vae.decode(latents).sample
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)
    assert report["torch_compile"].applied.startswith("vae (")
    assert "compiling took" in report["torch_compile"].cost
    changed = [key for key, value in structure(pipeline).items() if before.get(key) != value]
    assert {key[0] for key in changed} == {"vae"}
    revert(pipeline)
    assert structure(pipeline) == before


def test_pipelines_that_share_their_models_share_their_state(tiny_pipeline, picture, kernels):
    """`from_pipe` makes a second pipeline around the same models: what one switches, the other can undo."""
    from diffusers import FluxImg2ImgPipeline

    pipeline = tiny_pipeline("flux")
    before = structure(pipeline)
    apply(pipeline, SETTINGS["everything"], workload=WORK)
    revert(pipeline)
    assert structure(pipeline) == before
    other = FluxImg2ImgPipeline(**pipeline.components)
    apply(pipeline, OptimizationSettings.plain(attention="xformers", vae_tiling=TILES), workload=WORK)
    apply(other, OptimizationSettings.plain(), workload=WORK)
    assert structure(pipeline) == before


def test_the_device_of_the_weights_is_the_default(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    report = apply(pipeline, OptimizationSettings(memory_mode="model_offload"))
    assert report["memory_mode"].applied == "on the cpu"


def test_an_unknown_pipeline_without_vae_or_denoiser_is_served():
    class Odd:
        components = {"scheduler": object()}  # noqa: RUF012 - a pipeline's is a property

    report = apply(Odd(), OptimizationSettings(step_cache="off"))
    assert [record.name for record in report] == list(RECORDS)
    assert not [record for record in report if record.failed]
    revert(Odd())


def test_little_memory_shows_in_every_decision(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    little = lambda device: MemoryState(1, 8 * GIB)
    settings = OptimizationSettings(torch_compile="on", compile=CompileSettings("eager"))
    report = apply(pipeline, settings, workload=Workload(512, 512), memory=little)
    assert report["torch_compile"].failed
    assert report["vae_tiling"].applied == "tiles of 128 px"
    for name in ("torch_compile", "vae_tiling"):
        assert "of 8.00 GiB are free" in report[name].reason

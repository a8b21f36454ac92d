"""The memory check before compiling: nothing compiles that a fresh process would decline, whatever is warm."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
import torch

from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations import compile
from fastdiffusers.optimizations.apply import active, apply, apply_to_vae
from fastdiffusers.optimizations.compiled_region import Recipe
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings, Workload
from fastdiffusers.optimizations.tuning.auto import AutoRun
from fastdiffusers.optimizations.tuning.key import TuningKey
from fastdiffusers.optimizations.tuning.store import Store
from fastdiffusers.vae import VaeConfig, VaeSettings, VideoVAE, api, decode_raw

RECIPES = [
    ("inductor", "default"),
    ("inductor", "reduce-overhead"),
    ("inductor", "max-autotune"),
    ("inductor", "max-autotune-no-cudagraphs"),
    ("cudagraphs", "default"),
    ("aot_eager", "default"),
    ("eager", "default"),
]
SCOPES = ("blocks", "model")
HOW = [
    CompileSettings(backend=backend, mode=mode, scope=scope, compile_vae=compile_vae)
    for (backend, mode), scope, compile_vae in itertools.product(RECIPES, SCOPES, (False, True))
]
NO_ROOM = lambda device: MemoryState(0, 24 * GIB)
MUCH_ROOM = lambda device: MemoryState(20 * GIB, 24 * GIB)


def settings_of(how: CompileSettings) -> OptimizationSettings:
    tiling = TilingSettings(mode="off", slicing="off")
    return OptimizationSettings(torch_compile="on", compile=how, vae_tiling=tiling, memory_mode="gpu")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend and mode runs here: what is compiled is called as it is."""
    monkeypatch.setattr(Recipe, "compile", lambda self, call: call)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("warm", HOW, ids=lambda how: f"{how.backend}-{how.mode}-{how.scope}-{how.compile_vae}")
def test_warm_code_says_nothing_of_other_code(warm, tiny_pipeline, picture):
    pipeline = tiny_pipeline("flux")
    settings = settings_of(warm)
    report = apply(pipeline, settings, memory=MUCH_ROOM)
    with active(pipeline, settings, report):
        picture(pipeline, "flux")
    for asked in HOW:
        nothing_new = asked == warm or asked == replace(warm, compile_vae=False)
        assert compile.is_warm(pipeline, asked) == nothing_new, asked
    assert apply(pipeline, settings, memory=NO_ROOM)["torch_compile"].applied != "off"
    other = settings_of(replace(warm, scope="model" if warm.scope == "blocks" else "blocks"))
    record = apply(pipeline, other, memory=NO_ROOM)["torch_compile"]
    assert (record.applied, record.failed) == ("off", True)
    assert "out of memory" in record.reason


@pytest.mark.usefixtures("uncompiled")
def test_what_has_not_run_is_not_warm(tiny_pipeline):
    pipeline, settings = tiny_pipeline("flux"), settings_of(CompileSettings(backend="eager"))
    assert apply(pipeline, settings, memory=MUCH_ROOM)["torch_compile"].applied != "off"
    assert apply(pipeline, settings, memory=NO_ROOM)["torch_compile"].applied == "off"


@pytest.mark.usefixtures("uncompiled")
def test_warm_denoisers_say_nothing_of_the_decoder(tiny_pipeline, picture):
    pipeline, settings = tiny_pipeline("flux"), settings_of(CompileSettings(backend="eager", compile_vae=True))
    without = settings_of(CompileSettings(backend="eager"))
    report = apply(pipeline, without, memory=MUCH_ROOM)
    with active(pipeline, without, report):
        picture(pipeline, "flux")
    assert apply_to_vae(pipeline, settings, memory=NO_ROOM)["torch_compile"].applied == "off"


@pytest.mark.usefixtures("uncompiled")
def test_both_experts_have_to_be_warm(tiny_pipeline, picture):
    pipeline, settings = tiny_pipeline("wan22-t2v"), settings_of(CompileSettings(backend="eager"))
    report = apply(pipeline, settings, memory=MUCH_ROOM)
    with active(pipeline, settings, report):
        picture(pipeline, "wan22-t2v", steps=4)
        assert apply(pipeline, settings, memory=NO_ROOM)["torch_compile"].applied != "off"
    pipeline = tiny_pipeline("wan22-t2v")
    pipeline.register_to_config(boundary_ratio=0.0)  # the first expert makes every step
    report = apply(pipeline, settings, memory=MUCH_ROOM)
    with active(pipeline, settings, report):
        picture(pipeline, "wan22-t2v", steps=2)
    assert apply(pipeline, settings, memory=NO_ROOM)["torch_compile"].applied == "off"


def test_the_guard_yields_to_an_explicit_choice_alone_and_says_so(tiny_pipeline):
    pipeline, free = tiny_pipeline("flux"), CompileSettings(backend="eager", memory_check=False)
    report = apply(pipeline, settings_of(free), memory=NO_ROOM)
    assert report["torch_compile"].applied != "off"
    assert any("against the memory check" in note and "GiB" in note for note in report.notes)
    report = apply(pipeline, settings_of(free), memory=MUCH_ROOM)
    assert not any("memory check" in note for note in report.notes)  # there was nothing to overrule
    decoder = replace(free, compile_vae=True)
    assert apply_to_vae(pipeline, settings_of(decoder), memory=NO_ROOM)["torch_compile"].applied != "off"
    assert apply(pipeline, settings_of(CompileSettings(backend="eager")), memory=NO_ROOM)["torch_compile"].failed


def test_the_video_vae_is_told_the_choice_and_the_headroom():
    chosen = CompileSettings(headroom_gib=2.0, memory_check=False).for_video_vae()
    assert (chosen["compile_headroom_gib"], chosen["compile_memory_check"]) == (2.0, False)
    assert CompileSettings().for_video_vae()["compile_memory_check"]


def test_a_decision_of_auto_never_goes_against_the_guard(tiny_pipeline, tmp_path):
    pipeline, free = tiny_pipeline("flux"), CompileSettings(backend="eager", memory_check=False)
    key = TuningKey(*["x"] * len(fields(TuningKey)))
    chosen = OptimizationSettings(torch_compile="auto", compile=free)
    run = AutoRun(pipeline, chosen, key, Workload(), torch.device("cpu"), store=Store(tmp_path / "rows"))
    assert run.settings.compile.memory_check
    asked = replace(chosen, torch_compile="on")
    run = AutoRun(pipeline, asked, key, Workload(), torch.device("cpu"), store=Store(tmp_path / "rows"))
    assert not run.settings.compile.memory_check


@pytest.mark.parametrize(
    ("cudnn", "dtype", "check", "declined", "overruled"),
    [
        (91002, torch.bfloat16, True, True, False),
        (91002, torch.bfloat16, False, False, True),
        (91002, torch.float32, True, False, False),
        (91500, torch.bfloat16, True, False, False),
        (91500, torch.bfloat16, False, False, False),
    ],
)
def test_a_cudnn_that_takes_three_times_the_memory_is_an_obstacle_like_a_full_card(
    cudnn, dtype, check, declined, overruled, monkeypatch
):
    """A stand-in for the card: the decision is the card's, the decode is the processor's."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    decide = api.on_device
    monkeypatch.setattr(api, "on_device", lambda settings, device, *rest: decide(settings, torch.device("cuda"), *rest))
    config = VaeConfig(block_out_channels=(8, 16), layers_per_block=1, temporal_scale_num=1, norm_num_groups=4)
    vae = VideoVAE(config).to(dtype).eval().requires_grad_(False)
    chosen = VaeSettings(compile={"backend": "eager"}, compile_memory_check=check, compile_trial=False)
    _, report = decode_raw(vae, torch.randn(1, 16, 1, 4, 4), chosen)
    record = report["torch_compile"]
    assert (record.applied == "off", record.failed) == (declined, declined)
    assert ("with this cuDNN" in record.reason) == declined
    assert any(api.OVERRULED in note and "with this cuDNN" in note for note in report.notes) == overruled

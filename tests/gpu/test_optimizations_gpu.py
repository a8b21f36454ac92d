"""Optimizations on a real card: real kernels, inductor, offloading that moves weights, and memory as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastdiffusers.memory import GIB, device_memory
from fastdiffusers.optimizations import attention, offload, vae_memory
from fastdiffusers.optimizations.apply import active, apply, revert
from fastdiffusers.optimizations.attention_backends import BACKENDS, available
from fastdiffusers.optimizations.components import denoisers, modules, resident_bytes
from fastdiffusers.optimizations.settings import (
    CompileSettings,
    OptimizationSettings,
    PrecisionSettings,
    TilingSettings,
    Workload,
)
from fastdiffusers.pipelines import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda")
FAMILIES = ["flux", "sdxl", "sd3", "zimage", "wan22-t2v"]
PLAIN = OptimizationSettings.plain(memory_mode="gpu")


def make_picture(pipeline, family, edge=64):
    pipeline.set_progress_bar_config(disable=True)
    call = {"prompt": "a cat", "num_inference_steps": 2, "height": edge, "width": edge, "output_type": "pt"}
    call["generator"] = torch.Generator().manual_seed(0)
    if family.startswith("wan"):
        call["num_frames"] = 5
    if family in ("sdxl", "sd3", "zimage"):
        call |= {"negative_prompt": "a dog and a fish, blurred, in many words", "guidance_scale": 3.0}
    output = pipeline(**call)
    return (output.frames if hasattr(output, "frames") else output.images).float().cpu()


def run(pipeline, family, settings, **options):
    report = apply(pipeline, settings, device=CUDA)
    with active(pipeline, settings, report):
        return make_picture(pipeline, family, **options), report


def on_the_card(family, dtype=torch.bfloat16):
    return tiny.build(family, dtype=dtype).to(CUDA)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choice", [name for name in BACKENDS if name != "sdpa"])
def test_every_backend_that_works_here_gives_the_same_picture(family, choice):
    pipeline = on_the_card(family)
    plain, _ = run(pipeline, family, PLAIN)
    result, report = run(pipeline, family, replace(PLAIN, attention=choice))
    record = report["attention"]
    if record.failed:
        assert record.applied == "sdpa"
        assert record.reason
        assert torch.equal(result, plain)
        pytest.skip(record.reason)
    assert (result - plain).abs().mean() < 0.02  # two steps in bfloat16
    attention.restore(pipeline)
    assert torch.equal(make_picture(pipeline, family), plain)


def test_some_backends_work_on_every_card():
    found = available(CUDA, torch.bfloat16)
    assert found["sdpa"] == found["math"] == found["efficient"] == ""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd3", "sdxl"])
@pytest.mark.parametrize(
    "how", [CompileSettings(), CompileSettings(mode="reduce-overhead"), CompileSettings(scope="model")]
)
def test_inductor(family, how):
    pipeline = on_the_card(family, torch.float32)
    plain, _ = run(pipeline, family, PLAIN)
    for edge in (64, 96, 64):
        expected, _ = run(pipeline, family, PLAIN, edge=edge)
        result, report = run(pipeline, family, replace(PLAIN, torch_compile="on", compile=how), edge=edge)
        assert not report["torch_compile"].failed, report["torch_compile"].reason
        torch.testing.assert_close(result, expected, atol=2e-3, rtol=0)
    revert(pipeline)
    assert torch.equal(make_picture(pipeline, family), plain)


def hooks_of(module):
    """Hooks of accelerate and diffusers. A bare call of Flux or Wan leaves a registry behind that holds none."""
    registry = module.__dict__.get("_diffusers_hook")
    return [*([module._hf_hook] if "_hf_hook" in module.__dict__ else []), *(registry.hooks if registry else [])]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["model_offload", "group_offload_block", "group_offload_leaf", "sequential"])
def test_offloading_changes_no_bit_and_takes_the_weights_off_the_card(family, mode):
    pipeline = tiny.build(family)
    plain, report = run(pipeline, family, PLAIN)
    assert report["memory_mode"].applied == "gpu"
    models = list(modules(pipeline).values())
    here, everything = resident_bytes(models, CUDA)
    assert here == everything
    result, _ = run(pipeline, family, replace(PLAIN, memory_mode=mode))
    assert torch.equal(result, plain)
    assert resident_bytes(models, CUDA)[0] < everything / 2
    result, _ = run(pipeline, family, PLAIN)
    assert torch.equal(result, plain)
    assert resident_bytes(models, CUDA)[0] == everything
    assert not any(hooks_of(module) for model in models for module in model.modules())


def test_offloading_and_compiling_together():
    pipeline = tiny.build("sd3")
    plain, _ = run(pipeline, "sd3", PLAIN)
    for mode in ("model_offload", "group_offload_block"):
        settings = replace(PLAIN, memory_mode=mode, torch_compile="on", compile=CompileSettings("aot_eager"))
        result, report = run(pipeline, "sd3", settings)
        assert not report["torch_compile"].failed, report["torch_compile"].reason
        torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


def test_precision_switches():
    pipeline = on_the_card("sdxl", torch.float32)
    plain, _ = run(pipeline, "sdxl", PLAIN)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    result, report = run(pipeline, "sdxl", replace(PLAIN, precision=PrecisionSettings("on", "on", "on")))
    assert [report[name].applied for name in ("tf32", "cudnn_benchmark")] == ["on", "on"]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark) == before
    assert (result - plain).abs().max() < 0.05
    assert torch.equal(run(pipeline, "sdxl", PLAIN)[0], plain)


def test_the_memory_of_a_decode_is_estimated_on_the_careful_side():
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16)
    vae = vae.to(CUDA, torch.bfloat16).eval()
    latent = torch.randn(1, 16, 128, 128, device=CUDA, dtype=torch.bfloat16)
    for _ in range(2):  # the first also loads libraries
        torch.cuda.reset_peak_memory_stats()
        weights = torch.cuda.memory_allocated()
        with torch.no_grad():
            vae.decode(latent)
        real = torch.cuda.max_memory_allocated() - weights
    estimate = vae_memory.estimate(vae, Workload(1024, 1024))
    assert real <= estimate <= 2.5 * real


def test_a_decode_that_does_not_fit_is_done_in_tiles(monkeypatch):
    pipeline = on_the_card("flux")
    free = device_memory(CUDA).free
    needed = vae_memory.estimate(pipeline.vae, Workload(4096, 4096))
    fraction = (torch.cuda.memory_allocated() + needed * 0.6) / device_memory(CUDA).total
    if needed > free:
        pytest.skip("the card is full")
    latent = torch.randn(1, 16, 512, 512, device=CUDA, dtype=torch.bfloat16)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        with torch.no_grad():
            decode = lambda: pipeline.vae.decode(latent, return_dict=False)[0].cpu()
            result = vae_memory.shrink_until_it_fits(pipeline.vae, decode, edge=4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.shape == (1, 3, 4096, 4096)
    assert not pipeline.vae.use_tiling


def test_auto_takes_the_card_when_everything_fits_and_declines_to_compile_without_room():
    pipeline = tiny.build("flux")
    report = apply(pipeline, OptimizationSettings(vae_tiling=TilingSettings()), device=CUDA, workload=Workload(64, 64))
    assert report["memory_mode"].applied == "gpu"
    assert offload.device_of(pipeline) == CUDA
    assert all(next(model.parameters()).device.type == "cuda" for model in denoisers(pipeline).values())
    huge = CompileSettings(headroom_gib=min(1023.0, device_memory(CUDA).total / GIB + 1))
    record = apply(pipeline, replace(PLAIN, torch_compile="on", compile=huge), device=CUDA)["torch_compile"]
    assert record.failed
    assert "to stay free" in record.reason

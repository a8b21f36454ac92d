"""The decode beside the main path: tiles, slices, batches, offloaded VAEs, and latents that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from diffusers.video_processor import VideoProcessor

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError
from fastdiffusers.memory import LiveBytes
from fastdiffusers.optimizations.settings import OptimizationSettings, TilingSettings
from fastdiffusers.pipelines import latents
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.decoding import pipeline_vae
from fastdiffusers.pipelines.generate import decode, encode, run_loaded
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

SIZES = {"flux": 16, "flux2-klein": 128, "sdxl": 4, "qwenimage": 16, "wan22-t2v": 16}


def load(name):
    return loader.load(loader.resolve("tiny:" + name))


def random_latent(name, batch=1, frames=1, edge=24):
    edge = edge // 2 if name == "flux2-klein" else edge
    shape = (batch, SIZES[name], frames, edge, edge) if name == "wan22-t2v" else (batch, SIZES[name], edge, edge)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tiling", [False, True])
@pytest.mark.parametrize("slicing", [False, True])
@pytest.mark.parametrize("name", ["flux", "sdxl", "qwenimage", "flux2-klein"])
def test_the_announced_number_of_decoder_calls_is_the_real_one(name, tiling, slicing):
    loaded = load(name)
    vae = loaded.pipeline.vae
    if tiling:
        vae.enable_tiling()
        for attribute in ("tile_sample_min_size", "tile_sample_min_height", "tile_sample_min_width"):
            if hasattr(vae, attribute):
                setattr(vae, attribute, 64)
        if hasattr(vae, "tile_latent_min_size"):
            vae.tile_latent_min_size = 8
        for attribute in ("tile_sample_stride_height", "tile_sample_stride_width"):
            if hasattr(vae, attribute):
                setattr(vae, attribute, 48)
    if slicing:
        vae.enable_slicing()
    calls, ticks = [], []
    handle = vae.decoder.register_forward_pre_hook(lambda module, args: calls.append(None))
    frames = pipeline_vae.decode(loaded, random_latent(name, batch=2), Callbacks(ticks.append))
    handle.remove()
    assert frames.shape == (2, 1, 192, 192, 3)
    assert (len(calls) > 2) == tiling
    assert ticks[-1].done == ticks[-1].total == len(calls)
    assert len(ticks) >= len(calls)
    assert len(vae.decoder._forward_pre_hooks) == 0


def test_a_cancel_takes_effect_between_tiles_and_leaves_no_hook():
    class Interrupted(Exception):
        pass

    loaded = load("flux")
    vae = loaded.pipeline.vae
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 64
    seen = []

    def cancel():
        if len(seen) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        pipeline_vae.decode(loaded, random_latent("flux"), Callbacks(seen.append, cancel))
    assert len(seen) == 3
    assert len(vae.decoder._forward_pre_hooks) == 0


@pytest.mark.parametrize("mode", ["model_offload", "group_offload_leaf", "group_offload_block"])
def test_an_offloaded_vae_decodes_to_the_same(mode):
    handle = PipelineHandle(loader.resolve("tiny:sd3"))
    latent = torch.randn(1, 16, 8, 8)
    expected, _ = decode(handle, latent, OptimizationSettings.plain())
    frames, report = decode(handle, latent, OptimizationSettings.plain(memory_mode=mode))
    assert torch.equal(frames, expected), report["memory_mode"]
    assert torch.equal(decode(handle, latent, OptimizationSettings.plain())[0], expected)


def test_tiling_on_is_applied_reported_and_undone():
    handle = PipelineHandle(loader.resolve("tiny:flux"))
    latent = random_latent("flux", edge=64)
    expected, _ = decode(handle, latent, OptimizationSettings.plain())
    tiled = OptimizationSettings.plain(vae_tiling=TilingSettings(mode="on", tile_size=256, overlap=64))
    frames, report = decode(handle, latent, tiled)
    assert "256" in report["vae_tiling"].applied
    assert frames.shape == expected.shape
    assert not torch.equal(frames, expected)
    assert torch.equal(decode(handle, latent, OptimizationSettings.plain())[0], expected)


@pytest.mark.parametrize(
    "latent", [torch.zeros(1, 4, 8, 8), torch.zeros(16, 8, 8), torch.zeros(1, 16, 0, 8), torch.zeros(1, 128, 8, 8)]
)
def test_a_latent_of_another_model_is_refused_before_anything_loads(latent):
    CACHE.clear()
    with pytest.raises(InputError, match="latent"):
        decode(PipelineHandle(loader.resolve("tiny:flux")), latent, OptimizationSettings.plain())
    assert CACHE.keys() == ()


def test_pixels_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="multiples of 16"):
        encode(
            PipelineHandle(loader.resolve("tiny:flux2-klein")), torch.rand(1, 72, 64, 3), OptimizationSettings.plain()
        )


def test_grey_pixels_are_refused_and_alpha_is_left_out_as_comfyui_does():
    loaded, picture = load("flux"), torch.rand(1, 32, 32, 4)
    assert torch.equal(pipeline_vae.encode(loaded, picture), pipeline_vae.encode(loaded, picture[..., :3]))
    with pytest.raises(InputError, match="RGB"):
        pipeline_vae.encode(loaded, picture[..., :1])


def test_statistics_of_image_vaes_follow_diffusers():
    """SDXL derivatives (Playground 2.5) state per-channel means and deviations beside the scaling factor."""
    loaded = load("sdxl")
    vae, family = loaded.pipeline.vae, loaded.family
    vae.register_to_config(latents_mean=[0.5, -1.0, 2.0, 0.1], latents_std=[1.0, 2.0, 3.0, 0.5], scaling_factor=0.5)
    native = torch.randn(1, 4, 8, 8)
    mean, std = (torch.tensor(vae.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    comfy = latents.to_comfy(native, family, vae, 64, 64)
    assert torch.equal(comfy, native * std / 0.5 + mean)
    torch.testing.assert_close(latents.from_comfy(comfy, family, vae), native)


def test_a_four_dimensional_qwen_latent_is_accepted():
    loaded = load("qwenimage")
    latent = random_latent("qwenimage", edge=8)
    assert torch.equal(pipeline_vae.decode(loaded, latent), pipeline_vae.decode(loaded, latent.unsqueeze(2)))


def test_a_pipeline_that_decodes_by_itself_decodes_again_in_tiles_when_memory_runs_out():
    loaded = load("sdxl")
    loaded.family = replace(loaded.family, layout="")
    vae, edges = loaded.pipeline.vae, []

    def too_large(module, arguments):
        edges.append(arguments[0].shape[-1])
        if edges[-1] > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")

    vae.decoder.register_forward_pre_hook(too_large)
    request = SampleRequest("a harbour", width=256, height=256, steps=1)
    result = run_loaded(loaded, PipelineHandle(loaded.key), request, OptimizationSettings.plain())
    assert result.frames.shape == (1, 1, 256, 256, 3)
    assert edges[0] == 32
    assert result.report["vae_tiling"].applied == "tiles of 192 px"
    assert "out of memory, decoded again" in result.report["vae_tiling"].reason
    assert not vae.use_tiling
    assert "decode" not in vars(vae)


@pytest.mark.parametrize(("name", "error"), [("flux", torch.OutOfMemoryError), ("sdxl", RuntimeError)])
def test_an_encode_that_runs_out_of_memory_is_done_again_in_tiles(name, error):
    handle = PipelineHandle(loader.resolve("tiny:" + name))
    pixels = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    whole, _ = encode(handle, pixels, OptimizationSettings.plain())
    edges = []

    def too_large(module, arguments):
        edges.append(max(arguments[0].shape[-2:]))
        if edges[-1] > 200:
            raise error("CUDA out of memory")

    with CACHE.use(handle.key) as loaded:
        vae = loaded.pipeline.vae
    hook = vae.encoder.register_forward_pre_hook(too_large)
    latent, report = encode(handle, pixels, OptimizationSettings.plain())
    hook.remove()
    assert latent.shape == whole.shape
    assert (edges[0], max(edges[1:])) == (256, 192)
    assert report["vae_tiling"].applied == "tiles of 192 px"
    assert "out of memory, encoded again in tiles of 192 px" in report["vae_tiling"].reason
    assert torch.equal(encode(handle, pixels, OptimizationSettings.plain())[0], whole)


@pytest.mark.parametrize(("name", "factor"), [("wan22-t2v", 4), ("ltx2-t2v", 8)])
@pytest.mark.parametrize("length", [1, 2, 6, 9])
def test_a_clip_of_any_length_comes_back_whole(name, factor, length):
    handle = PipelineHandle(loader.resolve("tiny:" + name))
    clip = torch.rand(1, length, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    latent, report = encode(handle, clip, OptimizationSettings.plain())
    groups = -(-(length - 1) // factor)
    missing = groups * factor + 1 - length
    assert latent.shape[2] == 1 + groups
    assert any(f"filled up with {missing} copies" in note for note in report.notes) == bool(missing)
    frames, _ = decode(handle, latent, OptimizationSettings.plain())
    assert frames.shape[1] == length + missing
    filled = torch.cat((clip, clip[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1)
    assert torch.equal(latent, encode(handle, filled, OptimizationSettings.plain())[0])


def test_a_tiny_autoencoder_in_place_of_the_vae_encodes_and_decodes():
    loaded = load("sdxl")
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    vae = loaded.pipeline.vae = AutoencoderTiny(**blocks).eval()
    picture = torch.rand(1, 64, 64, 3)
    latent = pipeline_vae.encode(loaded, picture)
    with torch.no_grad():
        assert torch.equal(latent, vae.encode((picture.permute(0, 3, 1, 2) * 2 - 1).contiguous()).latents)
    assert pipeline_vae.decode(loaded, latent).shape == (1, 1, 64, 64, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_are_scaled_in_float32_in_no_more_memory_than_they_take(dtype):
    """As ComfyUI's decode scales them; in float32 that is what diffusers' image processor gives, bit for bit."""
    pixels = torch.linspace(-1.1, 1.1, 2 * 3 * 5 * 16 * 16).to(dtype)[torch.randperm(7680)].view(2, 3, 5, 16, 16)
    with LiveBytes() as live:
        frames = pipeline_vae._to_frames(pixels.clone())
    assert live.peak == pixels.nbytes + frames.nbytes
    assert frames.is_contiguous()
    assert torch.equal(frames, (pixels.float().movedim(1, -1) + 1.0).div(2.0).clamp(0, 1))
    if dtype == torch.float32:
        processed = VideoProcessor().postprocess_video(pixels, output_type="pt")
        assert torch.equal(frames, processed.permute(0, 1, 3, 4, 2))


def test_a_picture_is_encoded_from_pixels_that_are_scaled_in_float32(monkeypatch):
    loaded = load("flux")
    vae = loaded.pipeline.vae.to(torch.bfloat16)
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    expected = VaeImageProcessor().preprocess(picture.permute(0, 3, 1, 2)).to(torch.bfloat16)
    seen, encode_pixels = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: seen.append(pixels) or encode_pixels(pixels))
    pipeline_vae.encode(loaded, picture)
    assert torch.equal(seen[0].flatten(), expected.flatten())


def test_a_clip_is_no_latent_of_a_model_for_pictures():
    handle = PipelineHandle(loader.resolve("tiny:flux", dtype="float32", device="cpu"))
    with pytest.raises(InputError, match="clip of 3 latent frames, and flux makes single images"):
        decode(handle, torch.zeros(1, 16, 3, 8, 8), OptimizationSettings.plain())

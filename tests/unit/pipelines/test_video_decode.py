"""Streaming decode of the causal diffusers VAEs against `vae.decode`: equality, memory, cancel, refusal."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.video_decode import decode_streaming, refuse_streaming, stream_frames
from fastdiffusers.pipelines.video_decode_tiled import can_stream_tiles, decode_tiles_streaming

WAN_SHAPE = {"z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}


def build_vae(name: str) -> torch.nn.Module:
    import diffusers

    torch.manual_seed(0)
    if name == "wan21":
        vae = diffusers.AutoencoderKLWan(base_dim=8, **WAN_SHAPE)
    elif name == "wan22-patched":
        patched = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        vae = diffusers.AutoencoderKLWan(
            base_dim=8, decoder_base_dim=8, scale_factor_spatial=16, **patched, **WAN_SHAPE
        )
    elif name == "qwenimage":
        vae = diffusers.AutoencoderKLQwenImage(base_dim=8, **WAN_SHAPE)
    else:
        vae = diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=8, block_out_channels=(16, 16, 32, 32, 32), layers_per_block=1
        )
    return vae.eval()


def latents_for(vae: torch.nn.Module, frames: int, height: int = 4, width: int = 6, batch: int = 1) -> torch.Tensor:
    channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
    return torch.randn(batch, channels, frames, height, width, generator=torch.Generator().manual_seed(1))


def plain_decode(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(latents).sample


@pytest.mark.parametrize("name", ["wan21", "wan22-patched", "qwenimage"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_one_frame_steps_are_bit_identical(name: str, frames: int) -> None:
    vae = build_vae(name)
    latents = latents_for(vae, frames, batch=2)
    assert torch.equal(decode_streaming(vae, latents), plain_decode(vae, latents))


@pytest.mark.parametrize("name", ["wan21", "wan22-patched", "qwenimage", "hunyuan15"])
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_longer_steps_agree_within_rounding(name: str, step: int) -> None:
    vae = build_vae(name)
    latents = latents_for(vae, 5)
    expected = plain_decode(vae, latents)
    result = decode_streaming(vae, latents, latent_frames_per_step=step)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 5e-5 * expected.std()


def test_slicing_decodes_one_item_at_a_time() -> None:
    vae = build_vae("wan21")
    latents = latents_for(vae, 3, batch=2)
    vae.enable_slicing()
    batches: list[int] = []
    handle = vae.decoder.register_forward_pre_hook(lambda module, arguments: batches.append(arguments[0].shape[0]))
    expected = plain_decode(vae, latents)
    batches.clear()
    assert torch.equal(decode_streaming(vae, latents), expected)
    handle.remove()
    assert batches == [1] * 6


@pytest.mark.parametrize("name", ["wan21", "wan22-patched", "qwenimage"])
def test_tiles_are_bit_identical(name: str) -> None:
    vae = build_vae(name)
    vae.enable_tiling(64, 64, 48, 48)
    latents = latents_for(vae, 3, 11, 13)
    assert can_stream_tiles(vae, latents)
    # Qwen-Image leaves its tiled result unclamped until the image processor clamps it.
    assert torch.equal(decode_tiles_streaming(vae, latents), plain_decode(vae, latents).clamp(-1, 1))


def test_tiles_are_left_alone_when_one_tile_holds_the_frame() -> None:
    vae = build_vae("wan21")
    assert not can_stream_tiles(vae, latents_for(vae, 2))
    vae.enable_tiling(64, 64, 48, 48)
    assert not can_stream_tiles(vae, latents_for(vae, 2, 8, 8))
    assert can_stream_tiles(vae, latents_for(vae, 2, 8, 9))


def test_frames_do_not_stay_alive_on_the_device() -> None:
    vae = build_vae("wan21")
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    with torch.no_grad():
        for run in stream_frames(vae, latents_for(vae, 6)):
            alive.append(weakref.ref(run))
            del run
            most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 6
    assert most <= 1


def test_cancel_stops_between_runs_and_leaves_no_state() -> None:
    class Stop(Exception):
        pass

    vae = build_vae("wan21")
    latents = latents_for(vae, 5)
    expected = plain_decode(vae, latents)
    seen: list[int] = []

    def stop_at_second() -> None:
        if len(seen) == 2:
            raise Stop

    callbacks = Callbacks(on_progress=lambda progress: seen.append(progress.done), check_cancel=stop_at_second)
    with pytest.raises(Stop):
        decode_streaming(vae, latents, callbacks=callbacks)
    assert seen == [1, 2]
    assert torch.equal(decode_streaming(vae, latents), expected)


def test_progress_reaches_the_total_with_long_steps() -> None:
    vae = build_vae("qwenimage")
    ticks: list[tuple[int, int]] = []
    callbacks = Callbacks(on_progress=lambda progress: ticks.append((progress.done, progress.total)))
    decode_streaming(vae, latents_for(vae, 6), callbacks=callbacks, latent_frames_per_step=4)
    assert ticks == [(1, 6), (5, 6), (6, 6)]


def test_two_threads_do_not_disturb_each_other() -> None:
    vae = build_vae("wan21")
    inputs = [latents_for(vae, 4), latents_for(vae, 4) * 0.5]
    expected = [plain_decode(vae, latents) for latents in inputs]
    results: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        results[index] = decode_streaming(vae, inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], expected[0])
    assert torch.equal(results[1], expected[1])


def test_refusals_name_the_reason() -> None:
    import diffusers

    image_vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    assert "AutoencoderKL" in refuse_streaming(image_vae)
    with pytest.raises(InputError, match="vae"):
        next(stream_frames(image_vae, torch.zeros(1, 4, 1, 4, 4)))
    wan = build_vae("wan21")
    with pytest.raises(InputError, match="time axis"):
        decode_streaming(wan, torch.zeros(1, 16, 4, 4))
    with pytest.raises(InputError, match="latent_frames_per_step"):
        decode_streaming(wan, latents_for(wan, 2), latent_frames_per_step=0)
    wan.enable_tiling(64, 64, 48, 48)
    assert refuse_streaming(wan) == "spatial tiling is on"

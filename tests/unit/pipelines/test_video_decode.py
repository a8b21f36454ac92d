"""Streaming decode of the causal diffusers VAEs against `vae.decode`: equality, memory, cancel, refusal."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError
from fastdiffusers.memory import LiveBytes
from fastdiffusers.pipelines.decoding.streaming import decode_streaming, refuse_streaming, stream_frames
from fastdiffusers.pipelines.decoding.tiles import decode_tiles_streaming, refuse_tiles

ALL = ["wan21", "wan22-patched", "qwenimage", "hunyuan15", "ltx2", "ltx2-causal", "ltx", "ltx-causal"]
BIT_IDENTICAL = ALL[:3]


@pytest.mark.parametrize("name", BIT_IDENTICAL)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_one_frame_steps_are_bit_identical(
    name: str, frames: int, build_vae: Any, latents_for: Any, plain_decode: Any
) -> None:
    vae = build_vae(name)
    latents = latents_for(vae, frames, batch=2)
    assert torch.equal(decode_streaming(vae, latents), plain_decode(vae, latents))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_longer_steps_agree_within_rounding(
    name: str, step: int, build_vae: Any, latents_for: Any, plain_decode: Any
) -> None:
    vae = build_vae(name)
    latents = latents_for(vae, 5)
    expected = plain_decode(vae, latents)
    result = decode_streaming(vae, latents, latent_frames_per_step=step)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 5e-5 * expected.std()


def test_slicing_decodes_one_item_at_a_time(build_vae: Any, latents_for: Any, plain_decode: Any) -> None:
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


@pytest.mark.parametrize("name", BIT_IDENTICAL)
def test_tiles_are_bit_identical(name: str, build_vae: Any, latents_for: Any, plain_decode: Any) -> None:
    vae = build_vae(name)
    vae.enable_tiling(64, 64, 48, 48)
    latents = latents_for(vae, 3, 11, 13)
    assert refuse_tiles(vae, latents) == ""
    # Qwen-Image leaves its tiled result unclamped until the image processor clamps it.
    assert torch.equal(decode_tiles_streaming(vae, latents), plain_decode(vae, latents).clamp(-1, 1))


def test_tiles_are_left_alone_when_one_tile_holds_the_frame(build_vae: Any, latents_for: Any) -> None:
    vae = build_vae("wan21")
    assert "vae_tiling is off" in refuse_tiles(vae, latents_for(vae, 2))
    vae.enable_tiling(64, 64, 48, 48)
    assert refuse_tiles(vae, latents_for(vae, 2, 8, 8)) == "one tile holds the whole picture"
    assert refuse_tiles(vae, latents_for(vae, 2, 8, 9)) == ""


@pytest.mark.parametrize("name", ["hunyuan15", "ltx2", "ltx2-causal", "ltx", "ltx-causal"])
@pytest.mark.parametrize("frames", [1, 2, 6])
def test_what_diffusers_decodes_whole_is_the_same_function(
    name: str, frames: int, build_vae: Any, latents_for: Any, plain_decode: Any
) -> None:
    """In double precision nothing but rounding of the last digits is left of the difference."""
    vae = build_vae(name).double()
    latents = latents_for(vae, frames, 2, 3)
    tolerance = 1e-5 if name.startswith("ltx-") or name == "ltx" else 1e-12  # its norms compute in single precision
    expected = plain_decode(vae, latents)
    for step in (1, 3):
        result = decode_streaming(vae, latents, latent_frames_per_step=step)
        assert result.shape == expected.shape
        assert (result - expected).abs().max() <= tolerance * expected.std()


@pytest.mark.parametrize("name", ["hunyuan15", "ltx2", "ltx"])
def test_a_later_frame_changes_no_frame_that_cannot_see_it(name: str, build_vae: Any, latents_for: Any) -> None:
    """What streams out before the end of the clip was read cannot depend on the end."""
    vae = build_vae(name)
    clip = latents_for(vae, 24, 2, 2)
    changed = clip.clone()
    changed[:, :, -1] += 1
    with torch.no_grad():
        early = next(stream_frames(vae, clip))
        assert torch.equal(early, next(stream_frames(vae, changed)))


@pytest.mark.parametrize("name", ALL)
def test_memory_does_not_grow_with_the_frames(name: str, build_vae: Any) -> None:
    """Full-depth decoders on tensors without data: what is alive at once for a short and for a long clip."""
    vae = build_vae(name).to("meta")
    channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
    # LTX's receptive field is longer than a short clip: both clips are longer than it.
    short, long = (24, 60) if name.startswith("ltx") else (4, 24)
    peaks = []
    for frames in (short, long):
        latents = torch.empty(1, channels, frames, 8, 8, device="meta")
        with torch.no_grad(), LiveBytes() as live:
            for run in stream_frames(vae, latents):
                del run
        peaks.append(live.peak)
    # What does grow is of the latents' size: the latents after a first convolution, keys and values of all frames.
    assert peaks[1] <= peaks[0] * 1.05


@pytest.mark.parametrize("name", ALL)
def test_bit_identical_streaming_needs_no_more_memory_than_diffusers(name: str, build_vae: Any) -> None:
    vae = build_vae(name).to("meta")
    channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
    latents = torch.empty(1, channels, 6, 8, 8, device="meta")
    with torch.no_grad(), LiveBytes() as streamed:
        for run in stream_frames(vae, latents):
            del run
    with torch.no_grad(), LiveBytes() as plain:
        vae.decode(latents, return_dict=False)
    assert streamed.peak <= plain.peak


def test_frames_do_not_stay_alive_on_the_device(build_vae: Any, latents_for: Any) -> None:
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


def test_cancel_stops_between_runs_and_leaves_no_state(build_vae: Any, latents_for: Any, plain_decode: Any) -> None:
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


def test_progress_reaches_the_total_with_long_steps(build_vae: Any, latents_for: Any) -> None:
    vae = build_vae("qwenimage")
    ticks: list[tuple[int, int]] = []
    callbacks = Callbacks(on_progress=lambda progress: ticks.append((progress.done, progress.total)))
    decode_streaming(vae, latents_for(vae, 6), callbacks=callbacks, latent_frames_per_step=4)
    assert ticks == [(1, 6), (5, 6), (6, 6)]


def test_two_threads_do_not_disturb_each_other(build_vae: Any, latents_for: Any, plain_decode: Any) -> None:
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


def test_refusals_name_the_reason(build_vae: Any, latents_for: Any) -> None:
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
    ltx = build_vae("ltx2")
    assert not refuse_streaming(ltx)
    ltx.use_framewise_decoding = True
    assert "framewise" in refuse_streaming(ltx)


def test_what_depends_on_more_than_nearby_frames_is_refused() -> None:
    import diffusers

    small = {"latent_channels": 8, "block_out_channels": (8, 16, 32, 32), "layers_per_block": (1,) * 5}
    decoder = {"decoder_block_out_channels": (8, 16, 32), "decoder_layers_per_block": (1, 2, 1, 1)}
    conditioned = diffusers.AutoencoderKLLTX2Video(**small, **decoder, timestep_conditioning=True)
    assert "timestep" in refuse_streaming(conditioned)
    noisy = diffusers.AutoencoderKLLTX2Video(**small, **decoder, decoder_inject_noise=(True,) * 4)
    assert "noise" in refuse_streaming(noisy)

"""ComfyUI's own VAE objects through VAE Decode (Fast) and VAE Encode (Fast)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import core_vaes
import pytest
import torch
from core_vaes import LocalModel, decode, encode, with_network

from fastdiffusers.callbacks import SILENT, Callbacks
from fastdiffusers.errors import InputError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def image_vae(core: Any) -> Any:
    return core_vaes.image_vae(core)


@pytest.fixture(scope="module")
def video_vae(core: Any) -> Any:
    return core_vaes.video_vae(core)


@pytest.fixture(scope="module", params=["wan 2.1", "wan 2.2"])
def small_wan(request: pytest.FixtureRequest, video_vae: Any) -> Any:
    return core_vaes.small_wan(video_vae, request.param)


@pytest.fixture
def local_vae(image_vae: Any, core: Any) -> Any:
    """The image VAE's object with a network that is local and counts its calls."""
    return with_network(image_vae, LocalModel())


def test_whole_image_decode_is_vae_decode(image_vae: Any) -> None:
    samples = torch.randn(2, 4, 8, 6)
    frames, report = decode(image_vae, samples)
    assert torch.equal(frames, image_vae.decode(samples))
    assert frames.std() > 0
    assert report["vae_tiling"].applied == "whole"


def test_whole_video_decode_is_vae_decode(video_vae: Any) -> None:
    samples = torch.randn(1, 16, 3, 6, 4)
    frames, _ = decode(video_vae, samples)
    assert frames.shape == (1, 9, 48, 32, 3)
    assert torch.equal(frames, video_vae.decode(samples))


@pytest.mark.parametrize("frames", [2, 3, 4, 7])
def test_streamed_clips_are_what_the_network_gives(small_wan: Any, frames: int) -> None:
    from fastdiffusers.nodes.host import core_streaming

    network = small_wan.first_stage_model
    latents = torch.randn(2, 4, frames, 4, 6)
    expected = network.decode(latents)
    told: list[int] = []
    streamed = core_streaming.decode(network, latents, 4 * frames - 3, told.append)
    assert torch.equal(streamed, expected)
    assert streamed.std() > 0
    assert told[0] == 0
    assert told[-1] == 4 * frames - 3
    assert told == sorted(told)


def test_streamed_clips_take_memory_that_does_not_grow_with_them(small_wan: Any) -> None:
    """Beside the gathered frames, which are in main memory whatever the device."""
    from fastdiffusers.memory import LiveBytes
    from fastdiffusers.nodes.host import core_streaming

    network = small_wan.first_stage_model
    whole: list[int] = []
    streamed: list[int] = []
    for frames in (5, 25):
        latents = torch.randn(1, 4, frames, 6, 6)
        with LiveBytes() as live:
            gathered = network.decode(latents).nbytes
        whole.append(live.peak)
        peaks: dict[int, int] = {}
        with LiveBytes() as live:
            told = lambda made, live=live, peaks=peaks: peaks.update({made: live.peak})
            core_streaming.decode(network, latents, 4 * frames - 3, told)
        streamed.append(peaks[4 * frames - 3] - gathered)  # when the last run was taken away
    assert whole[1] > whole[0] * 1.2
    # What grows is the latent after its first convolution.
    assert streamed[1] <= streamed[0] * 1.05


def test_a_clip_streams_through_a_copy_and_a_cancel_leaves_nothing(small_wan: Any) -> None:
    class Stop(Exception):
        pass

    vae = small_wan
    samples = torch.randn(1, 4, 5, 4, 6)
    expected = vae.decode(samples)
    vae_before = dict(vars(vae))
    modules_before = {name: (id(module), dict(vars(module))) for name, module in vae.first_stage_model.named_modules()}
    ticks: list[tuple[int, int]] = []

    def stop() -> None:
        if len(ticks) == 2:
            raise Stop

    progress = lambda tick: ticks.append((tick.done, tick.total))
    with pytest.raises(Stop):
        decode(vae, samples, Callbacks(on_progress=progress, check_cancel=stop), tiling="whole")
    assert ticks == [(0, 17), (1, 17)]
    assert vars(vae) == vae_before
    ticks.append((0, 0))
    frames, report = decode(vae, samples, Callbacks(on_progress=progress), tiling="whole", exactness="fast")
    assert torch.equal(frames, expected)
    assert ticks[-1] == (17, 17)
    assert "leave the card" in report["streaming"].applied
    assert (report["exactness"].applied, report["exactness"].failed) == ("bit-identical", True)
    after = {name: (id(module), dict(vars(module))) for name, module in vae.first_stage_model.named_modules()}
    assert after.keys() == modules_before.keys()
    for name, (identity, own) in modules_before.items():
        assert after[name][0] == identity
        assert after[name][1].keys() == own.keys()
        assert all(after[name][1][key] is own[key] or after[name][1][key] == own[key] for key in own)


def test_whole_encode_is_vae_encode(image_vae: Any, video_vae: Any) -> None:
    pixels = torch.rand(2, 52, 48, 3)  # 52 is no multiple of 8: cropped as ComfyUI crops it
    assert torch.equal(encode(image_vae, pixels)[0], image_vae.encode(pixels))
    clip = torch.rand(5, 48, 32, 3)
    latent, _ = encode(video_vae, clip)
    assert latent.shape == (1, 16, 2, 6, 4)
    assert torch.equal(latent, video_vae.encode(clip))


@pytest.mark.parametrize(("tile_size", "overlap"), [(64, 16), (72, 0), (128, 64), (96, 8)])
def test_tiles_blend_to_the_whole(local_vae: Any, tile_size: int, overlap: int) -> None:
    samples = torch.rand(2, 4, 21, 34) * 2 - 1
    whole, _ = decode(local_vae, samples, tiling="whole")
    ticks: list[tuple[int, int]] = []
    callbacks = Callbacks(on_progress=lambda p: ticks.append((p.done, p.total)))
    frames, report = decode(local_vae, samples, callbacks, tiling="tiles", tile_size=tile_size, overlap=overlap)
    assert torch.allclose(frames, whole, atol=1e-6)
    assert "tiles" in report["vae_tiling"].applied
    assert ticks == [(done, len(ticks)) for done in range(1, len(ticks) + 1)], "every tile is reported once"
    assert len(ticks) > 4


def test_tiles_of_a_video_blend_to_the_whole(video_vae: Any, core: Any) -> None:
    vae = with_network(video_vae, LocalModel())
    samples = torch.rand(1, 4, 3, 20, 14) * 2 - 1
    whole, _ = decode(vae, samples, tiling="whole")
    frames, _ = decode(vae, samples, tiling="tiles", tile_size=64)
    assert frames.shape == (1, 9, 160, 112, 3)
    assert torch.allclose(frames, whole, atol=1e-6)
    assert vae.first_stage_model.calls[-1][2] == 3, "a causal VAE slices time itself"


def test_tiled_encode_blends_to_the_whole(local_vae: Any, video_vae: Any, core: Any) -> None:
    pixels = torch.rand(1, 160, 208, 3)
    whole, _ = encode(local_vae, pixels, tiling="whole")
    tiled, _ = encode(local_vae, pixels, tiling="tiles", tile_size=64)
    assert torch.allclose(tiled, whole, atol=1e-5)
    vae = with_network(video_vae, LocalModel())
    clip = torch.rand(9, 160, 112, 3)
    whole, _ = encode(vae, clip, tiling="whole")
    tiled, _ = encode(vae, clip, tiling="tiles", tile_size=64)
    assert torch.allclose(tiled, whole, atol=1e-5)


def test_out_of_memory_is_retried_with_smaller_tiles(image_vae: Any, core: Any) -> None:
    vae = with_network(image_vae, LocalModel(most_cells=16 * 16))
    before = dict(vars(vae))
    samples = torch.rand(1, 4, 40, 40) * 2 - 1
    frames, report = decode(vae, samples)
    vae.first_stage_model.most_cells = 1 << 30
    whole, _ = decode(vae, samples, tiling="whole")
    assert torch.allclose(frames, whole, atol=1e-6)
    record = report["vae_tiling"]
    assert record.failed
    assert record.reason.startswith("out of memory with whole")
    assert vars(vae) == before, "the shared VAE object stays as it is"


def test_no_tile_fits(image_vae: Any, core: Any) -> None:
    vae = with_network(image_vae, LocalModel(most_cells=1))
    with pytest.raises(torch.OutOfMemoryError, match="out of memory with whole, then"):
        decode(vae, torch.rand(1, 4, 40, 40))
    vae.first_stage_model.most_cells = 1 << 30
    decode(vae, torch.rand(1, 4, 40, 40))


def test_other_errors_keep_their_type(local_vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(z: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(local_vae.first_stage_model, "decode", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        decode(local_vae, torch.rand(1, 4, 8, 8))


@pytest.mark.parametrize("tiling", ["whole", "tiles"])
def test_cancel_stops_between_batches_and_tiles(
    local_vae: Any, core: Any, monkeypatch: pytest.MonkeyPatch, tiling: str
) -> None:
    mm = core.model_management
    model = local_vae.first_stage_model
    # As if the card held two of the four images: ComfyUI then decodes them in two batches.
    monkeypatch.setattr(
        local_vae.patcher,
        "get_free_memory",
        lambda device: 2 * local_vae.memory_used_decode(samples.shape, local_vae.vae_dtype),
    )

    def cancel_at_second() -> None:
        if len(model.calls) == 1:
            mm.interrupt_current_processing()
        mm.throw_exception_if_processing_interrupted()

    samples = torch.rand(4, 4, 16, 16)
    with pytest.raises(mm.InterruptProcessingException):
        decode(local_vae, samples, Callbacks(check_cancel=cancel_at_second), tiling=tiling, tile_size=64)
    assert len(model.calls) == 1
    fresh, _ = decode(local_vae, samples, tiling="whole")
    assert fresh.shape == (4, 128, 128, 3)


def test_bad_input_is_named(image_vae: Any) -> None:
    with pytest.raises(InputError, match=r"samples = \[1, 16, 8, 8\]: this VAE takes latents of 4 channels"):
        decode(image_vae, torch.rand(1, 16, 8, 8))
    with pytest.raises(InputError, match="samples"):
        decode(image_vae, torch.rand(4, 8, 8))


class TestVideoVaeLoadedByComfyUI:
    """A VAE of the architecture that `vae/` runs, behind ComfyUI's ordinary VAE socket."""

    @pytest.fixture
    def vae(self, core: Any) -> Any:
        """What ComfyUI's loader gives, as far as the nodes look at it: networks under the checkpoint's own names."""
        from types import SimpleNamespace

        from fastdiffusers.vae import VaeConfig, VideoVAE

        torch.manual_seed(0)
        with torch.inference_mode(mode=False):
            network = VideoVAE(VaeConfig(block_out_channels=(32, 32, 32, 32)))
        return SimpleNamespace(
            first_stage_model=network, vae_dtype=torch.float32, device=torch.device("cpu"), latent_channels=16
        )

    def choices(self) -> Any:
        from fastdiffusers.nodes.vae_choices import VaeChoices

        return VaeChoices("auto", 0, 0, 0, 0.0)

    def test_decodes_and_encodes_through_this_packs_networks(self, vae: Any) -> None:
        from fastdiffusers import vae as engine
        from fastdiffusers.nodes import vae_engines as node

        weights = {key: tensor.clone() for key, tensor in vae.first_stage_model.state_dict().items()}
        latent = torch.randn(1, 16, 2, 3, 4, generator=torch.Generator().manual_seed(1))
        own = engine.from_state_dict(weights)
        expected, _ = engine.decode(own, latent)

        frames, report = node.decode(vae, {"samples": latent}, self.choices(), SILENT)
        assert torch.equal(frames, expected)
        assert any("recognised" in note for note in report.notes)

        again, _ = node.encode(vae, frames[0], self.choices(), SILENT)
        assert torch.equal(again["samples"], engine.encode(own, frames)[0])
        for key, tensor in vae.first_stage_model.state_dict().items():
            assert torch.equal(tensor, weights[key])

    def test_a_single_image_latent_has_one_frame(self, vae: Any) -> None:
        from fastdiffusers.nodes import vae_engines as node

        frames, _ = node.decode(vae, {"samples": torch.zeros(2, 16, 3, 4)}, self.choices(), SILENT)
        assert frames.shape == (2, 1, 24, 32, 3)

    def test_the_copy_goes_with_the_vae(self, vae: Any) -> None:
        import gc
        import weakref

        from fastdiffusers.nodes import video_vae as bridge

        copied = weakref.ref(bridge.borrow(vae))
        assert bridge.borrow(vae) is copied()
        del vae.first_stage_model
        gc.collect()
        assert copied() is None

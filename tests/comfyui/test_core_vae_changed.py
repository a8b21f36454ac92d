"""ComfyUI's VAE objects as other nodes leave them, beside what ComfyUI's own nodes give with the same object."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import core_vaes
import pytest
import torch
from core_vaes import LocalModel, decode, encode, with_network

from fastdiffusers.errors import InputError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def image_vae(core: Any) -> Any:
    return with_network(core_vaes.image_vae(core), LocalModel())


@pytest.fixture(scope="module")
def video_vae(core: Any) -> Any:
    return core_vaes.video_vae(core)


@pytest.fixture(scope="module")
def wan(video_vae: Any) -> Any:
    return core_vaes.small_wan(video_vae, "wan 2.1")


@pytest.fixture
def clip_vae(video_vae: Any) -> Any:
    return with_network(video_vae, LocalModel())


def core_decode(vae: Any, samples: torch.Tensor) -> torch.Tensor:
    return sys.modules["nodes"].VAEDecode().decode(vae, {"samples": samples})[0]


def core_decode_tiled(vae: Any, samples: torch.Tensor, size: int, overlap: int) -> torch.Tensor:
    node = sys.modules["nodes"].VAEDecodeTiled()
    return node.decode(vae, {"samples": samples}, size, overlap, temporal_size=4096, temporal_overlap=8)[0]


def core_encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return sys.modules["nodes"].VAEEncode().encode(vae, pixels)[0]["samples"]


def core_encode_tiled(vae: Any, pixels: torch.Tensor, size: int, overlap: int) -> torch.Tensor:
    node = sys.modules["nodes"].VAEEncodeTiled()
    return node.encode(vae, pixels, size, overlap, temporal_size=4096, temporal_overlap=8)[0]["samples"]


def flat(frames: torch.Tensor) -> torch.Tensor:
    return frames.flatten(0, 1) if frames.ndim == 5 else frames


class TestReplaced:
    """Methods that another node has put in place of the VAE's or the network's own."""

    @pytest.mark.parametrize("tiling", ["auto", "whole"])
    def test_decode_and_encode_on_the_object(self, wan: Any, tiling: str) -> None:
        vae = copy.copy(wan)
        vae.decode = lambda samples: 1 - wan.decode(samples)
        vae.encode = lambda pixels: 2 * wan.encode(pixels)
        samples, pixels = torch.randn(1, 4, 3, 4, 6), torch.rand(5, 32, 48, 3)
        frames, report = decode(vae, samples, tiling=tiling)
        assert torch.equal(flat(frames), core_decode(vae, samples))
        assert not torch.equal(flat(frames), core_decode(wan, samples))
        assert report["vae_tiling"].applied == "its own decode"
        assert "another node has replaced" in report["vae_tiling"].reason
        latent, report = encode(vae, pixels, tiling=tiling)
        assert torch.equal(latent, core_encode(vae, pixels))
        assert report["vae_tiling"].applied == "its own encode"

    def test_a_subclass(self, image_vae: Any, core: Any) -> None:
        class Inverted(core.sd.VAE):
            def decode(self, samples: torch.Tensor) -> torch.Tensor:
                return 1 - super().decode(samples)

        vae = copy.copy(image_vae)
        vae.__class__ = Inverted
        samples = torch.rand(2, 4, 8, 6)
        frames, report = decode(vae, samples)
        assert torch.equal(frames, core_decode(vae, samples))
        assert not torch.equal(frames, core_decode(image_vae, samples))
        assert report["vae_tiling"].applied == "its own decode"

    def test_the_tiled_methods(self, image_vae: Any) -> None:
        vae = copy.copy(image_vae)
        vae.decode_tiled = lambda samples, **how: 1 - image_vae.decode_tiled(samples, **how)
        vae.encode_tiled = lambda pixels, **how: 2 * image_vae.encode_tiled(pixels, **how)
        samples, pixels = torch.rand(1, 4, 24, 20), torch.rand(1, 192, 160, 3)
        frames, report = decode(vae, samples, tiling="tiles", tile_size=64, overlap=16)
        assert torch.equal(frames, core_decode_tiled(vae, samples, 64, 16))
        assert "its own tiles" in report["vae_tiling"].applied
        latent, _ = encode(vae, pixels, tiling="tiles", tile_size=64, overlap=16)
        assert torch.equal(latent, core_encode_tiled(vae, pixels, 64, 16))

    def test_the_decode_of_a_network_whose_clips_stream(self, wan: Any) -> None:
        network = copy.copy(wan.first_stage_model)
        own = wan.first_stage_model.decode
        network.__dict__["decode"] = lambda z: -own(z)
        vae = with_network(wan, network)
        samples = torch.randn(1, 4, 3, 4, 6)
        frames, report = decode(vae, samples)
        assert torch.equal(flat(frames), core_decode(vae, samples))
        assert not torch.equal(flat(frames), core_decode(wan, samples))
        assert "streaming" not in report

    def test_the_decode_of_the_network_s_class(self, wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        own = type(wan.first_stage_model).decode
        monkeypatch.setattr(type(wan.first_stage_model), "decode", lambda self, z: -own(self, z))
        samples = torch.randn(1, 4, 3, 4, 6)
        frames, report = decode(wan, samples)
        assert torch.equal(flat(frames), core_decode(wan, samples))
        assert "streaming" not in report

    @pytest.mark.parametrize("part", ["network", "decoder", "in place"])
    def test_compiled(self, wan: Any, part: str) -> None:
        with torch.inference_mode(mode=False):
            network = copy.deepcopy(wan.first_stage_model)
        if part == "network":
            network = torch.compile(network, backend="eager")
        elif part == "decoder":
            network.decoder = torch.compile(network.decoder, backend="eager")
        else:
            network.decoder.compile(backend="eager")
        vae = with_network(wan, network)
        samples = torch.randn(1, 4, 2, 4, 6)
        frames, _ = decode(vae, samples)
        expected = core_decode(vae, samples)
        torch._dynamo.reset()
        assert torch.allclose(flat(frames), expected, atol=1e-6)
        assert torch.allclose(flat(frames), core_decode(wan, samples), atol=1e-6)

    def test_an_object_of_another_class(self, image_vae: Any) -> None:
        vae = SimpleNamespace(decode=lambda samples: image_vae.decode(samples), encode=image_vae.encode)
        samples, pixels = torch.rand(1, 4, 8, 6), torch.rand(1, 64, 48, 3)
        frames, report = decode(vae, samples)
        assert torch.equal(frames, core_decode(vae, samples))
        assert report["vae_tiling"].applied == "its own decode"
        assert torch.equal(encode(vae, pixels)[0], core_encode(vae, pixels))


class OwnTilesModel(LocalModel):
    """A network that cuts into tiles by itself, and leaves a mark that tells how."""

    def decode_tiled(self, z: torch.Tensor, **how: Any) -> torch.Tensor:
        return self.decode(z) * 0.5 + 1e-3 * sum(value or 0 for value in how.values())

    def encode_tiled(self, x: torch.Tensor, **how: Any) -> torch.Tensor:
        return self.encode(x) * 0.5 + 1e-3 * sum(value or 0 for value in how.values())


class TestOwnTiles:
    """VAEs with `handles_tiling`: SeedVR2, MiniMax H3."""

    @pytest.fixture
    def vae(self, video_vae: Any) -> Any:
        vae = with_network(video_vae, OwnTilesModel())
        vae.handles_tiling = True
        return vae

    def test_tiles_are_those_of_the_tiled_nodes(self, vae: Any) -> None:
        samples, pixels = torch.rand(1, 4, 3, 24, 20), torch.rand(5, 192, 160, 3)
        how = {"tiling": "tiles", "tile_size": 64, "overlap": 16, "temporal_slice": 4096}
        frames, report = decode(vae, samples, **how)
        node = sys.modules["nodes"]
        expected = node.VAEDecodeTiled().decode(vae, {"samples": samples}, 64, 16, 4096, 2048)[0]
        assert torch.allclose(flat(frames), expected, atol=1e-6)
        assert "its own tiles of 64 px" in report["vae_tiling"].applied
        latent, report = encode(vae, pixels, **how)
        expected = node.VAEEncodeTiled().encode(vae, pixels, 64, 16, 4096, 1024)[0]["samples"]
        assert torch.allclose(latent, expected, atol=1e-6)
        assert "its own tiles of 64 px" in report["vae_tiling"].applied

    @pytest.mark.parametrize("owned", [True, False])
    @pytest.mark.parametrize("clip", [True, False])
    def test_a_fallback_is_never_called_whole(self, vae: Any, image_vae: Any, clip: bool, owned: bool) -> None:
        vae = with_network(vae if clip else image_vae, OwnTilesModel(most_cells=3 * 16 * 16))
        vae.handles_tiling = owned
        shape = (3, 32, 32) if clip else (32, 32)
        samples = torch.rand(1, 4, *shape)
        with pytest.raises(torch.OutOfMemoryError):
            vae.first_stage_model.decode(samples)
        if owned and hasattr(type(vae), "_decode_tiled_owned"):  # its own tiles need as much as the whole here
            with pytest.raises(torch.OutOfMemoryError, match="out of memory with whole, then its own tiles"):
                decode(vae, samples, tiling="whole")
            return
        _, report = decode(vae, samples, tiling="whole")
        assert report["vae_tiling"].applied != "whole"
        assert report["vae_tiling"].failed


def test_the_format_of_an_encoded_latent_is_applied_to_tiles(clip_vae: Any) -> None:
    clip_vae.format_encoded = lambda samples: samples * 3
    pixels = torch.rand(5, 160, 112, 3)
    latent, report = encode(clip_vae, pixels, tiling="tiles", tile_size=64)
    expected = core_encode(clip_vae, pixels)
    if not hasattr(type(clip_vae), "_encode_tiled_owned"):  # a ComfyUI that has no such formats
        expected = expected * 3
    assert "tiles" in report["vae_tiling"].applied
    assert torch.allclose(latent, expected, atol=1e-5)


def test_free_memory_is_counted_by_the_vae_s_patcher(
    image_vae: Any, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows what the allocator can evict; the general count does not, and would ask for needless tiles."""
    monkeypatch.setattr(core.model_management, "get_free_memory", lambda *_args, **_options: 1 << 20)
    monkeypatch.setattr(core.model_management, "load_models_gpu", lambda *_args, **_options: None)
    monkeypatch.setattr(image_vae.patcher, "get_free_memory", lambda device: 1 << 40)
    _, report = decode(image_vae, torch.rand(1, 4, 64, 64))
    assert report["vae_tiling"].applied == "whole"


class TestChannels:
    def test_twelve_channel_frames(self, video_vae: Any) -> None:
        """Wan's VAE that gives pictures of twice the size, four pixels in one."""
        vae = core_vaes.small_wan(video_vae, "wan 2.1", conv_out_channels=12)
        vae.conv_out_channels = 12
        samples = torch.randn(1, 4, 3, 12, 10)
        frames, report = decode(vae, samples)
        assert frames.shape[-1] == 12
        assert torch.equal(flat(frames), core_decode(vae, samples))
        assert any("12 channels" in note for note in report.notes)
        tiled, report = decode(vae, samples, tiling="tiles", tile_size=64)
        assert "tiles" in report["vae_tiling"].applied
        assert tiled.shape == frames.shape

    def test_alpha_and_odd_sizes(self, image_vae: Any, clip_vae: Any) -> None:
        for vae in (image_vae, clip_vae):
            pixels = torch.rand(5, 165, 117, 4)
            latent, report = encode(vae, pixels)
            assert torch.equal(latent, core_encode(vae, pixels))
            assert any("alpha" in note for note in report.notes)
            assert any("cropped from 117x165 to 112x160" in note for note in report.notes)
            tiled, _ = encode(vae, pixels, tiling="tiles", tile_size=64)
            assert torch.allclose(tiled, latent, atol=1e-5)

    def test_less_than_a_cell(self, image_vae: Any) -> None:
        with pytest.raises(InputError, match="pixels = '7x64': one cell of this VAE's latents is 8 pixels"):
            encode(image_vae, torch.rand(1, 64, 7, 3))

    def test_alpha_that_a_vae_encodes(self, image_vae: Any) -> None:
        vae = with_network(image_vae, LocalModel())
        vae.output_channels, vae.pad_channel_value = 4, 1.0
        for channels in (3, 4):
            pixels = torch.rand(1, 64, 64, channels)
            latent, report = encode(vae, pixels)
            assert torch.equal(latent, core_encode(vae, pixels))
            assert not report.notes

    def test_a_grey_picture(self, image_vae: Any) -> None:
        reason = r"pixels = \[1, 64, 64, 1\]: this VAE encodes pictures of 3 channels, not 1\. Give the picture"
        with pytest.raises(InputError, match=reason):
            encode(image_vae, torch.rand(1, 64, 64, 1))


class TestAxes:
    def test_a_clip_s_latent_in_an_image_vae(self, image_vae: Any) -> None:
        samples = torch.rand(2, 4, 3, 8, 6)
        frames, report = decode(image_vae, samples)
        assert torch.equal(frames, core_decode(image_vae, samples))
        assert "the first of the latent's 3 frames was used: this VAE decodes pictures" in report.notes

    def test_a_picture_s_latent_in_a_video_vae(self, wan: Any) -> None:
        samples = torch.randn(2, 4, 4, 6)
        frames, _ = decode(wan, samples)
        assert torch.equal(flat(frames), core_decode(wan, samples.unsqueeze(2)))

    def test_clips_as_a_5_d_image(self, clip_vae: Any, image_vae: Any) -> None:
        pixels = torch.rand(2, 5, 68, 48, 3)
        latent, _ = encode(clip_vae, pixels)
        assert torch.equal(latent, torch.cat([core_encode(clip_vae, clip) for clip in pixels]))
        tiled, _ = encode(clip_vae, torch.rand(1, 5, 160, 112, 3), tiling="tiles", tile_size=64)
        assert tiled.shape == (1, 4, 2, 20, 14)
        latent, report = encode(image_vae, pixels)
        assert torch.equal(latent, core_encode(image_vae, pixels.flatten(0, 1)))
        assert any("one by one" in note for note in report.notes)

    def test_a_5_d_image_as_comfyui_takes_it(self, clip_vae: Any, core: Any) -> None:
        clip_vae.crop_input = False  # as SeedVR2's, which is who makes such images
        pixels = torch.rand(1, 5, 64, 48, 3)
        takes_clips = hasattr(core.sd.VAE, "_encode_tiled_owned")
        assert torch.equal(encode(clip_vae, pixels)[0], core_encode(clip_vae, pixels if takes_clips else pixels[0]))

    @pytest.mark.parametrize("shape", [(4, 8, 8), (0, 4, 8, 8), (1, 4, 0, 8, 8)])
    def test_no_latent_of_pictures(self, image_vae: Any, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"a latent of pictures or clips is \[batch, channels"):
            decode(image_vae, torch.rand(shape))


@pytest.mark.parametrize(
    ("module", "attributes", "kind"),
    [
        ("comfy.ldm.hunyuan3d.vae", {"latent_dim": 1}, "a VAE of 3D shapes"),
        ("comfy.ldm.trellis2.vae", {}, "a VAE of 3D shapes"),
        ("comfy.ldm.audio.autoencoder", {"latent_dim": 1}, "an audio VAE"),
        ("comfy.ldm.minimax.audio_vae", {}, "an audio VAE"),
        ("comfy.ldm.ace.vae.music_dcae_pipeline", {"extra_1d_channel": 16}, "an audio VAE"),
    ],
)
def test_vaes_of_other_things_are_called_what_they_are(
    image_vae: Any, module: str, attributes: dict[str, Any], kind: str
) -> None:
    network = type("Network", (LocalModel,), {"__module__": module})()
    vae = with_network(image_vae, network)
    for name, value in attributes.items():
        setattr(vae, name, value)
    with pytest.raises(InputError, match=f"vae = '{kind}': this node decodes images and video"):
        decode(vae, torch.rand(1, 4, 8, 8))
    with pytest.raises(InputError, match=f"vae = '{kind}': this node encodes images and video"):
        encode(vae, torch.rand(1, 64, 64, 3))

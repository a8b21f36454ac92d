"""The estimate of a decode's memory agrees with what a real decode holds, and costs nothing."""

from __future__ import annotations

from types import MappingProxyType

import diffusers
import pytest
import torch

from fastdiffusers.memory import LiveBytes
from fastdiffusers.optimizations import decode_memory
from fastdiffusers.optimizations.decode_memory import WORKSPACE, DecodeCost, decode_cost
from fastdiffusers.optimizations.settings import Workload
from fastdiffusers.optimizations.vae_memory import estimate

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
MAKERS = {
    "image": lambda: diffusers.AutoencoderKL(
        **BLOCKS, block_out_channels=(8, 16, 16, 16), norm_num_groups=4, latent_channels=4
    ),
    "wan": lambda: diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1),
    "hunyuan": lambda: diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=16
    ),
    "kvae": lambda: diffusers.AutoencoderKLKVAE(channels=32, num_enc_blocks=1, num_dec_blocks=1, ch_mult=(1, 1, 1)),
    "qwen 2.1": lambda: diffusers.AutoencoderKLQwenImage21(base_dim=8, decoder_base_dim=8, num_res_blocks=1),
}
UNKNOWN = {
    "AutoencoderKLAllegro",  # decodes in tiles only
    "AutoencoderKLMiniMaxH3",  # clips of certain lengths only
    "AutoencoderKLTemporalDecoder",  # wants the number of frames
    "AutoencoderVidTok",  # returns a tensor
    "AutoencoderRAE",  # latents of one size
    "ConsistencyDecoderVAE",  # looks at values
}
SOUND = {
    "AutoencoderSAME",
    "AutoencoderKLKVAEAudio",
    "AutoencoderKLLTX2Audio",
    "AutoencoderKLMiniMaxH3Audio",
    "AutoencoderOobleck",
}
EVERY_CLASS = sorted(
    {name for name in dir(diffusers) if name.startswith("Autoencoder")} - SOUND - {"AutoencoderKLHunyuanImage"}
    | {"AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "VQModel"}
)


@pytest.fixture(autouse=True)
def _forget():
    decode_memory._known.clear()


def bytes_alive(vae, latent):
    """Peak of a real decode, counted the same way but on real tensors."""
    with torch.no_grad(), LiveBytes() as live:
        pixels = vae.decode(latent, return_dict=False)[0]
    return live.peak, pixels


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image", (1, 4, 24, 40)),
        ("wan", (1, 16, 1, 24, 20)),
        ("kvae", (1, 16, 24, 40)),
        ("qwen 2.1", (1, 64, 1, 24, 20)),
    ],
)
def test_the_estimate_of_a_picture_agrees_with_a_real_decode(name, shape):
    vae = MAKERS[name]().eval()
    real, pixels = bytes_alive(vae, torch.randn(shape))
    height, width = pixels.shape[-2:]
    estimate = decode_cost(vae).bytes(Workload(width, height), torch.float32)
    assert real * 0.95 <= estimate / WORKSPACE <= real * 1.1


@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_the_estimate_of_a_clip_agrees_with_a_real_decode(name):
    vae = MAKERS[name]().eval()
    real, pixels = bytes_alive(vae, torch.randn(1, 16, 5, 12, 10))
    frames, height, width = pixels.shape[2:]
    estimate = decode_cost(vae, clip=True).bytes(Workload(width, height, frames), torch.float32)
    assert real * 0.9 <= estimate / WORKSPACE <= real * 1.15


def test_memory_grows_with_pixels_batch_type_and_frames():
    cost = DecodeCost(single=100.0, start=200.0, each=10.0)
    one = cost.bytes(Workload(64, 64), torch.float16)
    assert one == int(64 * 64 * 100 * 2 * WORKSPACE)
    assert cost.bytes(Workload(64, 64), torch.float32) == 2 * one
    assert cost.bytes(Workload(128, 64), torch.float16, batch=3) == pytest.approx(6 * one)
    assert cost.bytes(Workload(64, 64, frames=80), torch.float16) == 10 * one
    assert cost.bytes(Workload(64, 64, frames=80, streamed=True), torch.float16) == int(2.5 * one)
    assert cost.bytes(Workload(), torch.float16) == 0


def test_it_is_measured_once_per_configuration_and_leaves_the_random_state(monkeypatch):
    vae = MAKERS["image"]()
    before = torch.get_rng_state()
    first = decode_cost(vae)
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(decode_memory, "_measure", lambda *_: pytest.fail("measured again"))
    assert decode_cost(MAKERS["image"]()) is first


def test_a_vae_of_an_unknown_kind_gives_none():
    class Odd:
        config = MappingProxyType({"latent_channels": 4})

        @classmethod
        def from_config(cls, config):
            raise TypeError("no such argument")

    assert decode_cost(Odd()) is None
    assert decode_cost(object()) is None


@pytest.mark.parametrize("name", EVERY_CLASS)
def test_every_class_of_vae_has_a_cost_or_says_that_it_is_not_known(name):
    with torch.device("meta"):
        vae = getattr(diffusers, name)()
    cost, size = decode_cost(vae), estimate(vae, Workload(512, 512))
    if name in UNKNOWN:
        assert cost is None
        assert size is None
    else:
        assert cost.single > 0
        assert size > 0


def test_a_vae_that_is_told_the_noise_level_has_a_cost():
    narrow = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "latent_channels": 8}
    layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    assert decode_cost(diffusers.AutoencoderKLLTXVideo(**narrow, **layers, timestep_conditioning=True), clip=True)

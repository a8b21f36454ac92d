"""A network of ComfyUI's own that cuts clips and frames into tiles by itself, beside what ComfyUI's nodes give."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import core_vaes
import pytest
import torch
from core_vaes import decode

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes() -> Iterator[None]:
    with torch.inference_mode():
        yield


def minimax_h3(core: Any) -> Any:
    """ComfyUI's VAE object around a small MiniMax H3 network: 17k + 5 frames for 5k + 2 latent frames."""
    import comfy.ldm.minimax.vae as h3

    def small(*_: Any, **options: Any) -> Any:
        network = real(ch=32, num_res_blocks=1, tile_size=64, tile_overlap_min=32, **options)
        network.decoder = h3.ViT3DDecoder(num_layers=2, heads=2, dim_head=16, in_channels=24)
        torch.manual_seed(0)
        for parameter in network.parameters():  # ComfyUI leaves the weights of a new network unset
            parameter.data.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
        network.decoder.mask_token.zero_()
        return network

    real = h3.MiniMaxH3VideoVAE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h3, "MiniMaxH3VideoVAE", small)
        return core.sd.VAE(sd=small().state_dict())


@pytest.fixture(scope="module")
def vae(core: Any) -> Any:
    """MiniMax H3's where this ComfyUI has it; else Wan's, which leaves its tiles to ComfyUI."""
    with torch.inference_mode():
        if importlib.util.find_spec("comfy.ldm.minimax") is not None:
            return minimax_h3(core)
        return core_vaes.small_wan(core_vaes.video_vae(core), "wan 2.1")


def samples_for(vae: Any, frames: int) -> torch.Tensor:
    return torch.randn(1, vae.latent_channels, frames, 6, 5, generator=torch.Generator().manual_seed(1))


def flat(frames: torch.Tensor) -> torch.Tensor:
    return frames.flatten(0, 1) if frames.ndim == 5 else frames


@pytest.mark.parametrize("frames", [1, 2, 7, 8])
def test_whole_and_auto_are_vae_decode(vae: Any, frames: int) -> None:
    samples = samples_for(vae, frames)
    expected = flat(sys.modules["nodes"].VAEDecode().decode(vae, {"samples": samples})[0])
    for tiling in ("whole", "auto"):
        made, _ = decode(vae, samples, tiling=tiling)
        assert flat(made).shape == expected.shape
        assert torch.allclose(flat(made), expected, atol=1e-5)


def test_tiles_are_those_of_the_tiled_node(vae: Any) -> None:
    samples = samples_for(vae, 7)
    made, _ = decode(vae, samples, tiling="tiles", tile_size=64, overlap=32, temporal_slice=4096)
    node = sys.modules["nodes"].VAEDecodeTiled()
    expected = flat(node.decode(vae, {"samples": samples}, 64, 32, 4096, 2048)[0])
    assert torch.allclose(flat(made), expected, atol=1e-5 if getattr(vae, "handles_tiling", False) else 0.2)


@pytest.mark.parametrize("frames", [1, 5, 22, 9])
def test_a_clip_comes_back_as_long_as_it_went_in_or_the_report_counts(vae: Any, frames: int) -> None:
    from fastdiffusers.callbacks import SILENT
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices

    pixels = torch.rand(frames, 96, 80, 3, generator=torch.Generator().manual_seed(2))
    latent, report = vae_engines.encode(vae, pixels, VaeChoices(), SILENT)
    decoded, _ = vae_engines.decode(vae, latent, VaeChoices(), SILENT)
    back = flat(decoded).shape[0]
    dropped = f"the last {frames - back} of {frames} frames were dropped: this VAE encodes {back} of them"
    assert report.notes == ([dropped] if back < frames else [])
    assert back <= frames
    expected = sys.modules["nodes"].VAEEncode().encode(vae, pixels)[0]["samples"]
    assert torch.allclose(latent["samples"], expected, atol=1e-4)

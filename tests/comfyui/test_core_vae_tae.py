"""ComfyUI's small video VAEs (TAEHV), of whose frames and sizes ComfyUI's VAE object knows too little."""

from __future__ import annotations

import sys
from typing import Any

import core_vaes
import pytest
import torch

from fastdiffusers.callbacks import SILENT

torch.set_num_threads(1)

CHANNELS = {"Wan 2.1": 16, "Wan 2.2": 48, "LTX-2": 128, "MiniMax H3": 24}
NEW = pytest.param("MiniMax H3", marks=pytest.mark.core_has("comfy/ldm/minimax/model.py"))
KINDS = ["Wan 2.1", "Wan 2.2", "LTX-2", NEW]


@pytest.fixture(scope="module")
def vaes(core: Any) -> Any:
    made: dict[str, Any] = {}

    def of(kind: str) -> Any:
        if kind not in made:
            from comfy.taesd.taehv import TAEHV

            torch.manual_seed(0)
            with torch.inference_mode(mode=False):
                network = TAEHV(latent_channels=CHANNELS[kind])
                for parameter in network.parameters():
                    parameter.data.zero_()
                    if parameter.ndim > 1:
                        parameter.data.normal_(std=parameter[0].numel() ** -0.5)
                made[kind] = core.sd.VAE(sd=dict(network.state_dict()), dtype=torch.float32)
            assert type(made[kind].first_stage_model) is TAEHV
        return made[kind]

    return of


def encode(vae: Any, pixels: torch.Tensor, **choices: Any) -> tuple[torch.Tensor, Any]:
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices

    with torch.inference_mode():
        latent, report = vae_engines.encode(vae, pixels, VaeChoices(**choices), SILENT)
    return latent["samples"], report


def decode(vae: Any, samples: torch.Tensor, **choices: Any) -> tuple[torch.Tensor, Any]:
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices

    with torch.inference_mode():
        frames, report = vae_engines.decode(vae, {"samples": samples}, VaeChoices(**choices), SILENT)
    return frames.flatten(0, 1), report


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 5, 9, 22, 23])
def test_the_report_says_how_many_frames_a_decode_will_give(vaes: Any, kind: str, length: int) -> None:
    vae = vaes(kind)
    samples, report = encode(vae, torch.rand(length, 64, 64, 3), tiling="whole")
    with torch.inference_mode():
        back = sys.modules["nodes"].VAEDecode().decode(vae, {"samples": samples})[0].shape[0]
    said = f"the {length} frames became {samples.shape[2]} of the latent, which a decode turns into {back}"
    if kind == "MiniMax H3":
        said = f"the last {length - back} of {length} frames were dropped: this VAE encodes {back} of them"
    assert report.notes == ([said] if back < length else [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "temporal_slice"), [(1, 0), (7, 8), (12, 8), (12, 22)])
def test_tiles_give_what_the_whole_has_room_for(vaes: Any, kind: str, frames: int, temporal_slice: int) -> None:
    vae = vaes(kind)
    samples = torch.randn(1, CHANNELS[kind], frames, 4, 6)
    whole, _ = decode(vae, samples, tiling="whole")
    how = {"tiling": "tiles", "tile_size": 64, "overlap": 16, "temporal_slice": temporal_slice}
    made, report = decode(vae, samples, **how)
    assert made.shape == whole.shape
    assert made.isfinite().all()
    assert ("not cut into tiles" in report["vae_tiling"].reason) == (kind == "LTX-2")
    assert torch.equal(made, whole) or kind != "LTX-2"
    assert any("come in groups" in note for note in report.notes) == (kind == "MiniMax H3" and temporal_slice > 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "temporal_slice"), [(1, 0), (22, 8), (23, 22), (56, 22)])
def test_tiles_of_a_clip_leave_no_gap(vaes: Any, kind: str, frames: int, temporal_slice: int) -> None:
    vae = vaes(kind)
    pixels = torch.rand(frames, 96, 64, 3)
    whole, _ = encode(vae, pixels, tiling="whole")
    made, report = encode(vae, pixels, tiling="tiles", tile_size=64, overlap=16, temporal_slice=temporal_slice)
    assert made.shape == whole.shape
    assert made.isfinite().all()
    assert torch.equal(made, whole) or "tiles" in report["vae_tiling"].applied
    assert torch.equal(made, whole) or kind != "LTX-2"


@pytest.mark.parametrize(("frames", "temporal_slice"), [(21, 14), (23, 2), (53, 22)])
def test_slices_of_wan_s_clips_begin_with_a_latent_s_frame(core: Any, frames: int, temporal_slice: int) -> None:
    with torch.inference_mode():
        vae = core_vaes.small_wan(core_vaes.video_vae(core), "wan 2.1")
    pixels = torch.rand(frames, 64, 64, 3)
    whole, _ = encode(vae, pixels, tiling="whole")
    made, _ = encode(vae, pixels, tiling="tiles", tile_size=64, temporal_slice=temporal_slice)
    assert made.shape == whole.shape
    assert made.isfinite().all()

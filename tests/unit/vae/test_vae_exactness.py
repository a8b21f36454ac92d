"""The video VAE against the established implementation's results, and each way of running it against the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_models import DATA, MANIFEST, golden_vae
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fastdiffusers.benchmarks.vae_ablation import OPTIMIZATIONS, only
from fastdiffusers.vae import VaeSettings, VideoVAE, decode_raw, encode_raw
from fastdiffusers.vae.network import convolution, sources
from fastdiffusers.vae.network import polyphase as polyphase_module
from fastdiffusers.vae.network.causal_conv import CausalConv3d
from fastdiffusers.vae.network.convolution import conv3d

GOLDEN_TOLERANCE = 1e-4
"""Of the golden's standard deviation, in float32."""
EXACT_TOLERANCE = 2e-5
"""Between ways of cutting the same computation: slices, strips, batches."""
ARITHMETIC_TOLERANCE = 5e-5
"""Between two ways of computing the same thing: sums in another order, composed weights."""
Latents = Callable[..., torch.Tensor]


def golden_settings(options: dict[str, Any], **changes: Any) -> VaeSettings:
    chosen: dict[str, Any] = {"mode": "whole", "temporal_slice": options["split"] // 4 if "split" in options else 0}
    if options.get("tiled"):
        tile, overlap = tuple(options["tile_size"]), tuple(options["tile_overlap"])
        chosen |= {"mode": "tiles", "blending": "reference", "tile_size": tile, "tile_overlap": overlap}
    return VaeSettings(**{**chosen, **changes})


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).abs().max() / expected.std())


def run_golden(case: dict[str, Any], chosen: VaeSettings) -> float:
    stored = load_file(DATA / f"{case['name']}.safetensors")
    run = decode_raw if case["op"] == "decode" else encode_raw
    result, _ = run(golden_vae(case["cfg"]), stored["x"], chosen)
    assert result.shape == stored["y"].shape
    return error(result, stored["y"])


@pytest.mark.parametrize("case", MANIFEST["cases"], ids=lambda case: case["name"])
def test_goldens(case: dict[str, Any]) -> None:
    assert run_golden(case, golden_settings(case["opts"])) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("case", [c for c in MANIFEST["cases"] if c["cfg"] != "full"], ids=lambda case: case["name"])
def test_goldens_with_every_optimization_off(case: dict[str, Any]) -> None:
    with only():
        assert run_golden(case, golden_settings(case["opts"], kernels="plain")) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("polyphase", [False, True])
def test_a_bias_that_is_added_later_changes_nothing(
    small: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch, polyphase: bool
) -> None:
    """As on cards, where it would be a pass of its own."""
    chosen = VaeSettings(mode="exact", strips=(3, 2), kernels="eager")
    z = latents(3)
    biases = []

    def without_bias(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        biases.append(bias)
        return conv3d(x, weight, bias)

    with only(*(name for name in OPTIMIZATIONS if polyphase or name != "polyphase_upsampling")):
        expected, _ = decode_raw(small, z, chosen)
        monkeypatch.setattr(convolution, "on_card", lambda x: True)
        for module in (sources, polyphase_module):
            monkeypatch.setattr(module, "conv3d", without_bias)
        later, _ = decode_raw(small, z, chosen)
    assert biases
    assert not any(bias is not None for bias in biases)
    assert error(later, expected) <= ARITHMETIC_TOLERANCE


@pytest.mark.parametrize("name", OPTIMIZATIONS)
def test_each_optimization_alone_changes_nothing(small: VideoVAE, latents: Latents, name: str) -> None:
    z = latents(3)
    with only():
        plain, _ = decode_raw(small, z, VaeSettings(mode="whole"))
    with only(name):
        alone, _ = decode_raw(small, z, VaeSettings(mode="whole"))
    assert error(alone, plain) <= ARITHMETIC_TOLERANCE


def test_what_is_not_wanted_is_taken_away_and_put_back() -> None:
    changes = [change for changes in OPTIMIZATIONS.values() for change in changes]
    before = [getattr(place, attribute) for place, attribute, _ in changes]
    last = {(place, attribute): replacement for place, attribute, replacement in changes}
    with only():
        assert all(getattr(place, attribute) is replacement for (place, attribute), replacement in last.items())
    with only("folded_head"):
        assert CausalConv3d._front in before
    assert [getattr(place, attribute) for place, attribute, _ in changes] == before


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    slice_length=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 3),
)
def test_slices_and_strips_equal_the_one_shot_decode(
    frames: int, height: int, width: int, slice_length: int, rows: int, columns: int
) -> None:
    vae = golden_vae("small_q")
    z = torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(frames * 100 + height))
    whole, _ = decode_raw(vae, z, VaeSettings(mode="whole", temporal_slice=frames))
    chosen = VaeSettings(mode="exact", strips=(rows, columns), temporal_slice=slice_length)
    result, _ = decode_raw(vae, z, chosen)
    assert error(result, whole) <= EXACT_TOLERANCE


@settings(max_examples=6, deadline=None)
@given(
    groups=st.integers(0, 3),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    slice_length=st.integers(1, 3),
    rows=st.integers(1, 3),
)
def test_encode_in_slices_and_strips_equals_one_shot(
    groups: int, height: int, width: int, slice_length: int, rows: int
) -> None:
    vae = golden_vae("small_q")
    x = torch.rand(1, 3, 4 * groups + 1, height, width, generator=torch.Generator().manual_seed(height)) * 2 - 1
    whole, _ = encode_raw(vae, x, VaeSettings(mode="whole", temporal_slice=groups + 1))
    result, _ = encode_raw(vae, x, VaeSettings(mode="exact", strips=(rows, 1), temporal_slice=slice_length))
    assert error(result, whole) <= EXACT_TOLERANCE


def test_batches_decode_like_single_clips(small: VideoVAE, latents: Latents) -> None:
    z = latents(2, batch=3)
    together, _ = decode_raw(small, z, VaeSettings(mode="whole"))
    for index in range(3):
        alone, _ = decode_raw(small, z[index : index + 1], VaeSettings(mode="whole"))
        assert error(together[index : index + 1], alone) <= EXACT_TOLERANCE


@pytest.mark.parametrize("overlap", [0, 1, 7, 16, 40, 63])
def test_smooth_tiles_of_any_overlap_leave_no_holes(small: VideoVAE, latents: Latents, overlap: int) -> None:
    z = latents(1, 12, 9)
    result, report = decode_raw(small, z, VaeSettings(mode="tiles", tile_size=64, tile_overlap=overlap))
    whole, _ = decode_raw(small, z, VaeSettings(mode="whole"))
    assert bool(result.abs().amax(dim=1).gt(0).all())
    assert error(result, whole) < 3.0
    assert "tiles" in report["spatial"].applied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(small: VideoVAE, latents: Latents, dtype: torch.dtype) -> None:
    from golden_models import golden_config, golden_weights

    from fastdiffusers.vae import from_state_dict

    half = from_state_dict(golden_weights("small"), config=golden_config("small"), dtype=dtype)
    z = latents(2)
    expected, _ = decode_raw(small, z)
    result, _ = decode_raw(half, z)
    rms = float((result - expected).square().mean().sqrt() / expected.std())
    assert rms <= (0.05 if dtype == torch.bfloat16 else 0.01)

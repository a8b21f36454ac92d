"""Differences between results, and real readings of this machine."""

from __future__ import annotations

import gc
import math

import pytest
import torch

from fastdiffusers.optimizations.components import resident_bytes
from fastdiffusers.optimizations.tuning import meters
from fastdiffusers.optimizations.tuning.meters import DeviceMemoryMeter, PeakMemory, stopwatch
from fastdiffusers.optimizations.tuning.quality import psnr, quality, ssim

CPU = torch.device("cpu")


def frames(seed: int = 0, count: int = 3) -> torch.Tensor:
    return torch.rand(1, count, 24, 20, 3, generator=torch.Generator().manual_seed(seed))


def test_equal_results_are_identical() -> None:
    found = quality(frames(), frames())
    assert found.identical
    assert found.lossless
    assert found.psnr_db is None
    assert found.max_difference == 0


def test_a_known_error_gives_the_known_psnr() -> None:
    plain = torch.full((1, 2, 16, 16, 3), 0.5)
    found = quality(plain + 0.1, plain)
    assert found.psnr_db == pytest.approx(20.0, abs=1e-4)
    assert found.max_difference == pytest.approx(0.1)
    assert not found.lossless


def test_one_level_of_255_is_lossless_and_ten_are_not() -> None:
    plain = frames()
    assert quality(plain + 0.5 / 255, plain).lossless
    assert not quality(plain + 10 / 255, plain).lossless


def test_nan_and_infinity_are_named() -> None:
    for bad in (math.nan, math.inf):
        broken = frames()
        broken[0, 1, 2, 3, 0] = bad
        assert not quality(broken, frames()).finite
        assert not quality(broken, frames()).lossless
        assert "plain" in quality(frames(), broken).problem


def test_another_shape_has_no_comparison() -> None:
    found = quality(frames(count=2), frames(count=3))
    assert found.psnr_db is None
    assert "shape" in found.problem
    assert not found.lossless


def test_ssim_agrees_with_its_definition() -> None:
    one, other = frames(1)[0, 0], frames(2)[0, 0]
    assert ssim(one, one) == pytest.approx(1.0)
    assert ssim(one, other) == pytest.approx(0.0, abs=0.15)  # independent noise has no structure in common
    constant = torch.full((16, 16, 3), 0.5)
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4)  # no variance: the luminance term alone is left
    assert ssim(constant, constant + 0.1) == pytest.approx(expected, rel=1e-4)
    assert ssim(one[:8], other[:8]) is None


def test_psnr_of_no_error_is_infinite() -> None:
    assert psnr(0) is None
    assert psnr(1.0) == 0


def test_latents_are_compared_without_picture_measures() -> None:
    found = quality(torch.ones(1, 16, 8, 8), torch.zeros(1, 16, 8, 8))
    assert found.psnr_db == 0
    assert found.ssim is None


def test_the_wall_clock_runs_forward() -> None:
    watch = stopwatch(CPU)
    start = watch.mark()
    assert watch.between(start, watch.mark()) >= 0


def test_the_meter_sees_main_memory_grow_and_begins_anew() -> None:
    meter = DeviceMemoryMeter(CPU)
    gc.collect()  # what earlier tests left behind must not be given back in the middle of this one
    meter.empty()
    meter.reset()
    before = meter.peak().host
    block = torch.ones(2**28, dtype=torch.uint8)  # 256 MiB, touched
    meter.sample()
    grown = meter.peak().host
    del block
    assert before is not None
    assert grown is not None
    assert grown - before > 50 * 2**20
    assert meter.peak().allocated is None
    if meters.reset_host_peak():
        meter.reset()
        after = meter.peak().host
        assert after is not None
        assert after < grown - 30 * 2**20


def test_peaks_are_joined_field_by_field() -> None:
    joined = PeakMemory(1, None, 5).highest(PeakMemory(2, 7, 3))
    assert joined == PeakMemory(2, 7, 5)
    assert joined.headline == 7
    assert PeakMemory(host=4).headline == 4


def test_resident_bytes_counts_shared_and_offloaded_weights_right() -> None:
    here, away = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 5, bias=False, device="meta")
    both = torch.nn.ModuleList([here, here, away])
    assert resident_bytes([both, here], CPU) == (400, 600)

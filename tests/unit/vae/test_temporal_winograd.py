"""Convolutions over time from sums of frames: against conv3d, in the whole VAE, within memory, chosen by measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_models import MANIFEST, golden_config, golden_vae, golden_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vae_exactness import (
    ARITHMETIC_TOLERANCE,
    EXACT_TOLERANCE,
    GOLDEN_TOLERANCE,
    error,
    golden_settings,
    run_golden,
)

from fastdiffusers.memory import LiveBytes
from fastdiffusers.vae import VaeSettings, VideoVAE, decode_raw, encode_raw, from_state_dict, planner
from fastdiffusers.vae.kernels import temporal_choice
from fastdiffusers.vae.kernels.saved_choices import SavedChoices
from fastdiffusers.vae.kernels.temporal_choice import TemporalChoice
from fastdiffusers.vae.network import temporal, winograd
from fastdiffusers.vae.network.convolution import torch_conv3d
from fastdiffusers.vae.processor_layouts import SLICES, WORKSPACES, WorkspaceChoice, cuts

Latents = Callable[..., torch.Tensor]
LAST = torch.channels_last_3d


@settings(max_examples=60, deadline=None)
@given(
    taps=st.sampled_from([2, 3]),
    most=st.integers(1, 4),
    frames=st.integers(1, 11),
    head=st.booleans(),
    plane=st.sampled_from([(1, 1), (3, 3), (2, 2), (3, 1)]),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    add=st.booleans(),
    chunk=st.sampled_from([1, 20_000, 1 << 25]),
    cut=st.booleans(),
)
def test_any_number_of_frames_is_what_conv3d_makes(
    taps: int,
    most: int,
    frames: int,
    head: bool,
    plane: tuple[int, int],
    size: tuple[int, int],
    add: bool,
    chunk: int,
    cut: bool,
) -> None:
    frames += 0 if head else taps - 1
    generator = torch.Generator().manual_seed(frames)
    x = torch.randn(1, 8, frames, *size, generator=generator).contiguous(memory_format=LAST)
    weight = torch.randn(6, 8, taps, *plane, generator=generator) / (8 * taps * plane[0] * plane[1]) ** 0.5
    bias = torch.randn(6, generator=generator)
    before = torch.cat([x[:, :, :1]] * (taps - 1) + [x], dim=2) if head else x
    expected = F.conv3d(before.double(), weight.double(), bias.double())
    room = torch.ones(1, 6, *expected.shape[2:4], expected.shape[4] + 2 * cut).contiguous(memory_format=LAST)
    out = room[..., 1:-1] if cut else room  # a column strip of a plane is no matrix in memory
    how = winograd.scheme(taps, frames, most, head=head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "CHUNK", chunk)
        winograd.convolve(x, winograd.transformed(weight, most), bias, how, out, add=add)
    torch.testing.assert_close(out.double(), expected + add, rtol=0, atol=2e-5)
    if cut:
        assert bool((room[..., 0] == 1).all())
        assert bool((room[..., -1] == 1).all())


@pytest.mark.parametrize(
    ("taps", "frames", "head", "planes"),
    [
        (3, 6, False, 6),  # four frames from 6 planes instead of 12
        (3, 4, False, 4),
        (3, 5, False, 5),
        (3, 7, False, 9),
        (3, 9, True, 13),  # the first frame by itself, then two blocks, instead of 24
        (2, 5, False, 5),
        (2, 3, False, 3),
    ],
)
def test_planes_convolved(taps: int, frames: int, head: bool, planes: int) -> None:
    assert len(winograd.scheme(taps, frames, 4, head=head).inputs) == planes


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("case", [c for c in MANIFEST["cases"] if c["cfg"] != "full"], ids=lambda case: case["name"])
def test_goldens_in_blocks(case: dict) -> None:
    assert run_golden(case, golden_settings(case["opts"])) <= GOLDEN_TOLERANCE


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize(
    "chosen",
    [
        VaeSettings(),
        VaeSettings(mode="whole", temporal_slice=1),
        VaeSettings(mode="whole", temporal_slice=2),
        VaeSettings(mode="whole", temporal_slice=5),
        VaeSettings(mode="exact", strips=(3, 1), temporal_slice=1),
        VaeSettings(mode="exact", strips=(2, 3), temporal_slice=3),
    ],
)
def test_slices_and_strips_in_blocks_decode_alike(small: VideoVAE, latents: Latents, chosen: VaeSettings) -> None:
    z = latents(6)
    expected, plain = decode_raw(small, z, VaeSettings(mode="whole", convolution="conv3d"))
    result, report = decode_raw(small, z, chosen)
    assert error(result, expected) <= ARITHMETIC_TOLERANCE
    assert plain["convolution"].applied == "conv3d"
    assert "temporal Winograd F(4,3)" in report["convolution"].applied
    assert "temporal Winograd F(4,2)" in report["convolution"].applied


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("slice_length", [0, 1, 2])
def test_an_encode_in_blocks(small: VideoVAE, slice_length: int) -> None:
    x = torch.rand(1, 3, 13, 24, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, _ = encode_raw(small, x, VaeSettings(convolution="conv3d"))
    result, report = encode_raw(small, x, VaeSettings(temporal_slice=slice_length))
    assert error(result, expected) <= ARITHMETIC_TOLERANCE
    assert "F(4,3)" in report["convolution"].applied


@pytest.mark.usefixtures("in_blocks")
def test_strips_are_the_whole_plane(small: VideoVAE, latents: Latents) -> None:
    z = latents(3, 8, 8)
    whole, _ = decode_raw(small, z, VaeSettings(mode="whole", temporal_slice=2))
    strips, _ = decode_raw(small, z, VaeSettings(mode="exact", strips=(4, 2), temporal_slice=2))
    assert error(strips, whole) <= EXACT_TOLERANCE


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize(("dtype", "way"), [(torch.bfloat16, "F(4,3)"), (torch.float16, "F(2,3)")])
def test_half_precision_only_where_it_is_asked_for(latents: Latents, dtype: torch.dtype, way: str) -> None:
    half = from_state_dict(golden_weights("small"), config=golden_config("small"), dtype=dtype)
    z = latents(3)
    exact, _ = decode_raw(golden_vae("small"), z, VaeSettings(convolution="conv3d"))
    plain, report = decode_raw(half, z)
    assert report["convolution"].applied == "conv3d"
    assert "fast" in report["convolution"].reason
    fast, report = decode_raw(half, z, VaeSettings(convolution="fast"))
    assert way in report["convolution"].applied
    rms = [float((y - exact).square().mean().sqrt() / exact.std()) for y in (plain, fast)]
    assert rms[1] <= 2 * rms[0]


@pytest.mark.usefixtures("in_blocks")
def test_kept_kernels_are_used_again_and_forgotten_with_their_weights(latents: Latents) -> None:
    vae = from_state_dict(golden_weights("small"), config=golden_config("small"))
    z = latents(3)
    first, report = decode_raw(vae, z)
    kept = vae.transformed.nbytes("decoder.")
    assert kept
    assert kept == vae.transformed.nbytes()
    assert "transformed kernels kept" in report["convolution"].cost
    assert torch.equal(decode_raw(vae, z)[0], first)
    assert vae.transformed.nbytes() == kept
    vae.to(torch.float64)
    assert not vae.transformed.nbytes()
    vae.to(torch.float32)
    decode_raw(vae, z)
    with torch.no_grad():
        for weight in vae.decoder.parameters():
            weight.mul_(0.9)
    changed, _ = decode_raw(vae.prepare(), z)
    expected, _ = decode_raw(vae, z, VaeSettings(convolution="conv3d"))
    assert error(changed, expected) <= ARITHMETIC_TOLERANCE


def peak(vae: VideoVAE, z: torch.Tensor, chosen: VaeSettings) -> tuple[int, str]:
    """Most bytes alive above weights and output, kernels kept among them; and how the report puts their cost."""
    vae.transformed.drop()
    with torch.no_grad(), LiveBytes() as live:
        result, report = decode_raw(vae, z, chosen)
    return live.peak - result.nbytes, report["convolution"].cost


@pytest.mark.usefixtures("in_blocks")
def test_the_budget_holds_with_kept_kernels(small: VideoVAE, latents: Latents) -> None:
    z = latents(5, 9, 9)
    most, cost = peak(small, z, VaeSettings())
    assert "kept" in cost
    for share in (0.9, 0.6):
        budget = int(share * most)
        needed, _ = peak(small, z, VaeSettings(mode="exact", memory_budget_gib=budget / 2**30))
        assert needed <= 1.1 * budget
        assert needed < most


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"convolution": "fast", "mode": "exact"}, "memory is too short"),
        ({"mode": "exact"}, "memory is too short"),
        ({"convolution": "conv3d", "mode": "exact"}, ""),
        ({"convolution": "fast", "kernels": "plain"}, "kernels plain"),
        ({"kernels": "plain"}, ""),
    ],
)
def test_the_report_says_why_there_are_no_blocks(
    small: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch, chosen: dict, reason: str
) -> None:
    monkeypatch.setattr(planner, "cuts", lambda *_: iter(()))  # as where none of them fits
    record = decode_raw(small, latents(3), VaeSettings(**chosen))[1]["convolution"]
    assert record.applied == "conv3d"
    assert record.reason.startswith(reason)
    assert bool(record.reason) == bool(reason)


@pytest.mark.usefixtures("in_blocks")
def test_kernels_for_small_planes_are_not_kept(
    small: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = latents(3)
    small.transformed.drop()
    expected, _ = decode_raw(small, z)
    assert small.transformed.nbytes()
    small.transformed.drop()
    monkeypatch.setattr(temporal, "CELLS_TO_KEEP", 1 << 40)
    made, report = decode_raw(small, z)
    assert not small.transformed.nbytes()
    assert "Winograd" in report["convolution"].applied
    assert error(made, expected) <= EXACT_TOLERANCE
    monkeypatch.setattr(temporal, "FEWEST_CELLS", 1 << 40)
    assert decode_raw(small, z)[1]["convolution"].applied == "conv3d"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch's own loops lay out otherwise")
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
def test_a_dry_run_lays_out_as_a_real_one(stride: tuple[int, ...], layout: torch.memory_format) -> None:
    """Else it misses what is made where channels lie last: an encode seemed to take a third of what it took."""
    x, weight = torch.zeros(1, 8, 5, 7, 9), torch.zeros(4, 8, 3, 3, 3)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    real = torch_conv3d(x, weight, None, stride)
    dry = torch_conv3d(x.to("meta"), weight.to("meta"), None, stride)
    assert (dry.shape, dry.stride(), dry.dtype) == (real.shape, real.stride(), real.dtype)


class TestCuts:
    """What a processor tries, fastest first."""

    def test_slices_hold_a_block_at_full_resolution(self, small: VideoVAE) -> None:
        ways = list(cuts(small, 21, 10**6, 0, 4))
        assert ways[0].size == SLICES[0]
        assert all(way.size * 4 >= 4 and way.layout.tail_frames in (0, 4) for way in ways)
        assert all(way.layout.block_frames == 4 for way in ways)
        assert any(not way.layout.keep_kernels for way in ways)

    def test_a_short_clip_is_one_slice(self, small: VideoVAE) -> None:
        assert next(cuts(small, 3, 100, 0, 4)).size == 2
        assert next(cuts(small, 1, 100, 0, 4)).size == 1
        assert {way.size for way in cuts(small, 21, 100, 3, 4)} == {3}

    def test_strips_are_measured_once_for_a_large_job(self, small: VideoVAE, tmp_path: Path) -> None:
        seconds = [3.0, 2.0, 2.5]
        memory = SavedChoices(tmp_path / "kernels.json", {})
        choice = WorkspaceChoice(lambda run: seconds.pop(0), memory)
        assert choice.best(small, 0) == WORKSPACES[1]
        assert choice.best(small, 0) == WORKSPACES[1]
        assert not seconds
        again = WorkspaceChoice(lambda run: pytest.fail("it is remembered"), SavedChoices(memory.path, {}))
        assert again.best(small, 0) == WORKSPACES[1]

    def test_a_small_job_measures_nothing(self, small: VideoVAE, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(WorkspaceChoice, "best", lambda *a: pytest.fail("it would not earn it back"))
        assert next(cuts(small, 3, 9 * 64 * 64, 0, 4)).layout.workspace == WORKSPACES[0]


class TestChoice:
    """Blocks or conv3d, by measuring."""

    x = torch.randn(1, 32, 6, 9, 9, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=LAST)
    weight = torch.randn(32, 32, 3, 3, 3, generator=torch.Generator().manual_seed(1)) / 30

    def make(self, *seconds: float, saved: SavedChoices | None = None, blocks: Callable = winograd.convolution):
        left = list(seconds)

        def timer(function: Callable[[], object]) -> float:
            function()
            return left.pop(0)

        return TemporalChoice(lambda x, w, b, s: F.conv3d(x, w, b, s), blocks, timer, saved)

    def test_the_faster_one_is_taken_and_remembered(self, tmp_path: Path) -> None:
        memory = SavedChoices(tmp_path / "kernels.json", {})
        choice = self.make(2.0, 1.0, 2.1, 1.2, saved=memory)
        for _ in range(2):
            assert choice.most(self.x, self.weight, 4) == 4
        assert choice.used() == {4: 1}
        assert next(iter(choice.seconds.values())) == {0: 2.0, 4: 1.0}
        assert self.make(saved=SavedChoices(memory.path, {})).most(self.x, self.weight, 4) == 4

    def test_smaller_blocks_are_tried_next(self) -> None:
        assert self.make(*[1.0, 1.1] * 3, 1.0, 0.8).most(self.x, self.weight, 4) == 2
        assert self.make(*[1.0, 0.99] * 6).most(self.x, self.weight, 4) == 0
        assert self.make(1.0, 0.5).most(self.x, self.weight, 2) == 2

    def test_further_rounds_are_for_what_the_first_leaves_open(self) -> None:
        assert self.make(1.0, 0.8).most(self.x, self.weight, 4) == 4  # a third measurement would fail
        assert self.make(*[1.0, 0.9] * 3).most(self.x, self.weight, 4) == 4
        # Whatever disturbed the first round of blocks does not decide.
        assert self.make(1.0, 3.0, 1.0, 0.7).most(self.x, self.weight, 4) == 4

    @pytest.mark.parametrize("wrong_by", [0.1, float("nan")])
    def test_what_is_wrong_is_never_taken(self, wrong_by: float) -> None:
        def wrong(x: torch.Tensor, weight: torch.Tensor, most: int) -> Callable[[], torch.Tensor]:
            return lambda: F.conv3d(x, weight) + wrong_by

        choice = self.make(*[1.0, 0.5] * 2, blocks=wrong)
        assert choice.most(self.x, self.weight, 4) == 0
        assert all("differs" in reason for reason in choice.refusals.values())
        assert len(choice.refusals) == 2

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_is_measured_is_about_square(self, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
        """Sums of frames are made of the cells around it too: three times as many as of a strip of one row."""
        measured: list[torch.Size] = []
        seen = lambda x, w, b, s: (measured.append(x.shape), F.conv3d(x, w, b, s))[1]
        monkeypatch.setattr(temporal_choice, "WORK", 300 * 4 * self.weight.nbytes)
        choice = TemporalChoice(seen, winograd.convolution, lambda run: (run(), 1.0)[1])
        wide = torch.zeros(1, 32, 6, 40, 300, dtype=dtype).contiguous(memory_format=LAST)
        choice.most(wide, self.weight.to(dtype), 4)
        rows, columns = measured[0][3] - 2, measured[0][4] - 2
        assert abs(rows - columns) <= 2
        assert 0.9 < rows * columns / (300 * 4 // dtype.itemsize) <= 1
        # Fewer rows than that are no reason to measure less, nor is there more than the plane has.
        choice.most(torch.zeros(1, 32, 6, 9, 9, dtype=dtype).contiguous(memory_format=LAST), self.weight.to(dtype), 2)
        assert measured[-1][3:] == (9, 9)

    def test_what_breaks_is_never_taken(self) -> None:
        def broken(x: torch.Tensor, weight: torch.Tensor, most: int) -> Callable[[], torch.Tensor]:
            raise RuntimeError("no such primitive")

        choice = self.make(blocks=broken)
        assert choice.most(self.x, self.weight, 4) == 0
        assert "no such primitive" in str(choice.refusals)

    def test_no_memory_for_a_comparison_means_conv3d_this_time(self, tmp_path: Path) -> None:
        def short(x: torch.Tensor, weight: torch.Tensor, most: int) -> Callable[[], torch.Tensor]:
            raise torch.OutOfMemoryError("injected")

        memory = SavedChoices(tmp_path / "kernels.json", {})
        assert self.make(blocks=short, saved=memory).most(self.x, self.weight, 4) == 0
        assert self.make(1.0, 0.5, 1.0, 0.5, saved=memory).most(self.x, self.weight, 4) == 4

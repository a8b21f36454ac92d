"""The kernels, graphs and streams on a real card, at real sizes. What they compute in detail is tested in
`tests/unit/kernels/interpreted`, which runs on the card too when there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.vae import VaeSettings, decode, kernels
from fastdiffusers.vae.config import VaeConfig
from fastdiffusers.vae.kernels import Kernels, comfy_kitchen, eager
from fastdiffusers.vae.kernels.conv_choice import CANDIDATES, ConvChoice, rules
from fastdiffusers.vae.kernels.saved_choices import SavedChoices
from fastdiffusers.vae.network.convolution import torch_conv3d
from fastdiffusers.vae.network.model import VideoVAE
from fastdiffusers.vae.streams import copier_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CARD = torch.device("cuda")
HALF_ULP = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test probes for itself; exact float32 sums; memory given back."""
    monkeypatch.setattr(kernels, "_choices", {})
    monkeypatch.setattr(kernels, "_refusals", {})
    monkeypatch.setattr(kernels, "SAVED", SavedChoices())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.cuda.empty_cache()


def random(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> torch.Tensor:
    generator = torch.Generator(CARD).manual_seed(0)
    x = torch.randn(shape, generator=generator, device=CARD).to(dtype)
    return x.contiguous(memory_format=torch.channels_last_3d) if last else x


def rounding_errors(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference from float64 numbers in units of what rounding to the dtype explains."""
    allowed = HALF_ULP[actual.dtype] * 1.01 * expected.abs() + 1e-6 * expected.abs().max() + 1e-6
    return float(((actual.double() - expected).abs() / allowed).max())


def small_vae(dtype: torch.dtype = torch.float32) -> VideoVAE:
    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(32, 64, 64, 64), layers_per_block=1)
    return VideoVAE(config).to(CARD, dtype).prepare()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_runs_as_a_fused_kernel(dtype: torch.dtype, last: bool) -> None:
    run = Kernels()
    x, weight = random(1, 128, 3, 33, 47, dtype=dtype, last=last), random(128, dtype=dtype)
    run.group_norm_silu(x, weight, weight, 32, 1e-6)
    run.group_norm_statistics(x, 32)
    run.pixel_shuffle_3d(x, 2, drop_head=True)
    run.rms_norm_silu(x, weight)
    run.put(x, out=torch.empty_like(x), bias=weight)
    assert run.refusals() == {}
    assert set(run.used) == set(kernels.OPERATIONS)
    assert not set(run.used.values()) & {"eager", "plain"}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_group_norm_at_full_size(dtype: torch.dtype, last: bool) -> None:
    x = random(1, 128, 5, 256, 256, dtype=dtype, last=last) * 3 + 10
    weight, bias = random(128, dtype=dtype), random(128, dtype=dtype).flip(0)
    y = Kernels().group_norm_silu(x, weight, bias, 32, 1e-6)
    for frame in range(x.shape[2]):
        exact = F.group_norm(x[:, :, frame].double(), 32, weight.double(), bias.double(), 1e-6)
        assert rounding_errors(y[:, :, frame], F.silu(exact)) <= 1


@pytest.mark.parametrize("last", [False, True])
def test_tensors_of_more_than_two_billion_numbers(last: bool) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 20 << 30:
        pytest.skip("needs 20 GiB of free memory")
    layout = torch.channels_last_3d if last else torch.contiguous_format
    shape = (1, 64, 40, 1024, 1024)
    x = torch.empty(shape, dtype=torch.bfloat16, device=CARD, memory_format=layout)
    for frame in range(shape[2]):
        x[:, :, frame].normal_(mean=frame / 8)
    weight = random(64, dtype=x.dtype)
    y = Kernels().group_norm_silu(x, weight, weight, 32, 1e-6)
    for frame in (0, 31, 39):
        exact = F.group_norm(x[:, :, frame].double(), 32, weight.double(), weight.double(), 1e-6)
        assert rounding_errors(y[:, :, frame], F.silu(exact)) <= 1
    del y
    made = Kernels().pixel_shuffle_3d(x, 2, drop_head=True)
    assert torch.equal(made[:, :, -3:], eager.pixel_shuffle_3d(x[:, :, -2:], 2)[:, :, -3:])


def test_results_do_not_move_between_runs() -> None:
    x, weight = random(2, 96, 3, 61, 83, dtype=torch.bfloat16, last=True), random(96, dtype=torch.bfloat16)
    run = Kernels()
    first = run.group_norm_silu(x, weight, weight, 32, 1e-6)
    for _ in range(20):
        assert torch.equal(run.group_norm_silu(x, weight, weight, 32, 1e-6), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_comfy_kitchen_agrees_where_it_serves(dtype: torch.dtype) -> None:
    reason = comfy_kitchen.unavailable(CARD)
    if reason:
        pytest.skip(reason)
    x, weight = random(1, 128, 3, 33, 47, dtype=dtype, last=True), random(128, dtype=dtype)
    given = eager.group_norm_statistics(x, 32).statistics(1e-6)
    for statistics in (None, given):
        y = comfy_kitchen.group_norm_silu(x, weight, weight, 32, 1e-6, statistics=statistics)
        exact = torch.stack(
            [F.group_norm(x[:, :, t].double(), 32, weight.double(), weight.double(), 1e-6) for t in range(3)], dim=2
        )
        assert rounding_errors(y, F.silu(exact)) <= 4  # it rounds in between: 3.7 in bfloat16 on an H200


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_chosen_convolution_is_conv3d_but_for_rounding(dtype: torch.dtype, taps: int) -> None:
    x, weight = random(1, 64, 4, 34, 50, dtype=dtype, last=True), random(64, 64, taps, 3, 3, dtype=dtype, last=True)
    choose = ConvChoice(torch_conv3d)
    with rules(alternatives=True):
        y = choose(x, weight, None)
    assert len(choose.used()) == 1
    assert set(choose.refusals) <= {("comfy_kitchen_fp16", name) for _, name in choose.refusals}
    exact = F.conv3d(x.double(), weight.double())
    assert float((y.double() - exact).abs().max() / exact.abs().max()) <= {torch.float32: 1e-5}.get(dtype, 1e-2)


def test_float16_sums_are_within_what_was_asked_for() -> None:
    reason = comfy_kitchen.unavailable(CARD)
    if reason:
        pytest.skip(reason)
    x, weight = (random(*s, dtype=torch.float16, last=True) for s in ((1, 128, 5, 34, 50), (128, 128, 3, 3, 3)))
    exact = F.conv3d(x.double(), weight.double())
    y = comfy_kitchen.fp16_conv3d(x, weight, None, (1, 1, 1))
    tolerance = CANDIDATES["comfy_kitchen_fp16"].tolerance
    assert tolerance is not None
    assert float((y.double() - exact).abs().max() / exact.abs().max()) <= tolerance


@pytest.mark.parametrize("mode", ["whole", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_and_eager_decode_the_same_frames(mode: str, dtype: torch.dtype) -> None:
    vae, latents = small_vae(dtype), torch.randn(1, 16, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    fused, report = decode(vae, latents, VaeSettings(mode=mode))
    plain, _ = decode(vae, latents, VaeSettings(mode="whole", kernels="plain"))
    assert report["kernels"].reason == ""
    assert "triton" in report["kernels"].applied
    assert (fused - plain).abs().max() <= (1e-4 if dtype == torch.float32 else 2e-2)


def test_graphs_change_no_bit_and_give_their_memory_back() -> None:
    vae, latents = small_vae(), torch.randn(1, 16, 9, 12, 20, generator=torch.Generator().manual_seed(0))
    plain, _ = decode(vae, latents, VaeSettings(mode="whole"))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    frames, report = decode(vae, latents, VaeSettings(mode="whole", cuda_graphs=True))
    assert report["cuda_graphs"].applied.endswith("slices replayed")
    assert torch.equal(frames, plain)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


@pytest.mark.parametrize("output", ["cpu", "cuda"])
def test_two_tiles_at_a_time_change_no_bit(output: str) -> None:
    vae, latents = small_vae(), torch.randn(1, 16, 5, 20, 28, generator=torch.Generator().manual_seed(0))
    settings = VaeSettings(mode="tiles", tile_size=96, tile_overlap=32)
    one_by_one, _ = decode(vae, latents, settings, output_device=output)
    for _ in range(3):
        together, report = decode(vae, latents, replace(settings, overlap_tiles=True), output_device=output)
        assert report["overlap_tiles"].applied == "2 tiles at a time"
        assert torch.equal(together, one_by_one)


def test_frames_arrive_while_the_card_goes_on() -> None:
    frames = random(3, 40, 256, 384, dtype=torch.bfloat16)
    out = torch.full((40, 256, 384, 3), float("nan")).permute(3, 0, 1, 2)
    copier = copier_for(CARD, out.device)
    made = torch.empty_like(frames[:, :4])
    for start in range(0, 40, 4):
        made.copy_(frames[:, start : start + 4])
        copier.copy(out[:, start : start + 4], made)
        made.fill_(float("nan"))  # the next slice writes over it at once
    copier.finish()
    assert torch.equal(out, frames.float().cpu())


def test_memory_of_a_decode_does_not_grow_with_the_frames() -> None:
    vae = small_vae(torch.float16)
    peaks: list[int] = []
    for length in (3, 3, 21):
        latents: Any = torch.randn(1, 16, length, 24, 40, generator=torch.Generator().manual_seed(0))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        decode(vae, latents, VaeSettings(mode="whole"))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] <= peaks[1] * 1.05

"""GroupNorm + SiLU and its statistics against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.vae.kernels import Border, Padded, eager, triton_group_norm
from fastdiffusers.vae.kernels.triton_support import ProgramShape

EPS = 1e-6


def exact(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, activation: bool = True
) -> torch.Tensor:
    """Each frame by itself, in float64 and by PyTorch."""
    frames = [F.group_norm(x.double()[:, :, t], groups, weight.double(), bias.double(), EPS) for t in range(x.shape[2])]
    y = torch.stack(frames, dim=2)
    return F.silu(y) if activation else y


@pytest.mark.parametrize("layout", ["contiguous", "last", "view"])
def test_it_is_the_exact_norm_rounded_once(random: Any, dtype: torch.dtype, layout: str, assert_rounded: Any) -> None:
    x = random(2, 12, 2, 5, 7, dtype=dtype, layout=layout)
    weight, bias = random(12, dtype=dtype), random(12, dtype=dtype)
    y = triton_group_norm.group_norm_silu(x, weight, bias, 4, EPS)
    assert y.dtype == dtype
    assert_rounded(y, exact(x, weight, bias, 4))


@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 20, 1, 1, 9), 5), ((1, 7, 2, 6, 1), 7), ((2, 8, 1, 1, 1), 1)], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_any_size_will_do(random: Any, layout: str, shape: tuple[int, ...], groups: int, assert_rounded: Any) -> None:
    x = random(*shape, layout=layout)
    weight, bias = random(shape[1]), random(shape[1])
    assert_rounded(triton_group_norm.group_norm_silu(x, weight, bias, groups, EPS), exact(x, weight, bias, groups))


def test_without_activation_and_with_float32_weights(random: Any, assert_rounded: Any) -> None:
    x = random(1, 6, 2, 5, 3, dtype=torch.bfloat16)
    weight, bias = random(6), random(6)
    y = triton_group_norm.group_norm_silu(x, weight, bias, 3, EPS, activation=False)
    assert_rounded(y, exact(x, weight, bias, 3, activation=False))


@pytest.mark.parametrize("layout", ["contiguous", "last", "view"])
@pytest.mark.parametrize("given", [False, True])
def test_with_the_bias_of_the_convolution_before(
    random: Any, dtype: torch.dtype, layout: str, given: bool, assert_rounded: Any
) -> None:
    x = random(2, 12, 2, 5, 7, dtype=dtype, layout=layout)
    weight, bias, before = (random(12, dtype=dtype) for _ in range(3))
    before = 5 * before
    moments = triton_group_norm.group_norm_statistics(x, 4, input_bias=before)
    statistics = moments.statistics(EPS) if given else None
    y = triton_group_norm.group_norm_silu(x, weight, bias, 4, EPS, input_bias=before, statistics=statistics)
    assert_rounded(y, exact(x.double() + before.double().view(-1, 1, 1, 1), weight, bias, 4))


@pytest.mark.parametrize("reads_last", [False, True])
@pytest.mark.parametrize("writes_last", [False, True])
def test_it_fills_a_padded_buffer_whole(
    random: Any, padded: Any, reads_last: bool, writes_last: bool, assert_rounded: Any
) -> None:
    x = random(2, 12, 2, 5, 7, layout="last" if reads_last else "contiguous")
    weight, bias = random(12), random(12)
    border = Border(left=1, right=2, top=0, bottom=3)
    buffer, inside = padded(x, 2, border, last=writes_last)
    result = triton_group_norm.group_norm_silu(x, weight, bias, 4, EPS, out=Padded(buffer, border, 2))
    assert result.shape == inside.shape
    assert result.data_ptr() == inside.data_ptr()
    expected = exact(x, weight, bias, 4)
    expected = F.pad(torch.cat([expected[:, :, :1]] * 2 + [expected], dim=2), tuple(border))
    assert_rounded(buffer, expected)
    assert not buffer[..., -3:, :].any()
    assert not buffer[..., -2:].any()


def test_the_inside_of_a_buffer_may_be_written_alone(random: Any, padded: Any, assert_rounded: Any) -> None:
    x = random(1, 4, 2, 3, 5)
    weight, bias = random(4), random(4)
    border = (1, 1, 1, 1)
    buffer, inside = padded(x, 1, border, last=True)
    triton_group_norm.group_norm_silu(x, weight, bias, 2, EPS, out=inside)
    assert_rounded(inside, exact(x, weight, bias, 2))
    assert buffer.isnan().sum() == buffer.numel() - inside.numel()


def test_it_may_write_over_its_input(random: Any, assert_rounded: Any) -> None:
    x = random(1, 4, 2, 3, 5, layout="last")
    weight, bias = random(4), random(4)
    expected = exact(x, weight, bias, 2)
    assert_rounded(triton_group_norm.group_norm_silu(x, weight, bias, 2, EPS, out=x), expected)


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_strips_with_merged_statistics_give_the_whole_frame(random: Any, layout: str, assert_rounded: Any) -> None:
    x = random(2, 12, 2, 8, 5, layout=layout)
    weight, bias = random(12), random(12)
    strips = x.split([3, 1, 4], dim=3)
    first, *others = (triton_group_norm.group_norm_statistics(strip, 3) for strip in strips)
    for other in others:
        first = first.merge(other)
    given = first.statistics(EPS)
    out = torch.empty_like(x)
    for strip, target in zip(strips, out.split([3, 1, 4], dim=3), strict=True):
        triton_group_norm.group_norm_silu(strip, weight, bias, 3, EPS, statistics=given, out=target)
    assert_rounded(out, exact(x, weight, bias, 3))


@pytest.mark.parametrize("layout", ["contiguous", "last", "view"])
def test_moments_are_those_of_the_eager_twin(random: Any, dtype: torch.dtype, layout: str) -> None:
    x = random(2, 12, 2, 5, 7, dtype=dtype, layout=layout)
    moments, twin = triton_group_norm.group_norm_statistics(x, 4), eager.group_norm_statistics(x, 4)
    assert moments.size == twin.size == 105
    torch.testing.assert_close(moments.mean, twin.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.deviations, twin.deviations, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "last", "view"])
def test_many_parts_and_tiles_are_merged(
    random: Any, layout: str, monkeypatch: pytest.MonkeyPatch, assert_rounded: Any
) -> None:
    monkeypatch.setattr(triton_group_norm, "PART_ELEMENTS", 16)  # more than 64 parts, the far ones smaller
    x = random(1, 6, 1, 13, 11, layout=layout)
    weight, bias = random(6), random(6)
    tile = ProgramShape(channels=4, cells=2, warps=1)
    moments = triton_group_norm.group_norm_statistics(x, 2, shape=tile)
    y = triton_group_norm.group_norm_silu(
        x, weight, bias, 2, EPS, statistics=moments.statistics(EPS), shape=ProgramShape(4, 8, 1)
    )
    assert_rounded(y, exact(x, weight, bias, 2))


def test_a_large_mean_costs_no_digits(random: Any) -> None:
    x = random(1, 4, 1, 9, 9) + 3e4
    moments = triton_group_norm.group_norm_statistics(x, 2)
    grouped = x.double().view(1, 2, 2, 1, 9, 9)
    variance = grouped.var(dim=(2, 4, 5), correction=0).transpose(1, 2)
    # The mean itself has 24 bits; squares less the squared mean would leave nothing of a variance of 1 beside 9e8.
    torch.testing.assert_close(moments.deviations.double() / moments.size, variance, rtol=1e-3, atol=0)


def test_a_constant_frame_gives_the_bias(random: Any) -> None:
    x = torch.full_like(random(1, 4, 1, 3, 3), 7.0)
    weight, bias = random(4), random(4)
    y = triton_group_norm.group_norm_silu(x, weight, bias, 2, EPS, activation=False)
    assert torch.equal(y, bias.view(1, 4, 1, 1, 1).expand_as(y))


def test_nan_stays_in_its_frame(random: Any) -> None:
    x = random(1, 4, 3, 3, 3)
    x[0, 0, 1, 0, 0] = float("nan")
    y = triton_group_norm.group_norm_silu(x, random(4), random(4), 1, EPS)
    assert y[:, :, 1].isnan().all()
    assert y[:, :, ::2].isfinite().all()


def test_frames_can_be_taken_a_few_at_a_time(random: Any, padded: Any) -> None:
    x = random(1, 4, 3, 3, 3)
    weight, bias = random(4), random(4)
    given = triton_group_norm.group_norm_statistics(x, 2).statistics(EPS)
    for statistics in (None, given):
        results = []
        for frames in (0, 2):
            buffer, _ = padded(x, 1, (1, 1, 1, 1), last=True)
            triton_group_norm.group_norm_silu(
                x, weight, bias, 2, EPS, statistics=statistics, out=Padded(buffer, Border(1, 1, 1, 1), 1),
                frames_per_pass=frames,
            )  # fmt: skip
            results.append(buffer)
        assert torch.equal(*results)

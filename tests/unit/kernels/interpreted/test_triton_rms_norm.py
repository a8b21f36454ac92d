"""RMS norm + SiLU against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.vae.kernels import Border, Padded, triton_rms_norm
from fastdiffusers.vae.kernels.triton_support import ProgramShape


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: bool = True) -> torch.Tensor:
    """The layer of the Wan family's decoders, in float64."""
    y = F.normalize(x.double(), dim=1) * x.shape[1] ** 0.5 * weight.double()
    y = y if bias is None else y + bias.double()
    return F.silu(y) if activation else y


@pytest.mark.parametrize("layout", ["contiguous", "last", "view"])
@pytest.mark.parametrize("shape", [(2, 12, 2, 3, 7), (1, 1, 2, 6, 1)], ids=str)
def test_it_is_the_exact_norm_rounded_once(
    random: Any, dtype: torch.dtype, layout: str, shape: tuple[int, ...], assert_rounded: Any
) -> None:
    x = random(*shape, dtype=dtype, layout=layout)
    weight = random(shape[1], 1, 1, 1, dtype=dtype)
    y = triton_rms_norm.rms_norm_silu(x, weight)
    assert y.dtype == dtype
    assert_rounded(y, exact(x, weight, None))


@pytest.mark.parametrize("wide", [4, 16])
def test_with_a_bias_in_one_piece_or_several(random: Any, wide: int, assert_rounded: Any) -> None:
    x = random(1, 13, 2, 3, 5)
    weight, bias = random(13, 1, 1, 1), random(13, 1, 1, 1)
    y = triton_rms_norm.rms_norm_silu(x, weight, bias, activation=False, shape=ProgramShape(wide, 8, 1))
    assert_rounded(y, exact(x, weight, bias, activation=False))


@pytest.mark.parametrize("writes_last", [False, True])
def test_it_fills_a_padded_buffer_whole(random: Any, padded: Any, writes_last: bool, assert_rounded: Any) -> None:
    x = random(2, 6, 2, 5, 7, layout="last")
    weight, bias = random(6), random(6)
    border = Border(left=2, right=1, top=3, bottom=0)
    buffer, _ = padded(x, 2, border, last=writes_last)
    shaped = bias.view(6, 1, 1, 1)
    triton_rms_norm.rms_norm_silu(x, weight, bias, out=Padded(buffer, border, 2))
    expected = exact(x, weight.view(6, 1, 1, 1), shaped)
    assert_rounded(buffer, F.pad(torch.cat([expected[:, :, :1]] * 2 + [expected], dim=2), tuple(border)))


def test_a_black_cell_gives_the_bias(random: Any) -> None:
    x = random(1, 6, 1, 2, 2)
    x[..., 0, 0] = 0
    bias = random(6)
    y = triton_rms_norm.rms_norm_silu(x, random(6), bias, activation=False)
    assert torch.equal(y[0, :, 0, 0, 0], bias)

"""What is written to where it belongs, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.vae.kernels import Border, Padded, triton_put
from fastdiffusers.vae.kernels.triton_support import ProgramShape

LAYOUTS = ["contiguous", "last", "view"]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_it_is_the_exact_sum_rounded_once(
    random: Any, dtype: torch.dtype, add: bool, biased: bool, assert_rounded: Any
) -> None:
    x, bias = random(2, 12, 2, 3, 7, dtype=dtype, layout="last"), random(12, dtype=dtype)
    out = random(2, 12, 2, 3, 7, dtype=dtype, layout="last")
    expected = x.double() + (bias.double().view(-1, 1, 1, 1) if biased else 0) + (out.double() if add else 0)
    made = triton_put.put(x, out=out, bias=bias if biased else None, add=add)
    assert made.data_ptr() == out.data_ptr()
    assert_rounded(out, expected)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_any_strides_on_either_side(random: Any, source: str, target: str) -> None:
    x, out = random(1, 5, 2, 3, 9, layout=source), random(1, 5, 2, 3, 9, layout=target)
    there, bias = out.clone(), random(5)
    triton_put.put(x, out=out, bias=bias, add=True, shape=ProgramShape(4, 4, 1))
    torch.testing.assert_close(out, there + x + bias.view(-1, 1, 1, 1), rtol=1e-6, atol=1e-6)


def test_nothing_beside_it_is_touched(random: Any) -> None:
    """A phase of an upsampled plane: every second row and column."""
    whole = torch.full((1, 6, 2, 8, 10), 7.0, device=random(1).device)
    x = random(1, 6, 2, 4, 5, layout="last")
    triton_put.put(x, out=whole[..., 1::2, ::2])
    assert torch.equal(whole[..., 1::2, ::2], x)
    assert (whole[..., ::2, :] == 7).all()
    assert (whole[..., 1::2, 1::2] == 7).all()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_it_fills_a_padded_buffer_whole(random: Any, padded: Any, last: bool, biased: bool) -> None:
    x, bias = random(2, 6, 2, 5, 7, layout="last"), random(6)
    border = Border(left=2, right=1, top=3, bottom=0)
    buffer, _ = padded(x, 2, border, last=last)
    triton_put.put(x, out=Padded(buffer, border, 2), bias=bias if biased else None)
    expected = x + bias.view(-1, 1, 1, 1) if biased else x
    assert torch.equal(buffer, F.pad(torch.cat([expected[:, :, :1]] * 2 + [expected], dim=2), tuple(border)))


def test_one_frame_for_many(random: Any) -> None:
    """Frames that stand in for those before a clip: a view that repeats one."""
    x, out = random(1, 6, 1, 3, 4, layout="last"), random(1, 6, 3, 3, 4)
    triton_put.put(x.expand(-1, -1, 3, -1, -1), out=out)
    assert torch.equal(out, x.expand(-1, -1, 3, -1, -1))

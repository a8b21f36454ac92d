"""The 3-D pixel shuffle against the textbook formula: a copy, so every bit must agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.vae.kernels import Border, Padded, triton_pixel_shuffle
from fastdiffusers.vae.kernels.triton_support import ProgramShape


def by_the_formula(x: torch.Tensor, z: int, drop_head: bool) -> torch.Tensor:
    """`out[c, z t + k, 2 h + a, 2 w + b] = x[((a 2 + b) z + k) C + c, t, h, w]`, cell by cell of (a, b, k)."""
    batch, packed, frames, height, width = x.shape
    channels = packed // (4 * z)
    out = x.new_empty(batch, channels, z * frames, 2 * height, 2 * width)
    for a in range(2):
        for b in range(2):
            for k in range(z):
                first = ((a * 2 + b) * z + k) * channels
                out[:, :, k::z, a::2, b::2] = x[:, first : first + channels]
    return torch.cat([out[:, :, :1], out[:, :, z:]], dim=2) if drop_head else out


@pytest.mark.parametrize("drop_head", [False, True])
@pytest.mark.parametrize("temporal", [1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "last", "view"])
def test_every_number_arrives(random: Any, layout: str, temporal: int, drop_head: bool) -> None:
    x = random(2, 4 * temporal * 3, 2, 2, 5, dtype=torch.bfloat16, layout=layout)
    y = triton_pixel_shuffle.pixel_shuffle_3d(x, temporal, drop_head=drop_head)
    assert y.is_contiguous(memory_format=torch.channels_last_3d if layout == "last" else torch.contiguous_format)
    assert torch.equal(y, by_the_formula(x, temporal, drop_head))


@pytest.mark.parametrize("shape", [(1, 8, 1, 1, 1), (1, 40, 1, 2, 9)], ids=str)
def test_one_frame_of_any_size(random: Any, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    assert torch.equal(triton_pixel_shuffle.pixel_shuffle_3d(x, 2, drop_head=True), by_the_formula(x, 2, True))


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_small_tiles_cover_everything(random: Any, layout: str) -> None:
    x = random(1, 24, 1, 2, 9, layout=layout)
    y = triton_pixel_shuffle.pixel_shuffle_3d(x, 1, shape=ProgramShape(4, 2, 1))
    assert torch.equal(y, by_the_formula(x, 1, False))


@pytest.mark.parametrize("reads_last", [False, True])
@pytest.mark.parametrize("writes_last", [False, True])
def test_it_writes_the_inside_of_a_buffer(random: Any, padded: Any, reads_last: bool, writes_last: bool) -> None:
    x = random(1, 16, 2, 3, 5, layout="last" if reads_last else "contiguous")
    expected = by_the_formula(x, 2, True)
    buffer, inside = padded(expected, 2, (1, 1, 1, 1), last=writes_last)
    assert triton_pixel_shuffle.pixel_shuffle_3d(x, 2, drop_head=True, out=inside) is inside
    assert torch.equal(inside, expected)
    assert buffer.isnan().sum() == buffer.numel() - inside.numel()


@pytest.mark.parametrize(
    ("border", "writes_last"), [((1, 1, 1, 1), True), ((2, 1, 0, 3), False), ((0, 0, 1, 0), True)], ids=str
)
def test_it_fills_a_padded_buffer_whole(
    random: Any, padded: Any, border: tuple[int, int, int, int], writes_last: bool
) -> None:
    x, bias = random(2, 16, 2, 2, 3, layout="last"), random(16)
    expected = by_the_formula(x + bias.view(-1, 1, 1, 1), 2, True)
    residual = random(*expected.shape, layout="view")
    buffer, _ = padded(expected, 2, border, last=writes_last)
    made = triton_pixel_shuffle.pixel_shuffle_3d(
        x,
        2,
        drop_head=True,
        bias=bias,
        residual=residual,
        out=Padded(buffer, Border(*border), 2),
        shape=ProgramShape(2, 2, 1),
    )
    expected = expected + residual
    assert torch.equal(made, expected)
    assert torch.equal(buffer, F.pad(torch.cat([expected[:, :, :1]] * 2 + [expected], dim=2), border))


@pytest.mark.parametrize("layout", ["contiguous", "last"])
def test_bias_and_residual_are_added_on_the_way(
    random: Any, dtype: torch.dtype, layout: str, assert_rounded: Any
) -> None:
    x = random(1, 24, 2, 2, 3, dtype=dtype, layout=layout)
    bias = random(24, dtype=dtype)
    biased = by_the_formula(x.double() + bias.double().view(-1, 1, 1, 1), 2, True)
    y = triton_pixel_shuffle.pixel_shuffle_3d(x, 2, drop_head=True, bias=bias)
    assert_rounded(y, biased)
    residual = random(*biased.shape, dtype=dtype)
    y = triton_pixel_shuffle.pixel_shuffle_3d(x, 2, drop_head=True, bias=bias, residual=residual)
    assert_rounded(y, biased + residual.double())
    y = triton_pixel_shuffle.pixel_shuffle_3d(x, 2, drop_head=True, residual=residual)
    assert_rounded(y, by_the_formula(x, 2, True).double() + residual.double())

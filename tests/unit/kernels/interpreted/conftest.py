"""Tests of what the Triton kernels compute. They are collected where the kernels can run: under Triton's interpreter
(test_kernels_interpreted.py starts a process for that), or with a card."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]

torch.set_num_threads(1)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8, torch.float16: 2**-11}
"""What writing a number in the dtype may cost, relative: half a unit in the last place. float32 also sums, and the
interpreter cuts bfloat16 off where a card rounds."""


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def random(device: str) -> Callable[..., torch.Tensor]:
    """Random numbers [B, C, T, H, W] in a memory layout: "contiguous", "last", or a view into a larger tensor."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> torch.Tensor:
        if layout == "view":  # every second column of the inside of something larger: no stride is the usual one
            larger = [*shape[:-2], shape[-2] + 3, 2 * shape[-1] + 2]
            whole = torch.randn(larger, generator=generator).to(device, dtype)
            return whole[..., 1:-2, 1:-1:2]
        x = torch.randn(shape, generator=generator).to(device, dtype)
        return x.contiguous(memory_format=torch.channels_last_3d) if layout == "last" else x

    return make


@pytest.fixture
def padded() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """(buffer full of NaN, its inside) for frames in front and a border of (left, right, top, bottom)."""

    def make(
        x: torch.Tensor, front: int, border: tuple[int, int, int, int], *, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        left, right, top, bottom = border
        batch, channels, frames, height, width = x.shape
        layout = torch.channels_last_3d if last else torch.contiguous_format
        shape = (batch, channels, front + frames, top + height + bottom, left + width + right)
        buffer = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout).fill_(float("nan"))
        return buffer, buffer[:, :, front:, top : top + height, left : left + width]

    return make


@pytest.fixture
def assert_rounded() -> Callable[..., None]:
    """Check numbers against float64 ones: nothing but the rounding of their dtype may differ."""

    def check(actual: torch.Tensor, expected: torch.Tensor, slack: float = 1.0) -> None:
        assert actual.shape == expected.shape
        assert expected.dtype == torch.float64
        allowed = slack * (ROUNDING[actual.dtype] * 1.01 * expected.abs() + 1e-6 * expected.abs().max() + 1e-6)
        worst = ((actual.double() - expected).abs() / allowed).max()
        assert worst <= 1, f"{worst:.2f} times what rounding explains"

    return check

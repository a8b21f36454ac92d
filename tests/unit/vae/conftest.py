"""What the tests of the video VAE share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from golden_models import golden_vae

from fastdiffusers.vae import VideoVAE


@pytest.fixture(scope="session")
def small() -> VideoVAE:
    return golden_vae("small")


@pytest.fixture
def latents() -> Callable[..., torch.Tensor]:
    def make(frames: int, height: int = 5, width: int = 7, batch: int = 1, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(seed))

    return make

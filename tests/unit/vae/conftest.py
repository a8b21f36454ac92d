"""What the tests of the video VAE share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from golden_models import golden_vae

from fastdiffusers.vae import VideoVAE, dry_run
from fastdiffusers.vae.network import temporal


@pytest.fixture(scope="session")
def small() -> VideoVAE:
    return golden_vae("small")


@pytest.fixture
def latents() -> Callable[..., torch.Tensor]:
    def make(frames: int, height: int = 5, width: int = 7, batch: int = 1, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(seed))

    return make


class Always:
    """A choice without measuring: the largest blocks allowed."""

    refusals: dict[str, str] = {}  # noqa: RUF012

    def most(self, x: torch.Tensor, weight: torch.Tensor, allowed: int) -> int:
        return allowed


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks wherever they can be, also for the few channels of small models."""
    monkeypatch.setattr(temporal, "FEWEST_CHANNELS", 16)
    monkeypatch.setattr(temporal, "FEWEST_CELLS", 1)
    monkeypatch.setattr(temporal, "CELLS_TO_KEEP", 1)
    monkeypatch.setattr(temporal, "CHOICE", Always())
    dry_run._count.cache_clear()
    yield
    dry_run._count.cache_clear()

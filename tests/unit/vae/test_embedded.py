"""The embedded video VAE: a file like any other, always the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastdiffusers.vae import decode, embedded_video_vae, encode, load_video_vae
from fastdiffusers.vae.embedded import CONFIG


def test_it_is_always_the_same_and_written_once(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first = embedded_video_vae(tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), state), "nobody's random numbers change"
    written = first.stat().st_mtime_ns
    assert embedded_video_vae(tmp_path / "one") == first
    assert first.stat().st_mtime_ns == written
    assert [*first.parent.iterdir()] == [first]
    torch.manual_seed(5)
    assert embedded_video_vae(tmp_path / "two").read_bytes() == first.read_bytes()


def test_a_clip_goes_through_it_and_back(tmp_path: Path) -> None:
    vae = load_video_vae(embedded_video_vae(tmp_path))
    assert vae.config == CONFIG
    latents, _ = encode(vae, torch.rand(1, 5, 16, 16, 3))
    frames, _ = decode(vae, latents)
    assert frames.shape == (1, 5, 16, 16, 3)
    assert bool(frames.isfinite().all())
    assert float(frames.std()) > 0


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        embedded_video_vae(tmp_path / "file" / "folder")

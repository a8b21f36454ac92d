"""The embedded video VAEs: the trained one gives back what goes in, the random one is always the same."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiffusers.benchmarks.plain_video_vae import PlainVideoVae
from fastdiffusers.commands import video_vae
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.scripts.train_tiny import video
from fastdiffusers.vae import VideoVAE, decode, embedded, embedded_video_vae, encode, load_video_vae
from fastdiffusers.vae.embedded import RANDOM, RANDOM_CONFIG, TRAINED, TRAINED_FILE


def test_the_random_one_is_always_the_same_and_written_once(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    first = embedded_video_vae(RANDOM, tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), state), "nobody's random numbers change"
    written = first.stat().st_mtime_ns
    assert embedded_video_vae(RANDOM, tmp_path / "one") == first
    assert first.stat().st_mtime_ns == written
    assert [*first.parent.iterdir()] == [first]
    torch.manual_seed(5)
    assert embedded_video_vae(RANDOM, tmp_path / "two").read_bytes() == first.read_bytes()


def test_a_clip_goes_through_the_random_one_and_back(tmp_path: Path) -> None:
    vae = load_video_vae(embedded_video_vae(RANDOM, tmp_path))
    assert vae.config == RANDOM_CONFIG
    latents, _ = encode(vae, torch.rand(1, 5, 16, 16, 3))
    frames, _ = decode(vae, latents)
    assert frames.shape == (1, 5, 16, 16, 3)
    assert bool(frames.isfinite().all())
    assert float(frames.std()) > 0


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        embedded_video_vae(RANDOM, tmp_path / "file" / "folder")


def test_a_moving_scene_comes_back_from_the_trained_one(tmp_path: Path) -> None:
    vae = load_video_vae(embedded_video_vae(TRAINED, tmp_path), device="cpu")
    assert [*tmp_path.iterdir()] == [], "nothing has to be written"
    assert vae.config == video.CONFIG
    clip = (video.draw_clips(1, 9, video.SHOWN, window=(48, 24, 96)).permute(0, 2, 3, 4, 1) + 1) / 2
    latents, _ = encode(vae, clip)
    assert 0.7 < float(latents.std()) < 1.4, "scaled as a diffusion model expects it"
    frames, _ = decode(vae, latents)
    error = (frames - clip).square().mean()
    assert float(error) < 0.25 * float(clip.var(dim=(0, 1, 2, 3)).mean()), "most of what varies in it is there"
    moved = [(one[0, -1] - one[0, 0]).flatten() for one in (frames, clip)]
    assert float(torch.corrcoef(torch.stack(moved))[0, 1]) > 0.15, "and what moves, moves"


def test_names_and_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="tiny:video-vae or tiny:video-vae-random"):
        embedded_video_vae("tiny:vae", tmp_path)
    with pytest.raises(InputError, match="no embedded video VAE"):
        video_vae.load(Namespace(vae=Path("tiny:wan"), dtype="auto", device="cpu"))
    monkeypatch.setattr(embedded, "TRAINED_FILE", tmp_path / "gone.safetensors")
    with pytest.raises(ModelFileError, match="Install the pack again"):
        embedded_video_vae(TRAINED, tmp_path)


def test_the_command_line_takes_its_name() -> None:
    loaded = video_vae.load(Namespace(vae=Path(TRAINED), dtype="float16", device="cpu"))
    stored = load_file(TRAINED_FILE)
    assert loaded.config.norm_num_groups == 2, "which no shape tells"
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, stored[key])


@pytest.mark.parametrize(("groups", "said"), [("x", "no number"), ("0", "no number"), ("3", "must divide")])
def test_groups_that_a_file_cannot_have_are_refused(tmp_path: Path, groups: str, said: str) -> None:
    save_file(load_file(TRAINED_FILE), tmp_path / "vae.safetensors", metadata={"norm_num_groups": groups})
    with pytest.raises(InputError, match=f"norm_num_groups.*{said}"):
        load_video_vae(tmp_path / "vae.safetensors", device="cpu")


def test_training_runs_the_networks_of_the_pack() -> None:
    """Its own short way for pictures too."""
    torch.manual_seed(0)
    vae = VideoVAE(video.CONFIG)
    trained, plain = video.plain(vae), PlainVideoVae(dict(vae.named_parameters()), video.CONFIG.norm_num_groups)
    with torch.no_grad():
        for frames in (1, 5):
            pixels = torch.rand(1, 3, frames, 16, 16) * 2 - 1
            moments = trained.encode(pixels)
            torch.testing.assert_close(moments, plain.encode(pixels), atol=1e-4, rtol=1e-4)
            latents = moments[:, :16]
            torch.testing.assert_close(trained.decode(latents), plain.decode(latents), atol=1e-4, rtol=1e-4)

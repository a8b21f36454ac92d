"""`encode` and `decode --vae` from a shell, on a small video VAE with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdiffusers import cli
from fastdiffusers.commands.latent_file import read_latent, write_latent
from fastdiffusers.commands.media import read_frames, write_frames
from fastdiffusers.vae import VaeConfig, VideoVAE

PLACE = ("--dtype", "float32", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae") / "small_video_vae.safetensors"
    save_file(VideoVAE(VaeConfig(block_out_channels=(32, 32, 64, 64))).state_dict(), path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = torch.rand(1, 5, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    write_frames(frames, tmp_path / "clip", None)
    return tmp_path / "clip"


def encode(vae: Path, frames: Path, output: Path, *more: str) -> int:
    return cli.main(["encode", "--vae", str(vae), "--frames", str(frames), "--output", str(output), *PLACE, *more])


def decode(vae: Path, latents: Path, output: Path, *more: str) -> int:
    return cli.main(["decode", "--vae", str(vae), "--latents", str(latents), "--output", str(output), *PLACE, *more])


def test_a_clip_there_and_back(vae: Path, clip: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert encode(vae, clip, tmp_path / "latent.safetensors") == 0
    latent, _ = read_latent(tmp_path / "latent.safetensors")
    assert latent.shape == (1, 16, 2, 4, 6)
    assert decode(vae, tmp_path / "latent.safetensors", tmp_path / "back", "--report", str(report)) == 0
    assert read_frames(tmp_path / "back")[0].shape == (5, 32, 48, 3)
    assert json.loads(report.read_text())["optimizations"]


def test_what_a_clip_was_filled_up_with_is_cut_off_again(vae: Path, clip: Path, tmp_path: Path) -> None:
    (clip / "frame_00004.png").unlink()
    latent, report = tmp_path / "latent.safetensors", tmp_path / "report.json"
    assert encode(vae, clip, latent) == 0
    samples, metadata = read_latent(latent)
    assert metadata == {"clip_length": "4", "clip_latent_frames": "2", "clip_count": "1"}
    assert decode(vae, latent, tmp_path / "back", "--report", str(report)) == 0
    assert read_frames(tmp_path / "back")[0].shape[0] == 4
    said = json.loads(report.read_text())
    assert "1 padding frames cut off behind frame 4" in said["notes"]
    assert said["facts"]["size"] == "48x32x4"
    write_latent(samples, latent, {"clip_length": "four"})  # of another program
    assert decode(vae, latent, tmp_path / "all") == 0
    assert read_frames(tmp_path / "all")[0].shape[0] == 5


def test_a_latent_s_file_that_was_joined_or_cut_keeps_every_frame(vae: Path, clip: Path, tmp_path: Path) -> None:
    (clip / "frame_00004.png").unlink()
    latent, report = tmp_path / "latent.safetensors", tmp_path / "report.json"
    assert encode(vae, clip, latent) == 0
    samples, metadata = read_latent(latent)
    alone = {"clip_length": "4"}  # as an earlier version wrote it
    for number, (changed, said, frames) in enumerate(
        [
            (torch.cat((samples, samples), dim=2), metadata, 13),
            (torch.cat((samples, samples), dim=2), alone, 13),
            (samples[:, :, :1], metadata, 1),
            (samples[:, :, 1:], metadata, 1),
            (samples, alone, 4),
        ]
    ):
        write_latent(changed, latent, said)
        back = tmp_path / f"back{number}"
        assert decode(vae, latent, back, "--report", str(report)) == 0
        assert read_frames(back)[0].shape[0] == frames
        told = any("clip_length = 4 not followed" in note for note in json.loads(report.read_text())["notes"])
        assert told == (frames != 4), (said, frames)


def test_a_clip_of_a_length_that_the_vae_takes_has_nothing_to_cut(vae: Path, clip: Path, tmp_path: Path) -> None:
    assert encode(vae, clip, tmp_path / "latent.safetensors") == 0
    assert read_latent(tmp_path / "latent.safetensors")[1] == {}


def test_a_video_keeps_its_rate(vae: Path, clip: Path, tmp_path: Path) -> None:
    sound, report = {"waveform": torch.zeros(1, 1, 8000), "sample_rate": 16000}, tmp_path / "report.json"
    write_frames(read_frames(clip)[0][None], tmp_path / "clip.mp4", 12.0, sound)
    assert encode(vae, tmp_path / "clip.mp4", tmp_path / "latent.safetensors", "--report", str(report)) == 0
    assert "clip.mp4: its sound is left out." in json.loads(report.read_text())["notes"]
    assert decode(vae, tmp_path / "latent.safetensors", tmp_path / "back.mp4") == 0
    frames, rate = read_frames(tmp_path / "back.mp4")
    assert rate == 12.0
    assert len(frames) == 5


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "exact"],
        ["--temporal-slice", "1"],
        ["--mode", "exact", "--memory-budget-gib", "0.05"],
        ["--mode", "whole", "--torch-compile", "on", "--compile-backend", "eager"],
    ],
)
def test_exact_modes_give_what_the_whole_gives(options: list[str], vae: Path, tmp_path: Path) -> None:
    write_latent(torch.randn(1, 16, 3, 6, 8), tmp_path / "l.safetensors", {})
    assert decode(vae, tmp_path / "l.safetensors", tmp_path / "whole", "--mode", "whole") == 0
    assert decode(vae, tmp_path / "l.safetensors", tmp_path / "other", *options) == 0
    difference = read_frames(tmp_path / "whole")[0] - read_frames(tmp_path / "other")[0]
    assert difference.abs().max() <= 1.5 / 255


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tile-size", "8"], "tile-size = 8"),
        (["--tile-size", "64", "--tile-overlap", "64"], "tile-overlap = 64"),
        (["--mode", "whole", "--tile-size", "64"], "--tile-size = 64: --mode whole makes no tiles"),
        (["--mode", "exact", "--tile-overlap", "8"], "--tile-overlap = 8: --mode exact makes no tiles"),
        (["--vae-tiling", "on"], "--vae-tiling = 'on': --mode says how the video VAE is cut"),
        (["--mode", "tiles", "--vae-tiling", "off"], "--vae-tiling = 'off': --mode says"),
        (["--temporal-slice", "-1"], "temporal-slice = -1"),
        (["--memory-budget-gib", "-1"], "memory-budget-gib = -1"),
        (["--mode", "exact", "--memory-budget-gib", "1e-6"], "memory-budget-gib"),
        (["--compile-mode", "max-autotune"], "--compile-mode = 'max-autotune': --torch-compile is off"),
        (["--device", "toaster"], "device = 'toaster'"),
        (["--frame-rate", "-3"], "frame-rate = -3"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    options: list[str], named: str, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latent = tmp_path / "l.safetensors"
    write_latent(torch.randn(1, 16, 2, 8, 8), latent, {})
    assert decode(vae, latent, tmp_path / "out.mp4", *options) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert named in err
    assert list(tmp_path.iterdir()) == [latent]


def test_tiles_overlap_by_a_quarter_unless_told_otherwise(vae: Path, tmp_path: Path) -> None:
    """As the node has it; 64 pixels, which is what tiles of the usual size share, are all of a small tile."""
    write_latent(torch.randn(1, 16, 1, 14, 14), tmp_path / "l.safetensors", {})
    tiles = ("--mode", "tiles", "--tile-size", "64")
    for name, options in (("left", ()), ("given", ("--tile-overlap", "16")), ("more", ("--tile-overlap", "32"))):
        assert decode(vae, tmp_path / "l.safetensors", tmp_path / name, *tiles, *options) == 0
    left, given, more = (read_frames(tmp_path / name)[0] for name in ("left", "given", "more"))
    assert torch.equal(left, given)
    assert not torch.equal(left, more)


def test_bad_latents_and_bad_checkpoints_are_one_clear_line(
    vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_latent(torch.randn(1, 4, 2, 8, 8), tmp_path / "channels.safetensors", {})
    write_latent(torch.full((1, 16, 2, 8, 8), torch.nan), tmp_path / "nan.safetensors", {})
    write_latent(torch.randn(1, 16, 2, 8, 8), tmp_path / "good.safetensors", {})
    save_file({"something": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(vae.read_bytes()[:-1000])
    for checkpoint, latent, words in (
        (vae, "channels.safetensors", "latents"),
        (vae, "nan.safetensors", "NaN"),
        (tmp_path / "other.safetensors", "good.safetensors", "other.safetensors"),
        (tmp_path / "cut.safetensors", "good.safetensors", "cut.safetensors"),
        (tmp_path / "missing.safetensors", "good.safetensors", "missing.safetensors"),
    ):
        assert decode(checkpoint, tmp_path / latent, tmp_path / "out.mp4") == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert words in err
        assert not (tmp_path / "out.mp4").exists()


def test_what_only_a_card_can_do_is_left_out_and_said(vae: Path, clip: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert encode(vae, clip, tmp_path / "latent.safetensors") == 0
    asked = ("--kernels", "eager", "--cuda-graphs", "--overlap-tiles", "--fp16-accumulation", "--mode", "tiles")
    assert decode(vae, tmp_path / "latent.safetensors", tmp_path / "back", *asked, "--report", str(report)) == 0
    records = {record["name"]: record for record in json.loads(report.read_text())["optimizations"]}
    assert records["kernels"]["requested"] == "eager"
    for name in ("cuda_graphs", "overlap_tiles"):
        assert (records[name]["requested"], records[name]["applied"]) == ("on", "off")
        assert "CUDA" in records[name]["reason"]

"""`generate` and `decode` of a model that makes sound: what comes out of the mp4 is what the pipeline made."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.pipelines import sampling
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import SampleRequest

pytest.importorskip("diffusers.pipelines.ltx2", reason="this release of diffusers has no LTX-2")

FRAMES, RATE = 17, 24_000
OPTIONS = ("--dtype", "float32", "--device", "cpu", "--quiet")
FAST = ("--steps", "2", "--width", "64", "--height", "64", "--num-frames", str(FRAMES), *OPTIONS)
BLOCK = 1024
"""Samples that AAC packs together: what is read back is whole blocks of it."""


def generate(output: Path, *more: str) -> int:
    arguments = ["--model", "tiny:ltx2-t2v", "--prompt", "a fox", "--output", str(output)]
    return cli.main(["generate", *arguments, *FAST, *more])


def made(seed: int = 0) -> torch.Tensor:
    """The waveform that the pipeline makes, [2, samples]."""
    loaded = loader.load(loader.resolve("tiny:ltx2-t2v", dtype="float32", device="cpu"))
    request = SampleRequest("a fox", steps=2, width=64, height=64, num_frames=FRAMES, seed=seed)
    sound = sampling.run(loaded, request).audio
    assert sound is not None
    waveform: torch.Tensor = sound["waveform"]
    return waveform[0]


def tracks(path: Path) -> tuple[int, float, torch.Tensor, int]:
    """(frames, frame rate, waveform [channels, samples], sample rate) of a video file."""
    with av.open(str(path)) as container:
        frame_rate = float(container.streams.video[0].average_rate)
        frames = sum(1 for _ in container.decode(video=0))
        container.seek(0)
        sample_rate = container.streams.audio[0].rate
        blocks = [torch.from_numpy(frame.to_ndarray()) for frame in container.decode(audio=0)]
    return frames, frame_rate, torch.cat(blocks, dim=1), sample_rate


def assert_is_heard(made: torch.Tensor, heard: torch.Tensor) -> None:
    """AAC loses the high tones, but a wrong sound, order or delay would not correlate."""
    length = min(made.shape[1], heard.shape[1])
    for one, other in zip(made[:, :length], heard[:, :length], strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.8


def test_the_sound_is_in_the_video_and_in_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert generate(tmp_path / "out.mp4", "--report", str(report)) == 0
    frames, frame_rate, heard, sample_rate = tracks(tmp_path / "out.mp4")
    waveform = made()
    assert (frames, frame_rate, sample_rate) == (FRAMES, 24.0, RATE)
    assert heard.shape[0] == 2
    assert heard.shape[1] == pytest.approx(waveform.shape[1], abs=2 * BLOCK)
    assert waveform.std() > 0.05
    assert_is_heard(waveform, heard)
    assert f"{RATE} Hz" in json.loads(report.read_text())["facts"]["sound"]


def test_every_video_of_a_batch_has_its_own_sound(tmp_path: Path) -> None:
    assert generate(tmp_path / "out.mp4", "--batch", "2", "--frame-rate", "12") == 0
    lengths = set()
    heard = []
    for index in range(2):
        frames, frame_rate, sound, _ = tracks(tmp_path / f"out_{index}.mp4")
        assert (frames, frame_rate) == (FRAMES, 12.0)
        assert sound.shape[1] / RATE == pytest.approx(FRAMES / 12, abs=0.15)
        lengths.add(sound.shape[1])
        heard.append(sound)
    assert len(lengths) == 1
    assert not torch.allclose(heard[0], heard[1], atol=0.05)


def test_a_kept_latent_is_decoded_to_the_video_with_its_sound(tmp_path: Path) -> None:
    latent = tmp_path / "latent.safetensors"
    assert generate(latent) == 0
    arguments = ["--model", "tiny:ltx2-t2v", "--latents", str(latent), "--output", str(tmp_path / "out.mp4")]
    assert cli.main(["decode", *arguments, *OPTIONS]) == 0
    frames, frame_rate, heard, sample_rate = tracks(tmp_path / "out.mp4")
    assert (frames, frame_rate, sample_rate) == (FRAMES, 24.0, RATE)
    assert_is_heard(made(), heard)


def test_minimax_h3_gives_its_sound_too_and_a_clip_of_its_length(tmp_path: Path) -> None:
    pytest.importorskip("diffusers.modular_pipelines.minimax_h3", reason="this release of diffusers has no MiniMax-H3")
    latent, output = tmp_path / "latent.safetensors", tmp_path / "out.mp4"
    line = ["generate", "--model", "tiny:minimax-h3", "--prompt", "a tram", "--output"]
    assert cli.main([*line, str(output), "--steps", "3", "--width", "64", "--height", "64", *OPTIONS]) == 0
    frames, frame_rate, heard, sample_rate = tracks(output)
    assert (frames, frame_rate, sample_rate, heard.shape[0]) == (124, 24.0, 32_000, 2)
    loaded = loader.load(loader.resolve("tiny:minimax-h3", dtype="float32", device="cpu"))
    made = sampling.run(loaded, SampleRequest("a tram", steps=3, width=64, height=64))
    assert made.audio is not None
    assert made.latent is not None
    assert_is_heard(made.audio["waveform"][0], heard)
    assert cli.main([*line, str(latent), "--steps", "3", "--width", "64", "--height", "64", *OPTIONS]) == 0
    decoding = ["decode", "--model", "tiny:minimax-h3", "--latents", str(latent), "--output", str(tmp_path / "two.mp4")]
    assert cli.main([*decoding, *OPTIONS]) == 0
    assert tracks(tmp_path / "two.mp4")[0] == 124

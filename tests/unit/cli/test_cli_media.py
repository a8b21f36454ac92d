"""Frames and latents survive the way to a file and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdiffusers.commands.latent_file import read_latent, read_sound, write_latent
from fastdiffusers.commands.media import check_output, left_out, read_frames, read_picture, write_frames
from fastdiffusers.errors import InputError


def smooth_frames(batch: int, count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """[B, T, H, W, 3]: gradients that move with time, which video compression keeps well."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    time = torch.linspace(0, 0.5, count)[:, None, None]
    frames = torch.stack([x * (1 - time), y.expand(count, -1, -1), (x * y).expand(count, -1, -1)], dim=-1)
    return frames.expand(batch, -1, -1, -1, -1).contiguous()


def test_a_picture_comes_back_within_half_a_level(tmp_path: Path) -> None:
    frames = torch.rand(1, 1, 20, 30, 3)
    written = write_frames(frames, tmp_path / "out.png", None)
    assert written == [tmp_path / "out.png"]
    assert (read_picture(written[0]) - frames[0, 0]).abs().max() <= 0.5 / 255 + 1e-6


def test_values_out_of_range_are_clamped_not_wrapped(tmp_path: Path) -> None:
    frames = torch.tensor([-0.5, 1.5, 0.5]).expand(1, 1, 8, 8, 3)
    write_frames(frames, tmp_path / "out.png", None)
    assert read_picture(tmp_path / "out.png")[0, 0].tolist() == pytest.approx([0, 1, 128 / 255])


def test_a_batch_becomes_numbered_files(tmp_path: Path) -> None:
    frames = torch.stack([torch.full((1, 8, 8, 3), value) for value in (0.0, 1.0)])
    written = write_frames(frames, tmp_path / "out.png", None)
    assert [path.name for path in written] == ["out_0.png", "out_1.png"]
    assert [read_picture(path).mean().item() for path in written] == [0.0, 1.0]


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_a_video_keeps_frames_size_and_rate(height: int, width: int, tmp_path: Path) -> None:
    frames = smooth_frames(1, 9, height, width)
    written = write_frames(frames, tmp_path / "out.mp4", 16.0)
    read, rate = read_frames(written[0])
    assert rate == 16.0
    assert read.shape == (9, height, width, 3)
    assert (read - frames[0]).abs().mean() < 0.03


def test_a_video_carries_sound(tmp_path: Path) -> None:
    import av

    wave = torch.sin(torch.arange(16000) * 0.05)[None, None].repeat(1, 2, 1) * 0.5
    write_frames(smooth_frames(1, 8), tmp_path / "out.mp4", 8.0, {"waveform": wave, "sample_rate": 16000})
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].rate == 16000
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert samples == pytest.approx(16000, abs=2100)  # AAC pads to whole blocks of 1024


def test_a_folder_of_frames_comes_back_in_order(tmp_path: Path) -> None:
    frames = torch.linspace(0, 1, 12)[None, :, None, None, None].expand(1, 12, 8, 8, 3)
    write_frames(frames, tmp_path / "frames", 24.0)
    read, rate = read_frames(tmp_path / "frames")
    assert rate is None
    assert (read - frames[0]).abs().max() <= 0.5 / 255 + 1e-6


def test_latents_come_back_exactly_with_their_metadata(tmp_path: Path) -> None:
    latent = torch.randn(1, 16, 3, 4, 5)
    write_latent(latent, tmp_path / "l.safetensors", {"frame_rate": "16"})
    read, metadata = read_latent(tmp_path / "l.safetensors")
    assert torch.equal(read, latent)
    assert metadata == {"frame_rate": "16"}


def test_comfyui_latent_files_are_read(tmp_path: Path) -> None:
    latent = torch.randn(1, 4, 8, 8)
    save_file({"latent_tensor": latent, "latent_format_version_0": torch.tensor([])}, tmp_path / "c.latent")
    assert torch.equal(read_latent(tmp_path / "c.latent")[0], latent)
    save_file({"latent_tensor": latent.half()}, tmp_path / "old.latent")
    assert torch.equal(read_latent(tmp_path / "old.latent")[0], latent.half().float() * (1.0 / 0.18215))


def broken_latents(folder: Path) -> dict[str, Path]:
    """A bad latent file for each reason, by the words that its error must hold."""
    (folder / "corrupt.safetensors").write_bytes(b"\xff" * 64)
    (folder / "pickle.pt").write_bytes(b"\x80\x02")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, folder / "two.safetensors")
    save_file({"samples": torch.zeros(4, 8)}, folder / "flat.safetensors")
    save_file({"samples": torch.zeros(1, 4, 64, 64)}, folder / "whole.safetensors")
    (folder / "half.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-100])
    return {
        "no such file": folder / "missing.safetensors",
        "safetensors": folder / "corrupt.safetensors",
        "read from .safetensors": folder / "pickle.pt",
        "none is named 'samples'": folder / "two.safetensors",
        "4x8": folder / "flat.safetensors",
        "no complete safetensors": folder / "half.safetensors",
    }


@pytest.mark.parametrize(
    "reason", ["no such file", "safetensors", "read from .safetensors", "none is named 'samples'", "4x8", "no complete"]
)
def test_a_bad_latent_file_is_one_clear_line(reason: str, tmp_path: Path) -> None:
    files = broken_latents(tmp_path)
    path = next(path for words, path in files.items() if words.startswith(reason))
    with pytest.raises(InputError, match=reason.replace("'", ".")) as caught:
        read_latent(path)
    assert caught.value.name == "latents"
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_pictures_and_videos_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    write_frames(torch.zeros(1, 1, 8, 8, 3), mixed / "a.png", None)
    write_frames(torch.zeros(1, 1, 8, 10, 3), mixed / "b.png", None)
    for path, words in (
        (tmp_path / "missing.png", "no such file"),
        (tmp_path / "a.png", "cannot be read as a picture"),
        (tmp_path / "a.mp4", "cannot be read as a video"),
        (tmp_path / "empty", "no pictures"),
        (mixed, "it is 10x8, but a.png is 8x8"),
    ):
        with pytest.raises(InputError, match=words):
            read_frames(path)


def test_the_output_must_fit_what_comes_out(tmp_path: Path) -> None:
    check_output(tmp_path / "a.png", video=False)
    check_output(tmp_path / "a.mp4", video=True)
    check_output(tmp_path / "frames", video=True)
    (tmp_path / "file").write_text("")
    for name, video in (("a.mp4", False), ("a.png", True), ("a.gif", True), ("file", True)):
        with pytest.raises(InputError, match="output = "):
            check_output(tmp_path / name, video)


def sound_in(path: Path) -> tuple[torch.Tensor, int]:
    """The sound track as decoded, [channels, samples], and its rate; AAC keeps whole blocks of 1024 samples."""
    import av

    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        blocks = [torch.from_numpy(frame.to_ndarray()) for frame in container.decode(audio=0)]
    return torch.cat(blocks, dim=1), rate


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_each_video_of_a_batch_has_its_own_sound_as_long_as_its_frames(channels: int, tmp_path: Path) -> None:
    rate, seconds = 24_000, 0.5
    time = torch.arange(int(rate * 2)) / rate
    tones = (300.0, 900.0)
    wave = torch.stack([torch.sin(6.2832 * tone * time).expand(channels, -1) * 0.5 for tone in tones])
    frames = smooth_frames(2, int(24 * seconds))
    write_frames(frames, tmp_path / "out.mp4", 24.0, {"waveform": wave, "sample_rate": rate})
    for index, tone in enumerate(tones):
        heard, heard_rate = sound_in(tmp_path / f"out_{index}.mp4")
        assert heard_rate == rate
        assert heard.shape[0] == min(channels, 2)
        assert heard.shape[1] / rate == pytest.approx(seconds, abs=2 * 1024 / rate), "two seconds were given"
        middle = heard[0, 2048:10_240]
        loudest = torch.fft.rfft(middle).abs()[1:].argmax().item() + 1
        assert loudest * rate / middle.numel() == pytest.approx(tone, abs=5)
        assert middle.square().mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=0.1)


def test_a_latent_keeps_its_sound(tmp_path: Path) -> None:
    latent, sound = torch.randn(2, 128, 2, 3, 4), {"waveform": torch.randn(2, 2, 50), "sample_rate": 24_000}
    write_latent(latent, tmp_path / "l.safetensors", {"frame_rate": "24"}, sound)
    assert torch.equal(read_latent(tmp_path / "l.safetensors")[0], latent)
    read = read_sound(tmp_path / "l.safetensors")
    assert read is not None
    assert torch.equal(read["waveform"], sound["waveform"])
    assert read["sample_rate"] == 24_000
    write_latent(latent, tmp_path / "silent.safetensors", {})
    assert read_sound(tmp_path / "silent.safetensors") is None


@pytest.mark.parametrize(
    ("waveform", "metadata"), [(torch.zeros(2, 2, 5), {}), (torch.zeros(5), {"sample_rate": "24000"})]
)
def test_a_sound_without_a_rate_or_channels_is_refused(
    waveform: torch.Tensor, metadata: dict[str, str], tmp_path: Path
) -> None:
    save_file({"samples": torch.zeros(1, 4, 2, 2), "waveform": waveform}, tmp_path / "l.safetensors", metadata)
    with pytest.raises(InputError, match="waveform"):
        read_sound(tmp_path / "l.safetensors")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1"])
def test_a_picture_of_any_kind_has_its_right_values(mode: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    expected = np.repeat(ramp[..., None], 3, axis=2) / 255
    if mode == "I;16":
        picture = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode in ("P", "1"):
        picture = Image.fromarray(ramp).convert(mode)
        expected = np.asarray(picture.convert("RGB")) / 255
    else:
        bands = [ramp] * {"L": 1, "LA": 2, "RGBA": 4}[mode]
        picture = Image.merge(mode, [Image.fromarray(band) for band in bands])
    picture.save(tmp_path / "picture.png")
    assert np.abs(read_picture(tmp_path / "picture.png").numpy() - expected).max() < 1e-6


def test_alpha_is_kept_in_png_and_left_out_of_video_and_jpg(tmp_path: Path) -> None:
    layers = torch.rand(1, 2, 20, 32, 4)
    png = write_frames(layers, tmp_path / "out.png", None)
    assert [path.name for path in png] == ["out_0.png", "out_1.png"]
    for path, layer in zip(png, layers[0], strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "RGBA"
            read = torch.from_numpy(np.array(picture)).float() / 255
        assert (read - layer).abs().max() <= 0.5 / 255 + 1e-6
    (folder,) = write_frames(layers, tmp_path / "jpgs", None, smaller=True)
    with Image.open(folder / "frame_00000.jpg") as picture:
        assert picture.mode == "RGB"
    clip = smooth_frames(1, 3, 32, 32)
    (video,) = write_frames(torch.cat((clip, torch.rand(1, 3, 32, 32, 1)), -1), tmp_path / "out.mp4", 8.0)
    assert (read_frames(video)[0] - clip[0]).abs().mean() < 0.03


def test_a_folders_pictures_are_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 12):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(tmp_path / f"f{number}.png")
    frames, _ = read_frames(tmp_path)
    assert (frames[:, 0, 0, 0] * 255).round().tolist() == [number * 20 for number in range(1, 12)]
    assert left_out(tmp_path) == []


def test_other_pictures_of_a_folder_are_named_as_what_they_are_taken_for(tmp_path: Path) -> None:
    for name in ("zoo", "beach", "cat", "dog"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    said = "its 4 pictures are taken as frames, in the order of their names (beach.png, cat.png, dog.png, ...)."
    assert left_out(tmp_path) == [f"{tmp_path.name}: {said}"]

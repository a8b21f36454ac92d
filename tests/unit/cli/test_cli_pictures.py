"""Pictures that are given: of every kind the values that its file means, and what is not read of it is said."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from fastdiffusers.cli import main
from fastdiffusers.commands.conditions.clip_files import clip_left_out, read_clip
from fastdiffusers.commands.media import left_out, read_frames, read_picture, write_mp4
from fastdiffusers.commands.prompts.make import shape_of_picture
from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.arguments import call_arguments, to_pil
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import SampleRequest

RGBA = Image.fromarray(
    numpy.dstack([numpy.full((32, 48), value, numpy.uint8) for value in (200, 100, 50, 128)]), "RGBA"
)


def palette_with_a_clear_colour() -> Image.Image:
    picture = RGBA.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    picture.info["transparency"] = picture.getpixel((0, 0))
    return picture


CLEAR = {"RGBA": RGBA, "LA": RGBA.convert("LA"), "P": palette_with_a_clear_colour()}


@pytest.mark.parametrize("mode", sorted(CLEAR))
def test_transparency_is_read_where_it_is_wanted_and_said_where_it_is_not(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    CLEAR[mode].save(path)
    expected = torch.from_numpy(numpy.asarray(Image.open(path).convert("RGBA")).astype("float32") / 255)
    assert torch.equal(read_picture(path, alpha=True), expected)
    assert torch.equal(read_picture(path), expected[..., :3])
    assert left_out(path, alpha=True) == []
    assert left_out(path) == ["a.png: its transparency is left out, and its colours are used alone."]
    assert torch.equal(read_frames(tmp_path)[0][0], expected[..., :3])


def test_an_opaque_picture_has_three_channels(tmp_path: Path) -> None:
    RGBA.convert("RGB").convert("RGBA").save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", alpha=True).shape[-1] == 3
    assert left_out(tmp_path / "a.png") == []


def test_other_kinds_of_colours(tmp_path: Path) -> None:
    colours = RGBA.convert("RGB")
    colours.convert("CMYK").save(tmp_path / "cmyk.tif")
    colours.convert("YCbCr").save(tmp_path / "ycbcr.tif")
    expected = torch.tensor([200, 100, 50]) / 255
    for name in ("cmyk.tif", "ycbcr.tif"):
        assert (read_picture(tmp_path / name)[0, 0] - expected).abs().max() <= 2 / 255, name
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="floating point"):
        read_picture(tmp_path / "float.tif")


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    RGBA.convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (48, 32, 3)


def test_numbers_of_which_none_is_known_to_be_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(numpy.full((8, 8), 2**30, numpy.int32), "I").save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="nothing says which of them is white"):
        read_picture(tmp_path / "a.tiff")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    for read in (read_picture, read_frames, shape_of_picture):
        with pytest.raises(InputError, match=r"pixels, which may be meant to fill the memory\. Scale it down"):
            read(path)
    assert left_out(path) == []


def test_whatever_is_wrong_with_a_file_is_one_line_and_looking_again_after_a_run_costs_nothing(tmp_path: Path) -> None:
    """What is left out of a file is said after the run, when an error would cost the result."""
    tiff = io.BytesIO()
    RGBA.convert("RGB").save(tiff, "TIFF")
    (tmp_path / "a.tiff").write_bytes(tiff.getvalue().replace(struct.pack("<HH", 257, 4), struct.pack("<HH", 9, 4)))
    write_mp4(torch.zeros(1, 32, 32, 3), tmp_path / "a.mp4", 10)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"isomiso2") == 1
    (tmp_path / "a.mp4").write_bytes(data.replace(b"isomiso2", b"isom\xff\xb1o2"))
    for name in ("a.tiff", "a.mp4"):
        with pytest.raises(InputError, match="cannot be read as a"):
            read_clip(tmp_path / name, "video")
        assert clip_left_out(tmp_path / name) == []


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_picture_is_used_and_that_is_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    colours = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    colours[0].save(path, save_all=True, append_images=colours[1:], duration=100)
    assert read_picture(path)[0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.05)
    assert left_out(path) == [f"a.{suffix}: the first of its 3 pictures is used."]


def test_the_engine_says_that_transparency_is_not_read() -> None:
    picture = torch.rand(64, 64, 4)
    family = family_of("FluxKontextPipeline")
    notes = check_request(family, SampleRequest("a fox", images=(picture,)))
    assert any(note.startswith("transparency of images[0] ignored") for note in notes)
    picture[..., 3] = 1.0
    assert check_request(family, SampleRequest("a fox", images=(picture,))) == []
    last = family_of("WanImageToVideoPipeline")
    request = SampleRequest("a fox", images=(picture,), last_image=torch.zeros(64, 64, 4))
    assert any("last_image" in note for note in check_request(last, request))


@pytest.mark.parametrize("channels", [3, 4])
def test_models_that_read_transparency_get_it(channels: int) -> None:
    picture = torch.rand(64, 64, channels)
    family = replace(family_of("QwenImageLayeredPipeline"), width=64, height=64)
    assert not any("transparency" in note for note in check_request(family, SampleRequest("", images=(picture,))))

    class Stand:
        config: dict[str, Any] = {}  # noqa: RUF012 - read only

        def __call__(self, image: Any, prompt: str = "") -> None:
            """As much of the class's call as matters here."""

    given = call_arguments(Stand(), family, ready(family, SampleRequest("", images=(picture,))))["image"]
    assert given.mode == "RGBA"
    assert given.tobytes() == to_pil(picture, alpha=True).tobytes()
    assert (numpy.asarray(given)[..., 3] == 255).all() == (channels == 3)


def test_generate_says_what_it_did_not_read(tmp_path: Path) -> None:
    RGBA.save(tmp_path / "clear.png")
    words = ["generate", "--model", "tiny:flux-kontext", "--prompt", "a", "--steps", "1", "--width", "32"]
    words += ["--height", "32", "--image", str(tmp_path / "clear.png"), "--quiet"]
    assert main([*words, "--output", str(tmp_path / "out.png"), "--report", str(tmp_path / "r.json")]) == 0
    notes = json.loads((tmp_path / "r.json").read_text())["notes"]
    assert any("transparency of images[0] ignored" in note for note in notes)

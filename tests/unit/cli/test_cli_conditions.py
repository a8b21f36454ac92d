"""Masks, control pictures, clips and keyframes from a shell: as the engine is given them, and bad input in one line."""

from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdiffusers import cli, memory
from fastdiffusers.commands import generate as generate_command
from fastdiffusers.commands.conditions import conditions
from fastdiffusers.commands.conditions.clip_files import clip_left_out, clip_shape, read_clip
from fastdiffusers.commands.media import read_frames, read_picture, write_mp4, write_picture, write_picture_folder
from fastdiffusers.commands.prompts.request import sample_request
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.image_prompts.keys import resolve_image_prompt
from fastdiffusers.pipelines.conditions.kinds import (
    ControlCondition,
    ImagePromptCondition,
    MaskCondition,
    VideoCondition,
)
from fastdiffusers.pipelines.conditions.references import reference_values
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import ready
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))

FAST = ("--steps", "2", "--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu", "--quiet")
PLAIN = ("--attention", "sdpa", "--torch-compile", "off", "--vae-tiling", "off")
PICTURE = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
MASK = torch.zeros(64, 64)
MASK[16:48, 16:] = 1.0


UPRIGHT, RIGHT, LEFT, AROUND = (1, 0, 0, 1), (0, 1, -1, 0), (0, -1, 1, 0), (-1, 0, 0, -1)
"""How a video is turned when it is shown: the first four entries of the matrix in its mp4."""


def matrix(turn: tuple[int, ...]) -> bytes:
    """As it is written: 16.16 fixed point, the last column 2.30."""
    a, b, c, d = (value << 16 for value in turn)
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """picture.png, mask.png, and the folder clip with five frames."""
    write_picture(PICTURE, tmp_path / "picture.png")
    write_picture(MASK[..., None].expand(-1, -1, 3), tmp_path / "mask.png")
    write_picture_folder(PICTURE.expand(5, -1, -1, -1), tmp_path / "clip")
    return tmp_path


def run(model: str, output: Path, *more: str) -> int:
    return cli.main(["generate", "--model", model, "--prompt", "a fox", "--output", str(output), *FAST, *PLAIN, *more])


def engine(model: str, **changes: Any) -> torch.Tensor:
    """The frames of the same call of the engine, [T, H, W, 3]."""
    handle = PipelineHandle(loader.resolve(model, dtype="float32", device="cpu"))
    request = SampleRequest("a fox", steps=2, width=64, height=64, **changes)
    return generate(handle, request, OptimizationSettings.plain()).frames[0]


def same(path: Path, frames: torch.Tensor) -> bool:
    return bool((read_frames(path)[0] - frames).abs().max() <= 1 / 255)


def test_a_mask(files: Path) -> None:
    out = files / "out.png"
    assert run("tiny:flux", out, "--image", str(files / "picture.png"), "--mask", str(files / "mask.png")) == 0
    assert same(out, engine("tiny:flux", images=(PICTURE,), conditions=(MaskCondition(MASK[None]),)))


def test_a_control_picture_with_its_model(files: Path) -> None:
    folder = files / "canny"
    tiny.build_controlnet("sdxl").save_pretrained(folder)
    out, report = files / "out.png", files / "report.json"
    more = ("--control-image", str(files / "picture.png"), "--control-strength", "0.5", "--report", str(report))
    assert run("tiny:sdxl", out, "--controlnet", str(folder), *more) == 0
    control = ControlCondition(PICTURE[None], resolve_controlnet("tiny:sdxl"), 0.5)
    assert same(out, engine("tiny:sdxl", conditions=(control,)))
    assert json.loads(report.read_text())["facts"]["control"] == "canny 0.5, 0 to 1 of the steps"


def test_a_clip(files: Path) -> None:
    out = files / "frames"
    assert run("tiny:wan21-t2v", out, "--video", str(files / "clip"), "--strength", "0.5") == 0
    clip = VideoCondition(PICTURE.expand(5, -1, -1, -1))
    assert same(out, engine("tiny:wan21-t2v", strength=0.5, conditions=(clip,)))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("tiny:flux", ["--mask", "gone.png"], "no such file"),
        ("tiny:flux", ["--mask", "mask.png"], "no picture for it to keep"),
        ("tiny:flux", ["--controlnet", "gone", "--control-image", "picture.png"], "no such folder"),
        (
            "tiny:flux",
            ["--controlnet", "tiny:sdxl", "--control-image", "picture.png"],
            "made for another kind of model",
        ),
        ("tiny:flux", ["--controlnet", "tiny:flux"], "1 for 0 of --control-image"),
        ("tiny:flux", ["--control-image", "picture.png"], "with a control model"),
        ("tiny:flux", ["--video", "clip"], "no clip to start from"),
        ("tiny:flux", ["--keyframe", "picture.png@0"], "no keyframes"),
        ("tiny:flux", ["--keyframe", "picture.png@0:1.2.3"], "it must be a number"),
        ("tiny:flux", ["--keyframe", "gone.png@-1:0.5"], "no such file"),
        ("tiny:flux", ["--keyframe", "picture.png@x"], "keyframe frame = 'x': it must be a whole number"),
        ("tiny:flux", ["--keyframe", "picture.png@1.5:1"], "keyframe frame = '1.5'"),
        ("tiny:flux", ["--keyframe", "picture.png@1:half"], "keyframe strength = 'half'"),
        ("tiny:flux", ["--keyframe", "picture.png:half"], "FILE@FRAME:STRENGTH"),
        ("tiny:flux", ["--keyframe", "picture.png@"], "keyframe frame = '': it must be a whole number"),
        ("tiny:flux", ["--keyframe", "picture.png@0:inf"], "keyframe strength = 'inf': it must be a number"),
        ("tiny:flux", ["--keyframe", "picture.png:0.5@3"], "the strength stands before the frame"),
        ("tiny:flux", ["--keyframe", "@3"], "it names no file"),
        ("tiny:flux", ["--keyframe", "clip@0"], "it is a folder"),
        ("tiny:flux", ["--control-strength", "0.5"], "control-strength = 0.5: there is no control picture"),
        ("tiny:flux", ["--control-start", "0"], "leave --control-start out"),
        ("tiny:flux", ["--control-end", "1"], "leave --control-end out"),
        ("tiny:flux", ["--control-mode", "1"], "leave --control-mode out"),
        (
            "tiny:flux",
            ["--controlnet", "tiny:flux", "--control-image", "picture.png", "--control-mode", "1"],
            "--control-mode = 1: tiny:flux reads one kind of picture",
        ),
        (
            "tiny:flux",
            ["--control-image", "picture.png", "--control-mode", "1", "--control-mode", "2"],
            "--control-mode = '2 for 1 of --control-image'",
        ),
        ("tiny:flux", ["--video", "gone"], "video = "),
        (
            "tiny:flux",
            ["--video", "clip", "--control-strength", "0.5"],
            "a clip is none. Leave --control-strength out; a model whose call has a scale for its clip takes that as "
            "--argument conditioning_scale=0.5",
        ),
        ("tiny:flux", ["--control-video", "clip", "--control-end", "1"], "none. Leave --control-end out."),
        (
            "tiny:flux",
            ["--argument", "latents=@tensor.safetensors"],
            "on the command line, which takes no latent, give a picture with --image and a --strength below 1.",
        ),
        (
            "tiny:sdxl",
            ["--argument", "ip_adapter_image=@picture.png"],
            "Use Image Prompt Condition (--image-prompt) for",
        ),
        ("lora.safetensors", [], "it is a LoRA, which changes a model and is none. Give the model that it changes"),
        (
            "tiny:sdxl",
            ["--control-image", "picture.png", "--controlnet", "lora.safetensors"],
            "it is a LoRA. Give it to",
        ),
    ],
)
def test_bad_input_is_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], model: str, options: list[str], words: str
) -> None:
    named = ("mask.png", "picture.png", "gone", "gone.png", "clip")
    placed = [str(files / word) if word.split("@")[0] in named else word for word in options]
    placed = [word.replace("=@", f"=@{files}/") for word in placed]
    if "safetensors" in f"{model}{options}":
        save_file({"latents": torch.zeros(1, 16, 8, 8)}, files / "tensor.safetensors")
        halves = {"lora_A": torch.zeros(2, 8), "lora_B": torch.zeros(8, 2)}
        save_file({f"unet.mid.to_k.{name}.weight": half for name, half in halves.items()}, files / "lora.safetensors")
        model = model if model.startswith("tiny:") else str(files / model)
        placed = [str(files / word) if word == "lora.safetensors" else word for word in placed]
    assert run(model, files / "out.png", *placed) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "frame", "strength"), [("{}", 0, 1.0), ("{}@-1", -1, 1.0), ("{}@24:0.5", 24, 0.5), ("{}:0.5", 0, 0.5)]
)
def test_a_keyframe_says_its_place_and_strength(files: Path, text: str, frame: int, strength: float) -> None:
    from fastdiffusers.commands.conditions import keyframe

    found = keyframe(text.format(files / "picture.png"))
    assert (found.frame, found.strength) == (frame, strength)
    assert torch.allclose(found.image[0], PICTURE)


def animation(path: Path, milliseconds: int = 40) -> torch.Tensor:
    """Write an animated picture; returns its frames."""
    frames = (torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(2)) * 255).round() / 255
    first, *rest = [Image.fromarray((frame * 255).round().byte().numpy()) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, lossless=True)
    return frames


def test_an_animated_picture_is_a_clip_of_all_its_frames(files: Path) -> None:
    frames = animation(files / "moving.webp")
    read, rate = read_clip(files / "moving.webp", "video")
    assert torch.equal(read, frames)
    assert rate == 25.0
    assert clip_left_out(files / "moving.webp") == []
    out, report = files / "frames", files / "report.json"
    more = ("--video", str(files / "moving.webp"), "--strength", "0.5", "--report", str(report))
    assert run("tiny:wan21-t2v", out, *more) == 0
    assert same(out, engine("tiny:wan21-t2v", strength=0.5, conditions=(VideoCondition(frames),)))
    assert any("frame_rate: 25, the clip's" in note for note in json.loads(report.read_text())["notes"])


@pytest.mark.parametrize("what", ["mp4", "webp", "folder", "picture"])
def test_a_clips_shape_and_rate_are_those_of_its_frames(files: Path, what: str) -> None:
    path = files / {"mp4": "clip.mp4", "webp": "moving.webp", "folder": "clip", "picture": "picture.png"}[what]
    if what == "mp4":
        write_mp4(torch.rand(7, 48, 64, 3), path, 12.5, (torch.zeros(1, 8000), 16000))
    elif what == "webp":
        animation(path)
    frames, rate = read_clip(path, "video")
    shape, same_rate = clip_shape(path, "video")
    assert (shape.shape, same_rate) == (frames.shape, rate)
    assert clip_left_out(path) == (["clip.mp4: its sound is left out."] if what == "mp4" else [])


@pytest.mark.parametrize(("turn", "white"), [(RIGHT, "right"), (LEFT, "left"), (AROUND, "bottom")])
def test_a_video_is_upright_as_its_file_says(turn: tuple[int, ...], white: str, tmp_path: Path) -> None:
    """Telephones keep frames as the sensor lies, and write down how they are to be turned."""
    lying = torch.zeros(2, 32, 64, 3)
    lying[:, :16] = 1.0
    write_mp4(lying, tmp_path / "a.mp4", 10)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(matrix(UPRIGHT)) == 2, "of the movie, and of its track"
    start, end = data[: data.index(b"tkhd")], data[data.index(b"tkhd") :]
    (tmp_path / "a.mp4").write_bytes(start + end.replace(matrix(UPRIGHT), matrix(turn), 1))
    frames, _ = read_clip(tmp_path / "a.mp4", "video")
    assert frames.shape == clip_shape(tmp_path / "a.mp4", "video")[0].shape
    assert frames.shape[1:3] == ((32, 64) if turn is AROUND else (64, 32))
    sides = {"left": frames[:, :, :8], "right": frames[:, :, -8:], "bottom": frames[:, -8:], "top": frames[:, :8]}
    assert max(sides, key=lambda side: float(sides[side].mean())) == white
    assert sides[white].mean() > 0.9


def test_a_video_that_memory_cannot_hold_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mp4(torch.zeros(3, 32, 64, 3), tmp_path / "a.mp4", 10)
    monkeypatch.setattr(memory, "device_memory", lambda device: memory.MemoryState(3 * 32 * 64 * 3 * 5 - 1, 1 << 40))
    with pytest.raises(
        InputError, match=r"its 3 frames of 64x32 take .* GiB, and .* are free. Cut it or scale it down"
    ):
        read_clip(tmp_path / "a.mp4", "video")
    monkeypatch.setattr(memory, "device_memory", lambda device: memory.MemoryState(3 * 32 * 64 * 3 * 5, 1 << 40))
    assert read_clip(tmp_path / "a.mp4", "video")[0].shape == (3, 32, 64, 3)
    write_picture_folder(torch.zeros(4, 32, 64, 3), tmp_path / "clip")
    with pytest.raises(InputError, match=r"its 4 frames of 64x32 take .* GiB, and .* are free\. Use fewer pictures"):
        read_clip(tmp_path / "clip", "video")


def test_what_is_not_read_of_a_keyframe_and_a_folder_is_named(files: Path) -> None:
    import argparse

    from fastdiffusers.commands.conditions import add_condition_options, conditions_left_out

    animation(files / "moving.webp")
    animation(files / "clip" / "frame_00000.webp")
    parser = argparse.ArgumentParser()
    add_condition_options(parser)
    args = parser.parse_args(["--keyframe", f"{files / 'moving.webp'}@0", "--video", str(files / "clip")])
    frames = "its 6 pictures are taken as frames, in the order of their names"
    assert conditions_left_out(args) == [
        "moving.webp: the first of its 5 pictures is used.",
        f"clip: {frames} (frame_00000.png, frame_00000.webp, frame_00001.png, ...).",
        "frame_00000.webp: the first of its 5 pictures is used.",
    ]


def test_an_image_prompt(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from image_prompt_files import ip_adapter_file

    adapter, out = ip_adapter_file(tiny.build("sdxl"), files / "adapter"), files / "out.png"
    picture = ("--image-prompt", str(files / "picture.png"))
    assert run("tiny:sdxl", out, *picture, "--image-prompt-model", str(adapter), "--image-prompt-strength", "0.5") == 0
    condition = ImagePromptCondition(PICTURE[None], resolve_image_prompt(str(adapter)), 0.5)
    assert same(out, engine("tiny:sdxl", conditions=(condition,)))
    for more, said in (
        (picture, "image-prompt-model = 'none': nothing says what reads the image prompt"),
        (("--image-prompt-strength", "2"), "there is no image prompt for it"),
        ((*picture, "--image-prompt-model", str(files / "gone.safetensors")), "there is no such file or folder"),
    ):
        assert run("tiny:sdxl", out, *more) != 0
        assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_references_are_read_as_diffusers_reads_them_in_the_order_given(files: Path, tmp_path: Path) -> None:
    h3: Any = pytest.importorskip("diffusers.modular_pipelines.minimax_h3", reason="this diffusers has no MiniMax-H3")
    video, picture, report = tmp_path / "heard.mp4", files / "picture.png", tmp_path / "report.json"
    sound = torch.sin(torch.arange(16_000) / 9).expand(2, -1) / 2
    write_mp4(torch.rand(16, 32, 48, 3), video, 30.0, (sound, 32_000))
    given = ("--image", str(picture), "--reference-video", str(video), "--reference-video", str(picture))
    parser = argparse.ArgumentParser()
    generate_command.add_arguments(parser)
    typed = parser.parse_args(["--model", "m", "--prompt", "p", "--output", "o.mp4", *given])
    asked = ready(family_of("MiniMaxH3ModularPipeline"), sample_request(typed, decode=True))
    first, clip, last = reference_values(asked.family, asked, lambda frame, size: to_pil(frame))
    theirs = h3.MiniMaxH3VideoReference.from_file(video)
    assert numpy.array_equal(numpy.stack([numpy.asarray(frame) for frame in clip.frames]), theirs.frames)
    assert torch.equal(clip.audio, theirs.audio)
    assert (clip.fps, clip.sample_rate) == (theirs.fps, theirs.sample_rate) == (30.0, 32_000)
    assert (
        first.image.tobytes() == last.image.tobytes() == h3.MiniMaxH3ImageReference.from_file(picture).image.tobytes()
    )
    (shape,) = [each for each in conditions(typed, lambda path, *names, **how: read_picture(path)) if each.sound][:1]
    assert shape.frames.stride() == (0, 0, 0, 0), "of a clip that is only planned with, the shape alone is read"
    line = [
        "generate",
        "--model",
        "tiny:minimax-h3",
        "--prompt",
        "a",
        "--steps",
        "2",
        "--width",
        "32",
        "--height",
        "32",
    ]
    line += ["--dtype", "float32", "--device", "cpu", "--quiet", "--output", str(tmp_path / "latent.safetensors")]
    assert cli.main([*line, "--report", str(report), *given]) == 0
    said = json.loads(report.read_text())
    assert said["facts"]["references"].startswith(
        "picture of 64x64; 16 frames of 48x32 at 30 per second with sound; pict"
    )
    assert not [note for note in said["notes"] if "sound is left out" in note]

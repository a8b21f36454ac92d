"""Every option for a condition, beside each kind that it may stand with: it acts, is named in the report or refused."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands.conditions import add_condition_options
from fastdiffusers.commands.latent_file import read_latent
from fastdiffusers.commands.media import write_picture, write_picture_folder
from fastdiffusers.pipelines import tiny

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))

FAST = ("--steps", "3", "--width", "64", "--height", "64", "--dtype", "float32", "--device", "cpu", "--quiet")
PLAIN = ("--attention", "sdpa", "--torch-compile", "off", "--vae-tiling", "off", "--seed", "3")
CONTROLLED = ("--control-image", "picture.png", "--controlnet")
ADAPTED = ("--image-prompt", "picture.png", "--image-prompt-model", "ip-adapter.safetensors")
REDUX = ("--image-prompt", "picture.png", "--image-prompt-model", "redux")
IMAGE = ("--image", "picture.png", "--strength", "0.7")
CLIP = ("--video", "clip", "--strength", "0.7")
LTX2 = ("--num-frames", "9")
CHANGES = ""
"""What is said of an option that changes the result."""
CASES = (
    ("sdxl", IMAGE, ("--mask", "mask.png"), CHANGES),
    ("flux", (), ("--mask", "mask.png"), "no picture for it to keep"),
    ("sdxl", (), (*CONTROLLED, "tiny:sdxl"), CHANGES),
    ("flux", (), (*CONTROLLED, "tiny:sdxl"), "made for another kind of model"),
    ("sdxl", (*CONTROLLED, "tiny:sdxl"), ("--control-strength", "0.3"), CHANGES),
    ("zimage", (*CONTROLLED, "tiny:zimage"), ("--control-strength", "0.3"), CHANGES),
    ("sdxl", (*CONTROLLED, "tiny:sdxl"), ("--control-start", "0.5"), CHANGES),
    ("zimage", (*CONTROLLED, "tiny:zimage"), ("--control-start", "0.5"), "control start and end ignored"),
    ("sdxl", (*CONTROLLED, "tiny:sdxl"), ("--control-end", "0.5"), CHANGES),
    ("zimage", (*CONTROLLED, "tiny:zimage"), ("--control-end", "0.5"), "control start and end ignored"),
    ("flux", (), ("--control-strength", "0.5"), "there is no control picture"),
    ("sdxl", (), ADAPTED, CHANGES),
    ("sdxl", (*CONTROLLED, "tiny:sdxl"), ("--control-mode", "1"), "reads one kind of picture"),
    ("flux", (), REDUX, CHANGES),
    ("zimage", (), ADAPTED, "zimage takes none of that kind"),
    ("sdxl", ADAPTED, ("--image-prompt-strength", "0.3"), CHANGES),
    ("flux", REDUX, ("--image-prompt-strength", "0.3"), CHANGES),
    ("flux", (), ("--image-prompt-strength", "0.3"), "there is no image prompt for it"),
    ("sdxl", ADAPTED, ("--image-prompt-encoder", "other_encoder"), CHANGES),
    ("flux", REDUX, ("--image-prompt-encoder", "other_encoder"), "has a vision model of its own"),
    ("flux", (), ("--image-prompt-encoder", "other_encoder"), "there is no image prompt for it"),
    ("wan21-t2v", (), CLIP, CHANGES),
    ("flux", (), ("--video", "clip"), "no clip to start from"),
    ("wan21-vace", (), ("--video", "clip"), CHANGES),
    ("wan21-vace", ("--video", "clip"), ("--strength", "0.5"), "has no strength"),
    ("wan21-vace", ("--video", "clip"), ("--mask", "mask.png"), CHANGES),
    ("wan21-t2v", CLIP, ("--mask", "mask.png"), "mask"),
    ("wan21-t2v", (), ("--control-video", "clip"), "no control clip"),
    ("wan21-t2v", (), ("--pose-video", "clip"), "no pose clip"),
    ("wan21-t2v", (), ("--face-video", "clip"), "no face clip"),
    ("wan21-t2v", (), ("--background-video", "clip"), "no background clip"),
    ("wan21-t2v", (), ("--reference-video", "clip"), "no reference clip"),
    ("ltx2-t2v", LTX2, ("--reference-video", "clip"), "the first 1 of its 5 frames are used"),
    ("ltx2-i2v", (*LTX2, "--keyframe", "picture.png@0"), ("--reference-video", "long_clip"), CHANGES),
    ("ltx2-t2v", LTX2, ("--keyframe", "picture.png@0"), CHANGES),
    ("ltx2-t2v", (*LTX2, "--keyframe", "picture.png@0:1"), ("--keyframe", "picture.png@-1:0.5"), CHANGES),
    ("ltx2-t2v", LTX2, ("--keyframe", "picture.png@4"), "at frame 1 instead of 4"),
    ("flux", (), ("--keyframe", "picture.png@0"), "no keyframes"),
    ("sdxl", (), ("--argument", "guidance_rescale=0.9"), CHANGES),
    ("flux", (), ("--argument", "eta=0.5"), "eta"),
)
"""(model, options before, options that are added, what is said of them)."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from image_prompt_files import ip_adapter_file, redux_folder, vision

    root = tmp_path_factory.mktemp("conditions")
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    write_picture(picture, root / "picture.png")
    mask = torch.zeros(64, 64, 3)
    mask[16:48, 16:] = 1.0
    write_picture(mask, root / "mask.png")
    write_picture_folder(picture.expand(5, -1, -1, -1), root / "clip")
    write_picture_folder(picture.flip(0).expand(9, -1, -1, -1), root / "long_clip")
    ip_adapter_file(tiny.build("sdxl"), root)
    vision(seed=7).save_pretrained(root / "other_encoder")
    redux_folder(root / "redux")
    return root


def run(model: str, options: Sequence[str], files: Path, output: Path) -> int:
    words = [str(files / word) if (files / word.split("@")[0]).exists() else word for word in options]
    report = ("--report", str(output.with_suffix(".json")))
    command = ["generate", "--model", f"tiny:{model}", "--prompt", "a fox", "--output", str(output), *report]
    return cli.main([*command, *FAST, *PLAIN, *words])


@pytest.mark.parametrize(("model", "before", "added", "said"), CASES)
def test_an_option_changes_the_result_or_is_named_or_refused(
    model: str,
    before: Sequence[str],
    added: Sequence[str],
    said: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run(model, [*before, *added], files, tmp_path / "with.safetensors")
    printed = capsys.readouterr().err
    if status:
        assert status == cli.BAD_INPUT, printed
        assert said, printed
        assert said in printed
        assert len(printed.splitlines()) == 1
        return
    if said:
        assert said in " ".join(json.loads((tmp_path / "with.json").read_text())["notes"])
        return
    assert run(model, before, files, tmp_path / "without.safetensors") == 0
    one, other = (read_latent(tmp_path / f"{name}.safetensors")[0] for name in ("with", "without"))
    assert one.shape != other.shape or not torch.equal(one, other)


def test_no_option_for_conditions_is_left_out() -> None:
    parser = argparse.ArgumentParser()
    add_condition_options(parser)
    options = {action.option_strings[-1] for action in parser._actions if action.dest != "help"}
    tried = {word for _, before, added, _ in CASES for word in (*before, *added)}
    assert options - tried == set()

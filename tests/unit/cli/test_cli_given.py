"""What is given on the command line or in a line of a file of prompts is followed or refused, never left aside."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands import decode, generate
from fastdiffusers.commands.declared import as_typed
from fastdiffusers.commands.latent_file import write_latent
from fastdiffusers.commands.prompts.arguments import LineParser
from fastdiffusers.commands.prompts.lines import read_lines
from fastdiffusers.commands.prompts.request import note_what_is_left_out
from fastdiffusers.errors import InputError
from fastdiffusers.report import OptimizationReport


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.jsonl", '{"prompt": "a", "seed": 1, "seed": 2}', "line 1, seed = 2: the line says it twice"),
        ("p.jsonl", '{"prompt": "a", "cfg": 1, "--prompt": 2}', "line 1, option"),
        ("p.jsonl", '{"num_frames": 1, "--num-frames": 2}', "line 1, --num-frames = 2: num_frames says the same"),
        ("p.csv", "seed,--seed\n1,2\n", "line 1, --seed = None: seed says the same option"),
        ("p.txt", "a\n-- a fox\n", "line 2, options = '-- a fox': -- is no option"),
    ],
)
def test_a_line_that_says_something_twice_or_nothing(name: str, content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_lines(path, LineParser())
    assert expected in str(caught.value)


def test_a_prompt_that_begins_with_dashes_can_be_written_as_the_cure_says(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("-- a fox's tail\n")
    with pytest.raises(InputError) as caught:
        read_lines(path, LineParser())
    cure = caught.value.cure.removeprefix("write ").removesuffix(" for a prompt that begins so")
    path.write_text(f"--seed 1 {cure}\n")
    (line,) = read_lines(path, LineParser())
    assert line.words == ["--seed", "1", "--prompt=-- a fox's tail"]


def test_a_lone_carriage_return_ends_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"a fox\ra cat\r\na dog\n")
    lines = read_lines(tmp_path / "p.txt", LineParser())
    assert [(line.number, line.words) for line in lines] == [
        (1, ["--prompt=a fox"]),
        (2, ["--prompt=a cat"]),
        (3, ["--prompt=a dog"]),
    ]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("more", [["--cpus", "0"], ["--cluster-wait", "5"], ["--cluster", "local", "--cpus", "0"]])
def test_options_of_a_cluster_without_prompts(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", "tiny:flux", "--prompt", "a", "--output", str(tmp_path / "a.png"), *more]
    assert "it goes with --prompts" in refused(words, capsys)


def test_options_of_a_cluster_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("a\n")
    words = ["generate", "--model", "tiny:flux", "--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "o")]
    assert "it goes with --cluster" in refused([*words, "--cluster-wait", "5"], capsys)


def test_resume_in_a_line_is_for_all_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("--prompt a --resume\n")
    words = ["generate", "--model", "tiny:flux", "--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "o")]
    assert "'--resume': it is for all lines" in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--plan", "flux", "--vram", "24", "--cluster", "local"],
            "--cluster = 'local': it has nothing to do with a plan",
        ),
        (["--plan", "flux", "--vram", "24", "--look-for", "x"], "--look-for"),
        (["--cluster", "h:1", "--json"], "--json = True: it has nothing to do with a list"),
        (["--cluster", "h:1", "--launch"], "--launch"),
    ],
)
def test_doctor_refuses_what_belongs_to_another_question(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(["doctor", *words], capsys)


@pytest.mark.parametrize(
    ("source", "more", "expected"),
    [
        (["--model", "tiny:flux"], ["--convolution", "fast"], "--convolution = 'fast': it goes with --vae"),
        (["--model", "tiny:flux"], ["--cuda-graphs"], "it goes with --vae"),
        (["--vae", "x.safetensors"], ["--exactness", "fast"], "--exactness = 'fast': it goes with --model"),
        (["--vae", "x.safetensors"], ["--revision", "abc"], "--revision = 'abc': it goes with --model"),
        (["--model", "tiny:flux"], ["--frame-rate", "0"], "--frame-rate = 0.0: it must be between"),
    ],
)
def test_decode_refuses_what_it_would_not_follow(
    source: list[str], more: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latent = tmp_path / "l.safetensors"
    write_latent(torch.zeros(1, 16, 8, 8), latent, {})
    words = ["decode", *source, "--latents", str(latent), "--output", str(tmp_path / "a.png"), *more]
    assert expected in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mask", "a", "--mask=b"], "argument --mask: it is given twice, and takes one file: say it once"),
        (["--pose-video", "a", "--pose-video", "b"], "argument --pose-video: it is given twice"),
        (["--report", "b.json"] * 2, "argument --report: it is given twice"),
    ],
)
def test_an_option_that_names_one_file_is_given_once(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(["generate", "--model", "m", "--prompt", "x", "--output", "o.png", *words], capsys)


def test_an_option_is_given_once_in_a_line_too_and_again_in_the_next() -> None:
    parser, base = LineParser(), argparse.Namespace()
    with pytest.raises(InputError, match=r"--mask.*it is given twice"):
        parser.parse_line(base, ["--mask", "1", "--mask", "2"])
    assert [str(parser.parse_line(base, ["--mask", mask]).mask) for mask in "12"] == ["1", "2"]
    assert parser.parse_line(base, ["--seed", "1", "--seed", "2"]).seed == 2


@pytest.mark.parametrize("words", [["--attention", "math"], ["--tile-size", "64"], ["--no-memory-check"]])
def test_what_a_file_recommends_is_not_said_again(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    common = ["generate", "--model", "tiny:flux-random", "--prompt", "x", "--output", "o.png"]
    said = refused([*common, "--recommended", "results.json", *words], capsys)
    assert f"{words[0]} = " in said
    assert said.endswith("--recommended names a file that says it. Leave it or --recommended out.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-frames", "0"], "generate: --num-frames = 0: "),
        (["--max-sequence-length", "0"], "generate: --max-sequence-length = 0: "),
        (["--image", "a.png"], "generate: --image = 'a.png': there is no such file"),
        (["--last-image", "a.png"], "generate: --last-image = 'a.png': there is no such file"),
        (["--control-image", "a.png"], "generate: --control-image = 'a.png': there is no such file"),
        (["--control-strength", "2"], "generate: --control-strength = 2.0: there is no control picture"),
        (["--keyframe", "a.png@x"], "generate: --keyframe frame = 'x': it must be a whole number"),
        (["--argument", "eta=7"], "generate: --argument = 'eta': the call of FluxPipeline takes none of that name"),
        (["--argument", "sigmas=[0.5, 1.0]"], "generate: --argument sigmas = [0.5, 1.0]: each step has less"),
        (["--argument", "sigmas="], "generate: --argument sigmas = '': it has no value"),
        (["--argument", "sigmas=@a.safetensors"], "generate: --argument sigmas = 'a.safetensors': "),
        (["--batch", "1000000000"], "generate: --batch = 1000000000: it must be between 1 and 64"),
        (["--lora", "a.safetensors:x"], "generate: --lora strength = 'x': it must be a number"),
        (["--lora", "tiny:nothing"], "generate: --lora = 'tiny:nothing': "),
        (["--scheduler", "eulr"], "generate: --scheduler = 'eulr': "),
        (["--image-prompt", "a.png"], "generate: --image-prompt-model = 'none': "),
    ],
)
def test_an_error_names_the_option_that_was_typed(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["generate", "--model", "tiny:flux-random", "--prompt", "x", "--output", "o.png"]
    assert said in refused([*common, *words], capsys)


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("images", "--image"),
        ("guidance_2", "--guidance-2"),
        ("images[1]", "--image[1]"),
        ("argument sigmas", "--argument sigmas"),
        ("control strength", "--control-strength"),
        ("image prompt model", "--image-prompt-model"),
        ("keyframe strength", "--keyframe strength"),
        ("positive", "--text-encoder"),
        ("overlap", "--tile-overlap"),
        ("control start and end", "--control-start"),
        ("pose_video, mask_image", "--pose-video, --mask"),
        ("p.jsonl line 1, seed", "p.jsonl line 1, seed"),
        ("--cluster", "--cluster"),
        ("recompile_limit", "recompile_limit"),
    ],
)
def test_what_an_input_is_called_where_it_is_typed(name: str, typed: str) -> None:
    error = as_typed(InputError(name, 1, "it is so", "leave it"), generate.add_arguments)
    assert str(error) == f"{typed} = 1: it is so. Leave it."


def test_a_latent_that_is_broken_already_is_said_to_be_and_one_of_whole_numbers_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = tmp_path / "l.safetensors"
    write_latent(torch.full((1, 16, 8, 8), float("nan")), latents, {})
    words = ["decode", "--model", "tiny:flux-random", "--latents", str(latents), "--output", str(tmp_path / "o.png")]
    assert cli.main(words) == 0
    assert "note: the latent that was given holds NaN or infinite values" in capsys.readouterr().out
    write_latent(torch.zeros((1, 16, 8, 8), dtype=torch.int32), latents, {})
    assert cli.main(words) == 2
    assert "'int32': a latent holds numbers with a floating point." in capsys.readouterr().err


def test_a_class_that_diffusers_does_not_have_is_refused_before_the_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    said = refused(["generate", "--model", str(tmp_path), "--prompt", "x", "--output", "o.png"], capsys)
    assert "names NoSuchPipeline, which diffusers" in said
    assert said.endswith("does not have. Update diffusers, or choose another model.")


def test_a_latent_that_does_not_fit_is_named_as_it_was_typed() -> None:
    error = as_typed(InputError("latent", "shape [1, 4, 8, 8]", "it is so", "use another"), decode.add_arguments)
    assert str(error).startswith("--latents = 'shape [1, 4, 8, 8]': it is so.")


@pytest.mark.parametrize(("clips", "frames", "said"), [(2, 3, True), (1, 3, False), (2, 1, False)])
def test_clips_whose_frames_share_a_folder_are_said(clips: int, frames: int, said: bool, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    args = parser.parse_args(["--model", "m", "--prompt", "a", "--output", str(tmp_path / "frames")])
    made: Any = SimpleNamespace(
        frames=torch.zeros(clips, frames, 8, 8, 3), frame_rate=8.0, audio=None, report=OptimizationReport()
    )
    note_what_is_left_out(args, made)
    note = f"output: the frames of {clips} clips follow each other in one folder, {frames} of each."
    assert made.report.notes == ([note] if said else [])

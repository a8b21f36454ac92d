"""`generate --prompts`: what its lines may say, what they may not, and a run that is ended and resumed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import prompt_runs
import pytest
from prompt_runs import entries, files, written

from fastdiffusers import cli
from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.commands.prompts import manifest
from fastdiffusers.commands.prompts.arguments import LineParser
from fastdiffusers.commands.prompts.items import in_good_order, read_items
from fastdiffusers.commands.prompts.lines import read_lines
from fastdiffusers.commands.prompts.make import Maker
from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.cache import CACHE

SMALL = ("--width", "64", "--height", "64", "--steps", "2", "--dtype", "float32", "--device", "cpu")
OPTIONS = (*SMALL, "--torch-compile", "off", "--quiet")
TWO_MODELS = [
    {"prompt": "a fox", "model": "tiny:flux", "seed": 1},
    {"prompt": "a cat", "model": "tiny:sd3", "seed": 2},
    {"prompt": "a dog", "model": "tiny:flux", "seed": 3},
    {"prompt": "a cow", "model": "tiny:sd3", "seed": 4},
]


def generate(prompts: Path, output: Path, *more: str) -> int:
    return prompt_runs.generate(prompts, output, *OPTIONS, *more)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The source of every pipeline that is loaded."""
    CACHE.clear()
    counted: list[str] = []
    load = CACHE._load

    def counting(key: Any, callbacks: Any) -> Any:
        counted.append(key.source)
        return load(key, callbacks)

    monkeypatch.setattr(CACHE, "_load", counting)
    return counted


def test_models_load_once_and_names_follow_the_file(tmp_path: Path, loads: list[str]) -> None:
    output = tmp_path / "out"
    assert generate(written(tmp_path / "p.jsonl", TWO_MODELS), output) == 0
    assert loads == ["tiny:flux", "tiny:sd3"]
    names = [f"{number:05d}{suffix}" for number in range(1, 5) for suffix in (".json", ".png")]
    assert files(output) == [*names, manifest.NAME]
    assert [entry["name"] for entry in entries(output)] == ["00001", "00003", "00002", "00004"]
    for number, line in enumerate(TWO_MODELS, 1):
        report = json.loads((output / f"{number:05d}.json").read_text())
        assert report["facts"]["prompt"] == line["prompt"]
        assert report["facts"]["seeds"] == [line["seed"]]


def test_each_is_what_it_is_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert generate(written(tmp_path / "p.jsonl", TWO_MODELS), output) == 0
    for number, line in enumerate(TWO_MODELS, 1):
        alone = tmp_path / f"{number}.png"
        words = ["--model", line["model"], "--prompt", line["prompt"], "--seed", str(line["seed"])]
        assert cli.main(["generate", *words, "--output", str(alone), *OPTIONS]) == 0
        assert alone.read_bytes() == (output / f"{number:05d}.png").read_bytes()


def options_of(path: Path, *base: str) -> list[dict[str, Any]]:
    args = cli.build_parser().parse_args(["generate", "--prompts", str(path), "--output", "out", *base])
    parser = LineParser()
    return [vars(item.args) | {"name": item.name} for item in read_items(path, read_lines(path, parser), parser, args)]


def test_three_forms_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('--prompt "a fox, red" --seed 4 --image a.png --image b.png --no-memory-check\n')
    (tmp_path / "p.csv").write_text(
        '\ufeffprompt,seed,image,image,--no-memory-check\n"a fox, red",4,a.png,b.png,true\n'
    )
    line = {"prompt": "a fox, red", "seed": 4, "image": ["a.png", "b.png"], "no_memory_check": True}
    written(tmp_path / "p.jsonl", [line])
    said = [options_of(tmp_path / f"p.{suffix}", "--model", "tiny:flux")[0] for suffix in ("txt", "csv", "jsonl")]
    for each in said:
        each.pop("prompts")
    assert said[0] == said[1] == said[2]
    assert (said[0]["prompt"], said[0]["seed"], said[0]["memory_check"]) == ("a fox, red", 4, False)
    assert [path.name for path in said[0]["image"]] == ["a.png", "b.png"]
    assert all(path.is_absolute() for path in said[0]["image"])


def test_plain_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes('﻿ein Fuß\r\n\r\n# 2 dogs, -1 "cat\r\n'.encode())
    assert [each["prompt"] for each in options_of(tmp_path / "p.txt", "--model", "x")] == [
        "ein Fuß",
        '# 2 dogs, -1 "cat',
    ]


def test_an_empty_prompt_that_is_given_is_a_prompt(tmp_path: Path) -> None:
    written(tmp_path / "p.jsonl", [{"prompt": ""}, {"prompt": "", "negative_prompt": ""}])
    (tmp_path / "p.txt").write_text('--prompt ""\n--prompt= --negative-prompt ""\n')
    for form in ("jsonl", "txt"):
        lines = options_of(tmp_path / f"p.{form}", "--model", "x", "--negative-prompt", "fog")
        assert [(line["prompt"], line["negative_prompt"]) for line in lines] == [("", "fog"), ("", "")]
    (tmp_path / "p.csv").write_text("prompt,seed\n,3\n")
    for path in (tmp_path / "p.csv", written(tmp_path / "q.jsonl", [{"prompt": None}])):
        with pytest.raises(InputError, match=r'none. Add it; an empty one is \{"prompt": ""\} in a .jsonl'):
            options_of(path, "--model", "x")


def test_a_table_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt;seed;steps\n"two\nlines";7;\n;;\nb;;3\n')
    first, second = options_of(tmp_path / "p.csv", "--model", "x", "--steps", "9")
    assert (first["prompt"], first["seed"], first["steps"]) == ("two\nlines", 7, 9)
    assert (second["prompt"], second["seed"], second["steps"]) == ("b", 0, 3)


def test_a_line_with_another_model_leaves_what_belonged_to_the_first(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b", "model": "other/model"}])
    first, second = options_of(path, "--model", "owner/model", "--revision", "abc", "--seed", "5")
    assert (first["model"], first["revision"]) == ("owner/model", "abc")
    assert (second["model"], second["revision"], second["seed"]) == ("other/model", "", 5)


def test_a_whole_number_may_be_written_as_tables_write_it(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", [{"prompt": "a", "seed": 7.0}, {"prompt": "a", "steps": "2.0", "guidance": 2}])
    first, second = options_of(path, "--model", "x")
    assert (first["seed"], second["steps"], second["guidance"]) == (7, 2, 2.0)


def test_a_list_of_a_line_takes_the_place_of_the_one_for_all(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b", "lora": "y.safetensors:0.5@high"}])
    first, second = options_of(path, "--model", "x", "--lora", "x.safetensors")
    assert [(Path(file).name, *rest) for file, *rest in first["lora"]] == [("x.safetensors", "1.0", "both")]
    assert [(Path(file).name, *rest) for file, *rest in second["lora"]] == [("y.safetensors", "0.5", "high")]


def test_items_of_one_model_and_lora_follow_each_other(tmp_path: Path) -> None:
    lora = {"lora": "x.safetensors"}
    lines = [{"model": "a"}, {"model": "b"}, {"model": "a", **lora}, {"model": "a"}, {"model": "b"}, {"model": "a"}]
    path = written(tmp_path / "p.jsonl", [{"prompt": "x", **line} for line in lines])
    args = cli.build_parser().parse_args(["generate", "--prompts", str(path), "--output", "out"])
    parser = LineParser()
    items = in_good_order(read_items(path, read_lines(path, parser), parser, args))
    assert [item.number for item in items] == [1, 4, 6, 3, 2, 5]


BAD: dict[str, tuple[str, bytes, str]] = {
    "no such option": ("p.jsonl", b'{"prompt": "x", "step": 3}', "p.jsonl line 1, option = 'step'"),
    "its cure": ("p.jsonl", b'{"prompt": "x", "step": 3}', "Use steps"),
    "no number": ("p.csv", b"prompt,steps\nx,2\nx,many\n", "p.csv line 3, steps = 'many'"),
    "out of range": ("p.csv", b"prompt,steps\nx,2\nx,-1\n", "p.csv line 3, steps = -1"),
    "no choice": ("p.jsonl", b'{"prompt": "x", "attention": "magic"}', "line 1, attention = 'magic'"),
    "scheduler": ("p.jsonl", b'{"prompt": "x", "scheduler": "magic"}', "line 1, scheduler = 'magic'"),
    "no JSON": ("p.jsonl", b'{"prompt": "x"}\n{"prompt": "x"\n', "p.jsonl line 2, object"),
    "no object": ("p.jsonl", b'"x"', "p.jsonl line 1, object"),
    "nested": ("p.jsonl", b'{"prompt": {"a": 1}}', "p.jsonl line 1, prompt"),
    "a list": ("p.jsonl", b'{"prompt": ["a", "b"]}', "p.jsonl line 1, prompt"),
    "a switch": ("p.jsonl", b'{"prompt": "x", "no_memory_check": "maybe"}', "line 1, no_memory_check = 'maybe'"),
    "no prompt": ("p.jsonl", b'{"seed": 1}', "p.jsonl line 1, prompt"),
    "an empty cell": ("p.csv", b"prompt,seed\n,1\n", "p.csv line 2, prompt"),
    "too many cells": ("p.csv", b"prompt\na, b\n", "p.csv line 2, row"),
    "no name": ("p.csv", b"prompt,\na,b\n", "p.csv line 2, row"),
    "an open quote": ("p.csv", b'prompt\n"a\n', "p.csv line 2, table"),
    "an unknown column": ("p.csv", b"prompt,sead\na,1\n", "p.csv line 1, option = 'sead'"),
    "a column of no option": ("p.csv", b"prompt,colour\na,1\n", "Leave it out"),
    "tabs": ("p.csv", b"prompt\tseed\na\t1\n", "the columns are separated by tabs. Save"),
    "no whole number": ("p.jsonl", b'{"prompt": "x", "seed": 1.5}', "line 1, seed = 1.5: it is no whole number. Write"),
    "a number of 400 digits": ("p.jsonl", b'{"prompt": "x", "seed": ' + b"9" * 400 + b"}", "line 1, seed = 999"),
    "no UTF-8": ("p.txt", b"a\nb\xff\n", "p.txt line 2, text"),
    "an open quote of words": ("p.txt", b'--prompt "a\n', "p.txt line 1, options"),
    "words behind": ("p.txt", b"--prompt a fox\n", "p.txt line 1, options = 'fox'"),
    "an abbreviation": ("p.txt", b"--prompt a --ste 3\n", "p.txt line 1, options = '--ste'"),
    "for all lines": ("p.jsonl", b'{"prompt": "x", "report": "a.json"}', "line 1, option = 'report'"),
    "itself": ("p.txt", b"--prompt a --prompts p.txt\n", "p.txt line 1"),
    "outside": ("p.jsonl", b'{"prompt": "x", "output": "../a.png"}', "line 1, output = '../a.png'"),
    "hidden": ("p.jsonl", b'{"prompt": "x", "output": ".a.png"}', "line 1, output = '.a.png'"),
    "another form": ("p.jsonl", b'{"prompt": "x", "output": "a.gif"}', "line 1, output = 'a.gif'"),
    "a video of a picture": ("p.jsonl", b'{"prompt": "x", "output": "a.mp4"}', "line 1, output = 'a.mp4'"),
    "one name twice": (
        "p.jsonl",
        b'{"prompt": "x", "output": "a.png"}\n{"prompt": "y", "output": "A.safetensors"}',
        "line 2, output = 'A.safetensors': line 1",
    ),
    "a name of a batch": (
        "p.jsonl",
        b'{"prompt": "x", "output": "a.png", "batch": 2}\n{"prompt": "y", "output": "a_1.png"}',
        "line 2, output = 'a_1.png': line 1",
    ),
    "no picture": ("p.jsonl", b'{"prompt": "x", "image": "gone.png", "strength": 0.5}', "line 1, image"),
    "no model": ("p.jsonl", b'{"prompt": "x", "model": "/no/such/folder"}', "line 1, model = '/no/such/folder'"),
    "no LoRA": ("p.jsonl", b'{"prompt": "x", "lora": "/no/such.safetensors"}', "line 1, lora"),
    "nothing": ("p.txt", b"\n \n", "prompts = "),
    "another suffix": ("p.xlsx", b"x", "prompts = "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_one_clear_line_before_any_load(
    case: str, tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, content, expected = BAD[case]
    (tmp_path / name).write_bytes(content)
    assert generate(tmp_path / name, tmp_path / "out", "--model", "tiny:flux") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert expected in said[0]
    assert loads == []
    assert not (tmp_path / "out").exists()


def test_what_goes_with_a_file_of_prompts_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", "tiny:flux", "--prompt", "x", "--output", str(tmp_path / "a.png")]
    assert cli.main([*words, "--resume"]) == 2
    assert "it goes with --prompts" in capsys.readouterr().err
    (tmp_path / "p.txt").write_text("x\n")
    assert generate(tmp_path / "p.txt", tmp_path / "out", "--report", str(tmp_path / "r.json")) == 2
    assert "every result has its own" in capsys.readouterr().err


def test_names_folders_batches_videos_and_latents(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "model": "tiny:flux", "output": "pets/fox.png", "batch": 2},
        {"prompt": "b", "model": "tiny:flux", "output": "keep.safetensors"},
        {"prompt": "c", "model": "tiny:wan22-t2v", "num_frames": 5},
    ]
    output = tmp_path / "out"
    assert generate(written(tmp_path / "p.jsonl", lines), output) == 0
    expected = ["00003.json", "00003.mp4", "keep.json", "keep.safetensors", manifest.NAME]
    assert files(output) == [*expected, "pets/fox.json", "pets/fox_0.png", "pets/fox_1.png"]


def test_an_earlier_run_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = written(tmp_path / "p.jsonl", TWO_MODELS[:1])
    assert generate(prompts, tmp_path / "out") == 0
    assert generate(prompts, tmp_path / "out") == 2
    assert "--resume" in capsys.readouterr().err


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the items that are made."""
    names: list[str] = []
    make = Maker.make

    def noting(self: Maker, item: Any, *args: Any, **options: Any) -> Any:
        names.append(item.name)
        return make(self, item, *args, **options)

    monkeypatch.setattr(Maker, "make", noting)
    return names


def test_resume_does_what_is_missing_changed_or_torn(tmp_path: Path, made: list[str]) -> None:
    output = tmp_path / "out"
    prompts = written(tmp_path / "p.jsonl", TWO_MODELS)
    assert generate(prompts, output) == 0
    before = {name: (output / name).read_bytes() for name in files(output) if name.endswith(".png")}
    made.clear()
    assert generate(prompts, output, "--resume") == 0
    assert made == []
    (output / "00001.png").unlink()  # lost
    lines = (output / manifest.NAME).read_bytes().splitlines(keepends=True)
    (output / manifest.NAME).write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # 00004: its line was cut off
    (output / ".unfinished-old").mkdir()
    assert generate(prompts, output, "--resume") == 0
    assert made == ["00001", "00004"]
    assert {name: (output / name).read_bytes() for name in files(output) if name.endswith(".png")} == before
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == []
    made.clear()
    written(prompts, [*TWO_MODELS[:2], {**TWO_MODELS[2], "seed": 30}, *TWO_MODELS[3:]])
    assert generate(prompts, output, "--resume") == 0
    assert made == ["00003"]
    assert (output / "00003.png").read_bytes() != before["00003.png"]


def test_one_that_fails_stops_none_of_the_others(
    tmp_path: Path, made: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = Maker.make

    def failing(self: Maker, item: Any, *args: Any, **options: Any) -> Any:
        if item.args.prompt == "a cat":
            raise RuntimeError("of this\none")
        return noting(self, item, *args, **options)

    monkeypatch.setattr(Maker, "make", failing)
    output = tmp_path / "out"
    prompts = written(tmp_path / "p.jsonl", TWO_MODELS)
    assert generate(prompts, output) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 of 4 items failed 00002 (p.jsonl line 2): RuntimeError: of this one" in line
    assert made == ["00001", "00003", "00004"]
    failed = [entry for entry in entries(output) if entry["state"] == "failed"]
    assert [(entry["name"], entry["error"]) for entry in failed] == [("00002", "RuntimeError: of this one")]
    monkeypatch.setattr(Maker, "make", noting)
    made.clear()
    assert generate(prompts, output, "--resume") == 0
    assert made == ["00002"]


def test_a_model_that_cannot_be_read_is_tried_once(
    tmp_path: Path, tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str], loads: list[str]
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(tiny_folder("flux"), broken)
    (weights,) = (broken / "vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    lines = [{"prompt": str(n), "model": str(broken)} for n in range(3)] + [{"prompt": "x", "model": "tiny:flux"}]
    status = generate(written(tmp_path / "p.jsonl", lines), tmp_path / "out")
    line = capsys.readouterr().err
    if status == 2:  # what is said from the heads of the files alone is said before any load
        assert "p.jsonl line 1, " in line
        assert loads == []
        return
    assert status == 1
    assert "3 of 4 items failed" in line
    assert loads.count(str(broken)) <= 1
    assert (tmp_path / "out" / "00004.png").is_file()


def test_a_full_disk_ends_the_run_and_resume_does_the_rest(
    tmp_path: Path, made: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = Maker.make

    def full(self: Maker, item: Any, folder: Path, *args: Any, **options: Any) -> Any:
        if len(made) == 2:
            (folder / "half.png").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "half.png"))
        return noting(self, item, folder, *args, **options)

    monkeypatch.setattr(Maker, "make", full)
    output = tmp_path / "out"
    prompts = written(tmp_path / "p.jsonl", TWO_MODELS)
    assert generate(prompts, output) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the disk is full. Free some space and run again with --resume" in line
    assert files(output) == ["00001.json", "00001.png", "00003.json", "00003.png", manifest.NAME]
    monkeypatch.setattr(Maker, "make", noting)
    made.clear()
    assert generate(prompts, output, "--resume") == 0
    assert made == ["00002", "00004"]


def test_a_manifest_that_the_disk_cannot_take_counts_the_item_as_missing(tmp_path: Path, made: list[str]) -> None:
    with manifest.opened(tmp_path, resume=False) as opened:
        opened.write({"key": "a", "state": "done", "files": []})

        class Full:
            def seek(self, *where: int) -> None: ...

            def write(self, data: bytes) -> int:
                with open(tmp_path / manifest.NAME, "ab") as file:
                    file.write(data[:10])
                raise OSError(errno.ENOSPC, "full")

        whole, opened._file = opened._file, Full()  # type: ignore[assignment]
        with pytest.raises(OSError, match="full"):
            opened.write({"key": "b", "state": "done", "files": []})
        opened._file = whole
        assert list(opened.done) == ["a"]
        opened.write({"key": "c", "state": "done", "files": []})
    with manifest.opened(tmp_path, resume=True) as again:
        assert list(again.done) == ["a", "c"]


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    prompts = written(tmp_path / "p.jsonl", TWO_MODELS[:1])
    (tmp_path / "out").mkdir()
    with manifest.opened(tmp_path / "out", resume=False):
        assert generate(prompts, tmp_path / "out") == 2
    assert "another run writes to it" in capsys.readouterr().err


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process with items that take long, and waits until it is at the steps of the second."""
    started: list[subprocess.Popen[str]] = []
    lines = [{"prompt": "quick"}, {"prompt": "long", "steps": 1000}, {"prompt": "last"}]
    prompts = written(tmp_path / "p.jsonl", lines)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fastdiffusers", "generate", "--prompts", str(prompts)]
        command += ["--output", str(tmp_path / "out"), "--model", "tiny:flux", *OPTIONS[:-1]]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "00001.png").is_file():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_a_kill_loses_nothing(tmp_path: Path, long_run: Callable[..., subprocess.Popen[str]]) -> None:
    process = long_run()
    process.kill()
    process.communicate(timeout=60)
    before = (tmp_path / "out" / "00001.png").read_bytes()
    lines = [{"prompt": "quick"}, {"prompt": "long", "steps": 3}, {"prompt": "last"}]
    assert generate(written(tmp_path / "p.jsonl", lines), tmp_path / "out", "--model", "tiny:flux", "--resume") == 0
    assert (tmp_path / "out" / "00001.png").read_bytes() == before
    assert [entry["name"] for entry in entries(tmp_path / "out")] == ["00001", "00002", "00003"]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_at_the_next_step(
    presses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int]] = []
    make = Maker.make

    def pressing(self: Maker, item: Any, folder: Path, callbacks: Callbacks, *args: Any) -> Any:
        def press(tick: Progress) -> None:
            seen.append((item.name, tick.done))
            if item.name == "00002" and tick.stage == "denoise" and tick.done == 1:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
                seen.append(("after", 0))

        return make(self, item, folder, replace(callbacks, on_progress=press), *args)

    monkeypatch.setattr(Maker, "make", pressing)
    prompts = written(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b", "steps": 9}, {"prompt": "c"}])
    assert generate(prompts, tmp_path / "out", "--model", "tiny:flux") == 130
    line = capsys.readouterr().err
    assert line == "fastdiffusers generate: cancelled: 1 of 3 are done; --resume does the rest\n"
    assert seen[-1] == (("after", 0) if presses == 1 else ("00002", 1))
    assert files(tmp_path / "out") == ["00001.json", "00001.png", manifest.NAME]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(Maker, "make", make)
    assert generate(prompts, tmp_path / "out", "--model", "tiny:flux", "--resume") == 0
    assert len(files(tmp_path / "out")) == 7

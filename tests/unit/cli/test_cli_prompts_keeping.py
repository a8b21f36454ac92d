"""`generate --prompts` writes over nothing that is not its own, and notices what its inputs have become."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prompt_runs
import pytest
from prompt_runs import entries, files, written

from fastdiffusers import cli
from fastdiffusers.cluster import events
from fastdiffusers.commands.prompts import manifest, remote
from fastdiffusers.commands.prompts.arguments import LineParser
from fastdiffusers.commands.prompts.items import Item, read_items
from fastdiffusers.commands.prompts.lines import read_lines
from fastdiffusers.commands.prompts.make import Made
from fastdiffusers.commands.prompts.request import NO_VAE
from fastdiffusers.commands.prompts.results import results_in

OPTIONS = ("--width", "64", "--height", "64", "--steps", "2", "--dtype", "float32", "--device", "cpu", "--quiet")


def generate(prompts: Path, output: Path, *more: str) -> int:
    return prompt_runs.generate(prompts, output, *OPTIONS, *more)


def items_of(path: Path, *base: str) -> list[Item]:
    args = cli.build_parser().parse_args(["generate", "--prompts", str(path), "--output", "out", *base])
    parser = LineParser()
    return read_items(path, read_lines(path, parser), parser, args)


def test_a_file_that_is_not_the_manifests_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "fox.json").write_text("mine")
    prompts = written(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b", "output": "fox"}])
    assert generate(prompts, output, "--model", "tiny:flux") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "p.jsonl line 2, output = 'fox': fox.json is in the output folder" in line
    assert (output / "fox.json").read_text() == "mine"
    assert not (output / "00001.png").exists()


def test_another_files_result_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert generate(written(tmp_path / "p.jsonl", [{"prompt": "a fox"}]), output, "--model", "tiny:flux") == 0
    before = (output / "00001.png").read_bytes()
    other = written(tmp_path / "q.jsonl", [{"prompt": "a cat"}, {"prompt": "a fox"}])
    assert generate(other, output, "--model", "tiny:flux", "--resume") == 2
    assert "the result of another prompt ('a fox') in p.jsonl" in capsys.readouterr().err
    assert (output / "00001.png").read_bytes() == before


@pytest.mark.parametrize("cut", [False, True])
def test_a_changed_prompt_is_made_anew_with_what_is_missing(cut: bool, tmp_path: Path) -> None:
    output, prompts = tmp_path / "out", tmp_path / "p.jsonl"
    assert generate(written(prompts, [{"prompt": "a fox"}, {"prompt": "a cat"}]), output, "--model", "tiny:flux") == 0
    before = {name: (output / name).read_bytes() for name in ("00001.png", "00002.png")}
    (output / "00002.png").unlink()
    assert generate(prompts, output, "--model", "tiny:flux") == 2, "without --resume nothing is touched"
    if cut:  # the manifest's lines were: only the reports say whose the results are
        (output / manifest.NAME).write_bytes((output / manifest.NAME).read_bytes()[:40])
    written(prompts, [{"prompt": "a red fox"}, {"prompt": "a cat"}])
    assert generate(prompts, output, "--model", "tiny:flux", "--resume") == 0
    assert (output / "00001.png").read_bytes() != before["00001.png"]
    assert (output / "00002.png").read_bytes() == before["00002.png"]


def test_who_writes_over_a_file_takes_it_from_who_had_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("")
    with manifest.opened(tmp_path, resume=False) as opened:
        opened.write({"key": "first", "state": "done", "files": ["a.png"], "prompt": "x"})
        opened.write({"key": "second", "state": "done", "files": ["a.png"], "prompt": "y"})
        assert list(opened.done) == ["second"]
    with manifest.opened(tmp_path, resume=True) as again:
        assert list(again.done) == ["second"]
        assert again.owner == {"a.png": manifest.Owner("y")}


def test_a_result_that_cannot_be_put_in_place_is_that_items_failure(tmp_path: Path) -> None:
    """On a cluster as in this process."""
    (item,) = items_of(written(tmp_path / "p.jsonl", [{"prompt": "a", "output": "pets/fox"}]), "--model", "tiny:flux")
    output = tmp_path / "out"
    output.mkdir()
    (output / "pets").write_text("a file")
    said: list[str] = []
    progress: Any = SimpleNamespace(finished=lambda name, text: said.append(text))
    with results_in(output, resume=False) as results:
        place = results.place()
        event = events.Finished("worker 1", SimpleNamespace(payload=item), (Made(["fox.png"], "", [0]), {}), 1)  # type: ignore[arg-type]
        remote._take(event, {item.number: place}, results, progress)
        assert [failed.name for failed, _ in results.failures] == ["pets/fox"]
    assert said[0].startswith("failed: FileExistsError")
    assert [entry["state"] for entry in entries(output)] == ["failed"]
    assert files(output) == [manifest.NAME, "pets"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a.png", "a.png/b"), "line 2, output = 'a.png/b': a.png would be a file and a folder, because of line 1"),
        (("A.png/b", "a"), "line 2, output = 'a': a.png would be a file and a folder, because of line 1"),
        (("a", "manifest.jsonl/b"), "line 2, output = 'manifest.jsonl/b': manifest.jsonl is a file"),
    ],
)
def test_a_name_that_is_a_folder_of_another_is_refused(
    names: tuple[str, str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = written(tmp_path / "p.jsonl", [{"prompt": name, "output": name} for name in names])
    assert generate(prompts, tmp_path / "out", "--model", "tiny:flux") == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", ["image", "mask", "control_image", "video", "keyframe", "lora", "model", "folder", "controlnet"]
)
def test_an_input_that_has_changed_makes_another_item(option: str, tmp_path: Path) -> None:
    file = tmp_path / ("x.safetensors" if option == "lora" else "x.png")
    named = tmp_path if option == "folder" else file
    file.write_text("a")
    text = f"{file}@3:0.5" if option == "keyframe" else str(named)
    name = "model" if option == "folder" else option
    prompts = tmp_path.parent / f"{tmp_path.name}.jsonl"
    written(prompts, [{"prompt": "a", "model": "tiny:flux", name: text}])
    before = [items_of(prompts)[0].key for _ in range(2)]
    assert before[0] == before[1]
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert items_of(prompts)[0].key != before[0]


def test_a_name_that_is_the_folders_too_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = written(tmp_path / "p.jsonl", [{"prompt": "a", "output": "out"}, {"prompt": "b"}])
    assert [item.name for item in items_of(prompts, "--model", "x")] == ["out", "00002"]


def test_a_latent_alone_needs_no_vae(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"")
    prompts = written(tmp_path / "p.jsonl", [{"prompt": "a", "output": "a.safetensors"}, {"prompt": "b"}])
    latent, picture = items_of(prompts, "--diffusion-model", str(model))
    assert latent.args.vae == NO_VAE
    assert picture.args.vae is None
    assert latent.model != picture.model


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such modes there")
@pytest.mark.parametrize(("elsewhere", "mode"), [(False, 0o700), (True, 0o777)])
def test_only_a_cluster_elsewhere_may_write_what_is_not_finished(tmp_path: Path, elsewhere: bool, mode: int) -> None:
    with results_in(tmp_path, resume=False, elsewhere=elsewhere):
        (unfinished,) = tmp_path.glob(".unfinished-*")
        assert unfinished.stat().st_mode & 0o777 == mode
    assert not unfinished.exists()

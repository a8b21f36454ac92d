"""Every option that takes a path, of every subcommand, as the parser lists them: no path gives more than one line.

What does the work is replaced by an error that says so: a hostile path must be refused before it, and before anything
is written. A new option is tried by itself; a new subcommand needs its ordinary arguments in `ORDINARY`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdiffusers import cli
from fastdiffusers import vae as video_vae
from fastdiffusers.commands.options import path_argument
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.loading import loader, quantized_copy

AT_WORK = "the work has begun"
SECONDS = 60
"""Far above what any case takes."""
STILL = "still waiting"


def subparsers() -> dict[str, argparse.ArgumentParser]:
    parser = cli.build_parser()
    (action,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)


def takes_a_path(action: argparse.Action) -> bool:
    words = " ".join((action.metavar,) if isinstance(action.metavar, str) else action.metavar or ())
    return action.type in (path_argument, Path) or re.search(r"FILE|FOLDER|PATH|DIR", words) is not None


OPTIONS = [
    (command, action.option_strings[0], action.dest)
    for command, parser in subparsers().items()
    for action in parser._actions
    if takes_a_path(action)
]


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An ordinary value of every option that some subcommand cannot do without, by its name."""
    loader.family_of_key(loader.resolve("tiny:wan22-t2v", device="cpu"))  # imports what takes seconds
    folder = tmp_path_factory.mktemp("ordinary")
    save_file({"samples": torch.zeros(1, 16, 2, 8, 8)}, folder / "latents.safetensors")
    Image.new("RGB", (16, 16)).save(folder / "picture.png")
    torch.manual_seed(0)
    network = video_vae.VideoVAE(video_vae.VaeConfig(block_out_channels=(32, 32, 64, 64)))
    save_file(network.state_dict(), folder / "vae.safetensors")
    return {
        "model": "tiny:wan22-t2v",
        "prompt": "x",
        "weights_dtype": "int8",
        "latents": str(folder / "latents.safetensors"),
        "frames": str(folder / "picture.png"),
        "vae": str(folder / "vae.safetensors"),
    }


OUTPUTS = {
    "generate": "clip.mp4",
    "decode": "clip.mp4",
    "encode": "latent.safetensors",
    "bench": "results",
    "quantize": "copy",
    "convert": "folder",
    "demo": "demo",
}


def arguments(command: str, dest: str, ordinary: dict[str, str], output: Path) -> list[str]:
    """An ordinary command line without the option in question: what is required, and where there is a choice, one."""
    if dest == "export":  # stands alone
        return []
    parser = subparsers()[command]
    wanted = {**ordinary, "output": str(output / OUTPUTS.get(command, ""))}
    groups = [group._group_actions for group in parser._mutually_exclusive_groups]
    exclusive = {action.dest: [each.dest for each in group] for group in groups for action in group}
    words = []
    for action in parser._actions:
        needed = action.required or (action.dest in ("model", "output") and action.dest not in exclusive)
        chosen = action.dest in ("model", "prompt") and dest not in exclusive.get(action.dest, [dest])
        if action.dest != dest and (needed or chosen):
            words += [action.option_strings[0], wanted[action.dest]]
    return words


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Nobody may read a file, root neither."""
    path.chmod(0)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def a_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    return path


def made(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    return path


HOSTILE: dict[str, Callable[[Path, str], object]] = {
    "NUL": lambda f, suffix: f"a\0b{suffix}",
    "5,000 characters": lambda f, suffix: "x" * 5000 + suffix,
    "6,000 characters in folders": lambda f, suffix: "/".join(["x" * 200] * 30) + suffix,
    "nobody's home": lambda f, suffix: f"~nobody-of-that-name/x{suffix}",
    "half a surrogate pair": lambda f, suffix: f"a\ud800b{suffix}",
    "a folder that is not there": lambda f, suffix: f / "gone" / f"x{suffix}",
    "a folder": lambda f, suffix: made(f / f"folder{suffix}", Path.mkdir),
    "below a file": lambda f, suffix: made(f / "file", Path.touch) / f"x{suffix}",
    "a pipe": lambda f, suffix: made(f / f"pipe{suffix}", os.mkfifo),
    "a socket": lambda f, suffix: a_socket(f / f"socket{suffix}"),
    "a link to a full device": lambda f, suffix: made(f / f"full{suffix}", lambda p: p.symlink_to("/dev/full")),
    "a full device": lambda f, suffix: "/dev/full",
    "a link to itself": lambda f, suffix: made(f / f"loop{suffix}", lambda p: p.symlink_to(p)),
    "an empty file": lambda f, suffix: made(f / f"empty{suffix}", Path.touch),
    "a file without a suffix": lambda f, suffix: made(f / "plain", lambda p: p.write_bytes(b"\x80\x04.")),
    "nothing": lambda f, suffix: "",
    "no permission": lambda f, suffix: made(f / f"secret{suffix}", Path.touch),
}
SUFFIXES = {
    "launch": ".sh",
    "log": ".log",
    "report": ".json",
    "recommended": ".json",
    "image": ".png",
    "last_image": ".png",
    "frames": ".png",
    "prompts": ".txt",
}
"""Of the file that an option takes; the others take .safetensors, and --output what its subcommand writes."""
FOLDERS = ("bench", "quantize", "convert", "demo")
"""Subcommands whose --output is a folder; generate and decode take a file or a folder, encode a file."""


def is_fine(command: str, dest: str, value: str) -> bool:
    """Whether what is hostile to other options is an ordinary value of this one."""
    if dest == "output" and value == "a folder":
        return command != "encode"
    if dest in ("output", "report", "export") and value == "an empty file":  # it is replaced
        return not (dest == "output" and command in FOLDERS)
    if dest == "log" and value == "an empty file":
        return True
    return dest in ("export", "log") and value == "a file without a suffix"


@pytest.fixture(autouse=True)
def _within_seconds() -> Iterator[None]:
    """What waits for somebody to write into a pipe would wait for ever."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(STILL)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*args: object, **options: object) -> Any:
        raise RuntimeError(AT_WORK)

    monkeypatch.setattr(CACHE, "_load", work)
    monkeypatch.setattr(loader, "load", work)
    for name in ("decode", "encode"):
        monkeypatch.setattr(video_vae, name, work, raising=False)
    monkeypatch.setattr(quantized_copy, "_quantize_component", work)


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(("command", "option", "dest"), OPTIONS, ids=lambda each: each.strip("-"))
def test_a_hostile_path_is_one_line(
    command: str,
    option: str,
    dest: str,
    value: str,
    ordinary: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, output = tmp_path / "given", tmp_path / "output"
    place.mkdir()
    output.mkdir()
    monkeypatch.chdir(place)
    suffix = Path(OUTPUTS[command]).suffix if dest == "output" else SUFFIXES.get(dest, ".safetensors")
    given = HOSTILE[value](place, suffix)
    before = sorted(map(str, tmp_path.rglob("*")))
    words = [command, *arguments(command, dest, ordinary, output), option, str(given)]
    if value == "no permission":
        with unreadable(Path(str(given))):
            status = cli.main(words)
    else:
        status = cli.main(words)
    said = capsys.readouterr().err.splitlines()
    if is_fine(command, dest, value):
        assert status == cli.OK or AT_WORK in said[-1]
        return
    assert status in (cli.FAILURE, cli.BAD_INPUT)
    assert len(said) == 1, said
    assert said[0].startswith(f"fastdiffusers {command}: ")
    assert len(said[0]) < 1000
    assert AT_WORK not in said[0]
    assert STILL not in said[0]
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_every_path_option_is_found() -> None:
    assert {option for _, option, _ in OPTIONS} >= {"--model", "--output", "--image", "--lora", "--vae", "--export"}
    assert len(OPTIONS) > 15


def test_paths_are_read_in_one_way() -> None:
    """Where argparse makes the path, what no file can be called is a usage error."""
    for parser in subparsers().values():
        assert [action.dest for action in parser._actions if action.type is Path] == []


def test_an_ordinary_line_gets_to_work(ordinary: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    for command in OUTPUTS:
        assert cli.main([command, *arguments(command, "", ordinary, tmp_path)]) == cli.FAILURE
        assert AT_WORK in capsys.readouterr().err, command

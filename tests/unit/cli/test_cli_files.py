"""Results are written completely or not at all, and unwritable places are noticed before a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands.files import check_file_target, check_writable, filling_folder, numbered, replacing
from fastdiffusers.commands.keeping import ResultMovedError, write_or_keep
from fastdiffusers.commands.media import check_output, frame_forms
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import TilingSettings
from fastdiffusers.vae.settings import VaeSettings


def test_a_writable_place_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable("output", tmp_path / "new.png")
    check_writable("output", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["missing/out.png", "file/out.png"])
def test_a_parent_that_is_no_folder_is_bad_input(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output = .*folder"):
        check_writable("output", tmp_path / target)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_a_folder_without_write_permission_is_bad_input() -> None:
    with pytest.raises(InputError, match="no file can be written there"):
        check_writable("output", Path("/proc/out.png"))


@pytest.mark.parametrize("name", ["out.jpg", "out", "folder.png"])
def test_the_suffix_decides_and_a_folder_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"ending in \.png"):
        check_file_target("output", tmp_path / name, (".png",))


def test_non_ascii_and_parent_references_are_ordinary_paths(tmp_path: Path) -> None:
    folder = tmp_path / "später"
    folder.mkdir()
    check_file_target("output", folder / ".." / "später" / "図.png", (".png",))


def test_replacing_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_writes_an_ordinary_file(tmp_path: Path) -> None:
    target, ordinary = tmp_path / "out.txt", tmp_path / "ordinary.txt"
    ordinary.write_text("")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert target.stat().st_mode == ordinary.stat().st_mode


def test_a_folder_never_mixes_two_results(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")

    def fill(count: int) -> None:
        with filling_folder(folder, "frame_*.png") as temporary:
            for index in range(count):
                (temporary / f"frame_{index}.png").write_text(str(count))

    fill(2)
    with pytest.raises(FileExistsError, match="holds frame_"):
        fill(3)
    assert sorted(file.name for file in folder.glob("frame_*")) == ["frame_0.png", "frame_1.png"]

    def fail_half_way() -> None:
        with filling_folder(folder, "frame_*.png") as temporary:
            (temporary / "frame_0.png").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert (folder / "frame_0.png").read_text() == "2"
    assert (folder / "notes.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


def test_frames_that_are_there_are_nobodys_to_delete(tmp_path: Path) -> None:
    (tmp_path / "frame_0001.png").write_text("mine")
    with pytest.raises(InputError, match=r"holds frame_0001\.png already.*[Cc]hoose another folder, or empty it"):
        check_output(tmp_path, video=True)
    with pytest.raises(ResultMovedError, match="The result is kept as") as caught:
        write_or_keep(tmp_path, frame_forms(torch.rand(1, 2, 8, 8, 3), tmp_path, 24.0, None))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("frame_0001.png", "mine")]
    kept = Path(re.findall(r"kept as (.*?): move it", str(caught.value))[0])
    assert len(list(kept.glob("frame_*.png"))) == 2


def test_an_empty_path_is_not_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frame_0001.png").write_text("mine")
    words = ["generate", "--model", "tiny:wan22-t2v", "--prompt", "x", "--output"]
    try:
        status = cli.main([*words, ""])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert "it is empty" in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("frame_0001.png", "mine")]


def test_numbered_names_sort_in_order() -> None:
    assert numbered(Path("a.png"), 1) == [Path("a.png")]
    names = [path.name for path in numbered(Path("a.png"), 11)]
    assert names[0] == "a_00.png"
    assert names == sorted(names)


INPUTS = {
    "--image": ("picture.png", ()),
    "--mask": ("picture.png", ("--image", "other.png")),
    "--diffusion-model": ("model.safetensors", ()),
    "--vae": ("model.safetensors", ("--diffusion-model", "other.safetensors")),
    "--audio-vae": ("model.safetensors", ("--diffusion-model", "other.safetensors")),
    "--lora": ("model.safetensors", ()),
    "--image-prompt": ("picture.png", ()),
}


@pytest.mark.parametrize("option", INPUTS)
def test_what_an_option_reads_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    name, more = INPUTS[option]
    monkeypatch.chdir(tmp_path)
    for file in {name, *more[1::2]}:
        Path(file).write_bytes(b"mine")
    given = f"{name}:0.5@high" if option == "--lora" else name
    model = () if "--diffusion-model" in (option, *more) else ("--model", "tiny:flux")
    words = ["generate", *model, "--prompt", "x", option, given, *more, "--output", f"./{name}"]
    assert cli.main(words) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option} reads it, and it would be replaced" in line
    assert Path(name).read_bytes() == b"mine"


def test_what_an_option_reads_is_none_of_several_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fox_1.png").write_bytes(b"mine")
    words = ["generate", "--model", "tiny:flux", "--prompt", "x", "--image", "fox_1.png", "--batch", "2"]
    assert cli.main([*words, "--output", "fox.png"]) == cli.BAD_INPUT
    assert "output = 'fox_1.png'" in (said := capsys.readouterr().err)
    assert "--image reads it, and it would be replaced" in said
    assert Path("fox_1.png").read_bytes() == b"mine"


def test_a_models_own_file_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    words = ["generate", "--model", str(tmp_path / "model"), "--prompt", "x", "--output", str(file)]
    assert cli.main(words) == cli.BAD_INPUT
    assert "--model reads it" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize("name", [".png", ".mp4", ".safetensors", ".PNG"])
def test_a_suffix_alone_makes_nothing_hidden(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / name
    assert cli.main(["generate", "--model", "tiny:sdxl", "--prompt", "a", "--output", str(target)]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert f"{name} alone would be the name of something hidden" in said
    assert f"result{name}" in said
    assert list(tmp_path.iterdir()) == []


def test_the_least_tile_is_the_one_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("generate", "--model", "tiny:sdxl", "--prompt", "a", "--output", str(tmp_path / "a.png"))
    assert cli.main([*options, "--tile-size", "7"]) == cli.BAD_INPUT
    assert "tiles are at least 64 pixels. Use 64 or more, or 0 for the model's default." in capsys.readouterr().err
    for edge in (64, 65, 100):
        TilingSettings("on", edge)
        VaeSettings(tile_size=edge, tile_overlap=8)
    with pytest.raises(InputError, match=r"a tile is at least 16 pixels\. Use 16 or more; 512 is the default"):
        VaeSettings(tile_size=15, tile_overlap=8)
    VaeSettings(tile_size=16, tile_overlap=8)

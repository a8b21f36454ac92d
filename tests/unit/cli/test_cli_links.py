"""Outputs that are links: what is written goes to where they lead, complete or not at all, and the link stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import prompt_runs
import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands.files import replacing, write_text
from fastdiffusers.commands.latent_file import read_latent, write_latent
from fastdiffusers.commands.launch.start_script import Start, write
from fastdiffusers.commands.media import read_frames, write_mp4, write_picture, write_picture_folder
from fastdiffusers.optimizations.tuning.store import Store
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.loading.partial_folder import complete_or_absent
from fastdiffusers.pipelines.loading.saving.folder import save_folder

PICTURE = torch.zeros(32, 32, 3)
FAST = ("--steps", "1", "--width", "32", "--height", "32", "--dtype", "float32", "--device", "cpu", "--quiet")
START = Start("python3", "/ComfyUI", (), frozenset())
WRITERS: dict[str, Callable[[Path], object]] = {
    "a.png": lambda path: write_picture(PICTURE, path),
    "a.mp4": lambda path: write_mp4(PICTURE[None], path, 24.0),
    "a.safetensors": lambda path: write_latent(torch.zeros(1, 4, 4, 4), path, {}),
    "report.json": lambda path: write_text(path, "{}"),
    "start.sh": lambda path: write(path, START, overwrite=True),
    "rows.jsonl": lambda path: cli.main(["bench", "--export", str(path)]),
}
"""File name -> what writes it."""


def linked(folder: Path, name: str, there: bool) -> tuple[Path, Path]:
    """(a link, what it leads to by way of another link); in folders of their own."""
    for each in ("shown", "between", "kept"):
        (folder / each).mkdir()
    target, between, link = (folder / each / name for each in ("kept", "between", "shown"))
    if there:
        target.write_text("old")
    between.symlink_to(target)
    link.symlink_to(Path("..", "between", name))
    return link, target


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "not there yet"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_written_where_its_link_leads(name: str, there: bool, tmp_path: Path) -> None:
    link, target = linked(tmp_path, name, there)
    plain = tmp_path / name
    WRITERS[name](plain)
    WRITERS[name](link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() == plain.read_bytes()
    assert target.stat().st_mode == plain.stat().st_mode
    for folder in ("shown", "between", "kept"):
        assert [path.name for path in (tmp_path / folder).iterdir()] == [name], "nothing else is left"


def half_written(link: Path, target: Path) -> None:
    with replacing(link) as temporary:
        assert temporary.parent == target.parent, "on the same disk"
        temporary.write_text("half")
        raise RuntimeError("half")


def test_what_fails_leaves_the_link_and_what_it_leads_to(tmp_path: Path) -> None:
    link, target = linked(tmp_path, "a.png", there=True)
    with pytest.raises(RuntimeError, match="half"):
        half_written(link, target)
    assert link.is_symlink()
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]


def test_a_link_to_a_folder_that_is_gone_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone" / "a.png")
    words = ["generate", "--model", "tiny:flux", "--prompt", "a", "--output", str(tmp_path / "a.png"), *FAST]
    assert cli.main(words) == cli.BAD_INPUT
    assert "its folder does not exist" in capsys.readouterr().err


def test_generate_writes_through_links(tmp_path: Path) -> None:
    link, target = linked(tmp_path, "a.png", there=True)
    words = ["generate", "--model", "tiny:flux", "--prompt", "a", "--output", str(link), *FAST]
    assert cli.main([*words, "--report", str(tmp_path / "report.json")]) == 0
    assert link.is_symlink()
    assert read_frames(target)[0].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("there", [True, False], ids=["there", "not there yet"])
def test_folders_of_results(there: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "kept", tmp_path / "link"
    link.symlink_to(target)
    if there:
        target.mkdir()
    write_picture_folder(PICTURE[None], link)
    assert link.is_symlink()
    assert [path.name for path in target.iterdir()] == ["frame_00000.png"]


@pytest.mark.parametrize("there", [True, False], ids=["there", "not there yet"])
def test_folders_of_models(there: bool, tmp_path: Path) -> None:
    target, link = tmp_path / "kept", tmp_path / "link"
    link.symlink_to(target)
    if there:
        target.mkdir()
    saved = save_folder(resolve("tiny:flux", dtype="float32"), link)
    assert saved.folder == link
    assert link.is_symlink()
    assert (target / "model_index.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "link"]
    with pytest.raises(ValueError, match="it exists already"):
        save_folder(resolve("tiny:flux", dtype="float32"), link)


def test_a_folder_that_fails_leaves_the_link(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "kept")
    with pytest.raises(RuntimeError, match="half"), complete_or_absent(link):
        raise RuntimeError("half")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_file_of_prompts(tmp_path: Path) -> None:
    """Its folder, its manifest and a result of an earlier run may be links."""
    prompts, output, kept = (
        prompt_runs.written(tmp_path / "p.jsonl", [{"prompt": "a"}]),
        tmp_path / "out",
        tmp_path / "k",
    )
    output.symlink_to(kept)
    options = ("--model", "tiny:flux", *FAST)
    assert prompt_runs.generate(prompts, output, *options) == 0
    assert output.is_symlink()
    (entry,) = prompt_runs.entries(kept)
    for name in (*entry["files"], "manifest.jsonl"):
        (kept / name).rename(tmp_path / name)
        (kept / name).symlink_to(tmp_path / name)
    picture = next(name for name in entry["files"] if name.endswith(".png"))
    before = (tmp_path / picture).read_bytes()
    assert prompt_runs.generate(prompts, output, *options, "--seed", "9", "--resume") == 0
    assert all((kept / name).is_symlink() for name in (*entry["files"], "manifest.jsonl"))
    assert (tmp_path / picture).read_bytes() != before
    assert len(prompt_runs.entries(tmp_path)) == 2


def test_the_store_of_measurements(tmp_path: Path) -> None:
    link, target = linked(tmp_path, "rows.jsonl", there=False)
    target.write_text("")
    Store(link).forget()
    assert link.is_symlink()
    assert target.is_file()


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "loop"
    link.symlink_to(link)
    with pytest.raises(ValueError, match="output"):
        save_folder(resolve("tiny:flux", dtype="float32"), link)


def test_a_latent_that_is_written_through_a_link_is_whole(tmp_path: Path) -> None:
    link, target = linked(tmp_path, "a.safetensors", there=True)
    latent = torch.rand(1, 4, 8, 8)
    write_latent(latent, link, {"frame_rate": "24.0"})
    found, metadata = read_latent(target)
    assert torch.equal(found, latent)
    assert metadata == {"frame_rate": "24.0"}

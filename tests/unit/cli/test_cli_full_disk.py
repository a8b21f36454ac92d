"""A disk that is full, and an output that is replaced while the run is going on: the result is kept, in one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands import encode, files, keeping, latent_file, media
from fastdiffusers.commands.generate import write_result
from fastdiffusers.commands.keeping import Form, ResultMovedError, check_room, write_or_keep
from fastdiffusers.errors import InputError


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def noise(*shape: int) -> torch.Tensor:
    """What no format makes much smaller."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def kept_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "fastdiffusers_kept_" in str(path.parent))


CASES: dict[str, tuple[str, Callable[[Path], list[Form]]]] = {
    "picture": ("x.png", lambda path: media.frame_forms(noise(1, 1, 512, 512, 3), path, None, None)),
    "pictures": ("x.png", lambda path: media.frame_forms(noise(3, 1, 384, 384, 3), path, None, None)),
    "folder": ("frames", lambda path: media.frame_forms(noise(1, 4, 320, 320, 3), path, 24.0, None)),
    "video": ("x.mp4", lambda path: media.frame_forms(noise(1, 9, 320, 320, 3), path, 24.0, None)),
    "latent": ("x.safetensors", lambda path: latent_file.latent_forms(noise(1, 16, 128, 128), {"frame_rate": "24"})),
}


@pytest.mark.parametrize("case", CASES)
def test_a_result_that_a_full_disk_cannot_take_is_kept_whole(case: str, small_disk: Path, elsewhere: Path) -> None:
    name, forms = CASES[case]
    path = small_disk / name
    with pytest.raises(ResultMovedError) as caught:
        write_or_keep(path, forms(path))
    line = str(caught.value)
    assert str(path) in line
    assert len(line.splitlines()) == 1
    kept = kept_in(elsewhere)
    assert str(elsewhere) in line
    assert kept
    assert all(file.suffix == (path.suffix or ".png") and file.stat().st_size > 0 for file in kept)
    assert case == "pictures" or list(small_disk.iterdir()) == [], "no half of it is left where there is no room"


@pytest.mark.parametrize("case", ["picture", "folder", "latent"])
def test_without_another_disk_a_smaller_form_is_kept_beside(
    case: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary folder is on the same disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    name, _ = CASES[case]
    path = small_disk / name
    forms = {
        "picture": lambda: media.frame_forms(noise(1, 1, 448, 448, 3), path, None, None),
        "folder": lambda: media.frame_forms(noise(1, 3, 256, 256, 3), path, 24.0, None),
        "latent": lambda: latent_file.latent_forms(noise(1, 16, 96, 96), {}),
    }[case]()
    with pytest.raises(ResultMovedError) as caught:
        write_or_keep(path, forms)
    kept = kept_in(small_disk)
    assert kept
    assert ("in float16" if case == "latent" else "as jpg") in str(caught.value)
    if case == "latent":
        latent, _ = latent_file.read_latent(kept[0])
        assert latent.dtype == torch.float16
        assert torch.equal(latent, noise(1, 16, 96, 96).half())
    else:
        assert {file.suffix for file in kept} == {".jpg"}
        assert media.read_picture(kept[0]).ndim == 3


@pytest.mark.parametrize("case", CASES)
def test_where_nothing_takes_it_that_is_one_line_and_nothing_is_left(
    case: str, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in (files, media, latent_file):
        monkeypatch.setattr(module, "replacing", full, raising=False)
        monkeypatch.setattr(module, "filling_folder", full, raising=False)
    name, forms = CASES[case]
    with pytest.raises(ResultMovedError, match=r"No space left .* Free some space") as caught:
        write_or_keep(tmp_path / name, forms(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == [elsewhere]


def test_what_is_no_writing_error_travels(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_or_keep(tmp_path / "x.png", [Form(".png", fail)])


@pytest.mark.parametrize("change", ["a folder", "no parent", "read only"])
def test_an_output_that_is_replaced_meanwhile(change: str, tmp_path: Path, elsewhere: Path) -> None:
    path = tmp_path / "out" / "x.png"
    path.parent.mkdir()
    files.check_file_target("output", path, (".png",))
    if change == "a folder":  # frames then go into it, as they would have done had it been there before
        path.mkdir()
        write_or_keep(path, media.frame_forms(noise(1, 1, 8, 8, 3), path, None, None))
        assert [file.name for file in path.iterdir()] == ["frame_00000.png"]
        return
    if change == "no parent":
        path.parent.rmdir()
    else:
        path.parent.rmdir()
        path.parent.symlink_to("/proc/self")
    with pytest.raises(ResultMovedError):
        write_or_keep(path, media.frame_forms(noise(1, 1, 8, 8, 3), path, None, None))
    assert [file.name for file in kept_in(elsewhere)] == ["x.png"]


def test_the_command_ends_with_one_line_and_the_result_kept(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastdiffusers.commands import generate

    target = tmp_path / "gone" / "x.png"
    target.parent.mkdir()

    def write(result: Any, output: Path) -> None:
        shutil.rmtree(target.parent)
        write_result(result, output)

    monkeypatch.setattr(generate, "write_result", write)
    words = ["--model", "tiny:flux", "--prompt", "x", "--steps", "1", "--width", "64", "--height", "64", "--quiet"]
    assert cli.main(["generate", *words, "--output", str(target)]) == cli.FAILURE
    (line,) = capsys.readouterr().err.splitlines()
    (kept,) = kept_in(elsewhere)
    assert line.startswith(f"fastdiffusers generate: {target} cannot be written (No such file or directory)")
    assert str(kept) in line


def test_a_full_disk_is_noticed_before_the_run(small_disk: Path) -> None:
    files.check_writable("output", small_disk / "x.png")
    with pytest.raises(OSError, match="No space"):
        (small_disk / "fill").write_bytes(bytes(2**20))
    with pytest.raises(InputError, match="No space left"):
        files.check_writable("output", small_disk / "x.png")


def test_room_is_asked_for_where_the_size_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    check_room("output", tmp_path / "x.safetensors", 1000)
    with pytest.raises(InputError, match=r"at least 0\.0 MiB, and 0\.0 MiB are free"):
        check_room("output", tmp_path / "x.safetensors", 1001)


def test_an_encoded_clip_is_checked_before_the_vae_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    media.write_picture(noise(256, 256, 3), tmp_path / "x.png")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    words = [
        "--vae",
        "no.safetensors",
        "--frames",
        str(tmp_path / "x.png"),
        "--output",
        str(tmp_path / "x.safetensors"),
    ]
    assert cli.main(["encode", *words]) == cli.BAD_INPUT
    assert "are free there" in capsys.readouterr().err


def test_the_size_of_a_latent_is_no_more_than_it_takes() -> None:
    assert encode.latent_bytes(9, 64, 96) <= torch.zeros(1, 16, 3, 8, 12, dtype=torch.float16).nbytes
    assert encode.latent_bytes(1, 64, 64) == torch.zeros(1, 16, 1, 8, 8, dtype=torch.float16).nbytes

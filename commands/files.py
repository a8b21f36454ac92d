"""Writing results so that they are either complete or not there, and checking beforehand that they can be written."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..links import link_target

_LEAST = 64 * 1024
"""Bytes that any result may take."""


def check_writable(name: str, path: Path) -> None:
    """Find out before the run, not after it, whether `path` can be created. Nothing is left behind.

    Raises:
        InputError: the parent folder is missing or cannot be written to, or `path` is in the way.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(name, str(path), "it is a pipe or a device, not a file", "choose another name")
    except (FileNotFoundError, NotADirectoryError):  # what is there instead of its folder is said below
        pass
    except OSError as error:
        raise InputError(name, str(path), f"it cannot be written ({error.strerror})", "choose another name") from None
    parent = link_target(path).parent
    if not parent.is_dir():
        reason = "its folder does not exist" if not parent.exists() else f"{str(parent)!r} is not a folder"
        raise InputError(name, str(path), reason, "create the folder first, or choose another")
    folder = path if path.is_dir() else parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LEAST))  # on a full disk an empty file can be made
            file.flush()
    except OSError as error:
        reason = f"no file can be written there ({error.strerror or error})"
        raise InputError(name, str(path), reason, "choose a folder you may write to") from None


def check_named(name: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise InputError for a path that is a suffix alone: it would be the name of a hidden file or folder."""
    if path.name.lower() in suffixes and not path.is_dir():
        reason = f"{path.name} alone would be the name of something hidden"
        raise InputError(name, str(path), reason, f"put a name before it, e.g. {path.with_name('result' + path.name)}")


def check_file_target(name: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Like `check_writable`, for a file that must end in one of `suffixes` (lower case, with the dot)."""
    check_named(name, path, suffixes)
    if path.suffix.lower() not in suffixes or path.is_dir():
        wanted = " or ".join(suffixes)
        raise InputError(name, str(path), f"it must be a file name ending in {wanted}", f"use e.g. result{suffixes[0]}")
    check_writable(name, path)


def check_folder_target(name: str, path: Path) -> None:
    """Like `check_writable`, for a folder that is there or can be made."""
    if path.is_file():
        raise InputError(name, str(path), "it is a file, not a folder", "name a folder")
    check_writable(name, path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write to; it takes the place of `path`, or of what that links to, if the block succeeds."""
    target = link_target(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; a result is an ordinary one
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def filling_folder(folder: Path, pattern: str) -> Iterator[Path]:
    """A temporary folder to fill; its files move into `folder`, or what that links to, only if the block succeeds.

    Nothing in `folder` is removed, and two results never mix.

    Raises:
        FileExistsError: `folder` holds files that match `pattern`; nothing was moved.
    """
    folder = link_target(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        make_folder(folder)
        if next(folder.glob(pattern), None) is not None:
            raise FileExistsError(errno.EEXIST, f"it holds {pattern} already", str(folder))
        for new in sorted(temporary.iterdir()):
            new.replace(folder / new.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, or what it links to, where it is missing."""
    link_target(folder).mkdir(exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` and a final newline as UTF-8, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file's contents, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def numbered(path: Path, count: int) -> list[Path]:
    """The file names of `count` results: `path` itself for one, `name_0.png`, `name_1.png`, ... for several."""
    if count == 1:
        return [path]
    width = len(str(count - 1))
    return [path.with_name(f"{path.stem}_{index:0{width}d}{path.suffix}") for index in range(count)]


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


MOST_FILES = 1000
"""Results that are looked at by name; no run makes as many."""
WRITTEN = ("output", "report", "export", "recommended", "launch", "log")
"""Options that name what a command writes; all others name what it reads, or are no paths."""
TEXTS = ("prompt", "negative_prompt", "command")
MODELS = ("model", "controlnet", "image_prompt_model", "image_prompt_encoder")
"""Options that name a folder, all of which is read."""


def check_not_inputs(args: argparse.Namespace) -> None:
    """Raise InputError where what is to be written is there, and is what another option reads or part of a model."""
    for name in WRITTEN:
        target = getattr(args, name, None)
        if not isinstance(target, Path):
            continue
        count = min(getattr(args, "batch", None) or 1, MOST_FILES)
        for each in dict.fromkeys((target, *(numbered(target, count) if name == "output" and count > 1 else ()))):
            if is_there(each) and not each.is_dir():
                _check_not_input(args, name, each)


def _check_not_input(args: argparse.Namespace, name: str, target: Path) -> None:
    for other, value in vars(args).items():
        if other in (*WRITTEN, *TEXTS):
            continue
        for given in _texts(value):
            if _reads(given, target, whole=other in MODELS):
                reason = f"--{other.replace('_', '-')} reads it, and it would be replaced"
                raise InputError(name, str(target), reason, "choose another name")


def is_there(path: Path) -> bool:
    """Whether a path leads to something; False for one that cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _texts(value: object) -> Iterator[str]:
    """The texts and paths in an option's value, which may be a list of lists."""
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _reads(given: str, target: Path, whole: bool) -> bool:
    """Whether what an option names is this file.

    Args:
        given: a path, or one with a strength and an expert behind it, as LoRAs have.
        whole: a folder's files count, too.
    """
    for text in dict.fromkeys((given, given.rpartition("@")[0], given.rpartition(":")[0])):
        path = Path(text)
        if text and is_there(path):
            return path.samefile(target) or (whole and path.resolve() in target.resolve().parents)
    return False

"""The output folder of a file of prompts: results appear there whole, are named in the manifest, and never twice."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import DISK_FULL, FastDiffusersError, InputError
from ..files import check_writable, make_folder, replacing
from .items import Item, may_write
from .make import Made, stem_of
from .manifest import DONE, FAILED, Manifest, Owner, opened, owner_of

UNFINISHED = ".unfinished-"
PUBLISHING = ".publishing.json"
"""In the place of an item, while its files move to the output folder: what a run that is killed then leaves there."""


class DiskFullError(FastDiffusersError):
    """There is no room for a result, so there is none for the next one either: the run ends."""


def prepare_folder(folder: Path) -> None:
    """Make the output folder where it is missing. Raises InputError where nothing can be written there."""
    if folder.is_file():
        raise InputError("output", str(folder), "with --prompts it is the folder of all results", "name a folder")
    check_writable("output", folder)
    make_folder(folder)


class Results:
    """What is done of a run, and where what is being made is kept until it is."""

    def __init__(self, folder: Path, manifest: Manifest, staging: Path) -> None:
        self.folder = folder
        self.staging = staging
        self._manifest = manifest
        self._count = 0
        self.failures: list[tuple[Item, str]] = []

    def has(self, item: Item) -> bool:
        """Whether an item is done, with the same options, and its files are there."""
        return item.key in self._manifest.done

    def check_targets(self, item: Item) -> None:
        """Refuse an item whose files would take the place of what is not its own to replace.

        An item's own earlier files are: those of the same prompt, or of the same file of prompts, made with another
        prompt, other options or other inputs.

        Raises:
            InputError: there is a file that no run of the manifest has written, or the result of another prompt in
                another file of prompts.
        """
        for folder in list(PurePosixPath(item.name).parents)[:-1]:
            if (self.folder / folder).is_file():
                reason = f"{folder} is a file in the output folder, and would have to be a folder"
                raise InputError("output", item.name, reason, "choose another name")
        for file in may_write(item.name, item.args.batch):
            if not (self.folder / file).exists():
                continue
            if file not in self._manifest.owner and self._has_report_of(item):
                continue
            if file not in self._manifest.owner:
                reason = f"{file} is in the output folder, and the manifest does not name it as a result"
                raise InputError("output", item.name, reason, "choose another name or folder, or move the file")
            other = self._manifest.owner[file]
            if not _may_replace(item, other):
                whose = f"the result of another prompt ({other.prompt[:60]!r}) in {other.prompts or 'another file'}"
                cure = "choose another name or folder, or move the file"
                raise InputError("output", item.name, f"{file} is there already, {whose}", cure)

    def _has_report_of(self, item: Item) -> bool:
        """Whether a report under the item's name is one of its own, where the manifest's line was cut off."""
        stem = stem_of(item)
        try:
            report = json.loads((self.folder / stem.with_name(f"{stem.name}.json")).read_text(encoding="utf-8"))
            return "line" in report["facts"] and _may_replace(item, owner_of(report["facts"]))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def place(self) -> Path:
        """A folder for one attempt at an item."""
        self._count += 1
        folder = self.staging / f"{self._count}"
        with disk_full(self.folder):
            folder.mkdir()
        return folder

    def publish(self, item: Item, made: Made, place: Path, **facts: Any) -> list[Path]:
        """Move an item's files from its place to the output folder, and write it down as done."""
        target = self.folder / stem_of(item).parent
        with disk_full(self.folder):
            target.mkdir(parents=True, exist_ok=True)
            files = [(target / name).relative_to(self.folder).as_posix() for name in made.files]
            (place / PUBLISHING).write_text(json.dumps({**_who(item), "files": files}), encoding="utf-8")
            moved: list[Path] = []
            try:
                for name in made.files:
                    _move(place / name, target / name)
                    moved.append(target / name)
                self._manifest.write(
                    {**_who(item), "state": DONE, "files": files, "seeds": made.seeds, "seconds": made.seconds, **facts}
                )
            except OSError:  # what no line of the manifest names would be in the way of the next run
                for file in moved:
                    file.unlink(missing_ok=True)
                raise
        shutil.rmtree(place, ignore_errors=True)
        return [self.folder / name for name in files]

    def fail(self, item: Item, text: str, **facts: Any) -> None:
        """Write down why an item could not be made."""
        line = " ".join(text.split())
        self.failures.append((item, line))
        with disk_full(self.folder):
            self._manifest.write({**_who(item), "state": FAILED, "files": [], "error": line, **facts})

    def give_up(self, item: Item, place: Path | None, text: str, where: str = "", **facts: Any) -> str:
        """Remove what an attempt has left, write down why nothing came of it, and return that as it is said."""
        remove(place)
        self.fail(item, text, **facts)
        return f"failed{where}: {text}"


@contextmanager
def results_in(folder: Path, resume: bool, elsewhere: bool = False) -> Iterator[Results]:
    """The results of one run. What an earlier one has left unfinished is removed, and so is what this one leaves.

    Args:
        elsewhere: processes of other machines make them.
    """
    with disk_full(folder), opened(folder, resume) as manifest:
        for left in folder.glob(f"{UNFINISHED}*"):
            _take_over(left, manifest)
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=UNFINISHED))
        if elsewhere:
            staging.chmod(0o777)  # they may run as somebody else
        try:
            yield Results(folder, manifest, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def disk_full(folder: Path) -> Iterator[None]:
    """Turn the system's error about a full disk into one that ends the run with the cure."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskFullError(is_full(folder)) from None


def is_full(folder: Path) -> str:
    return f"{folder}: the disk is full. Free some space and run again with --resume"


def remove(place: Path | None) -> None:
    """Remove the folder of an attempt, where there is one."""
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)


def _move(file: Path, target: Path) -> None:
    """Put a file in its place; where a link is there, through it, to wherever it leads."""
    if not target.is_symlink():
        file.replace(target)
        return
    with replacing(target) as temporary:
        shutil.copyfile(file, temporary)


def _take_over(left: Path, manifest: Manifest) -> None:
    """Know the files again that a run which was killed had put in their place, and not yet written down."""
    for path in left.glob(f"*/{PUBLISHING}"):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            manifest.owner.update(dict.fromkeys(said["files"], owner_of(said)))
        except (OSError, ValueError, KeyError, TypeError):  # it was cut off: then nothing had moved
            continue


def _may_replace(item: Item, other: Owner) -> bool:
    """Whether a result is an item's own to replace: of its prompt, or of its file of prompts, before it was changed."""
    return other.prompt == item.args.prompt or other.prompts == item.args.prompts.name


def _who(item: Item) -> dict[str, Any]:
    who = {"item": item.number, "line": item.line, "name": item.name, "key": item.key}
    return who | {"prompt": item.args.prompt, "prompts": item.args.prompts.name}

"""Downloads from the Hugging Face Hub: only what a diffusers pipeline needs, pinned to one commit, with progress."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...callbacks import Callbacks
from ...errors import ModelFileError, first_line
from ..modular.index import MODULAR_INDEX, PLACES, place_in, refuse_own_code
from . import checkpoints
from .components import components, has_weights
from .hub_client import HubClient, HuggingFace, RemoteFile

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = (".json", ".txt", ".model", ".jinja")
MEGABYTE = 1_000_000
GIGABYTE = 1_000_000_000


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a Hub id, "owner/name"."""
    return _ID.fullmatch(source) is not None


def fetch(
    repository: str, revision: str, callbacks: Callbacks, library: Path | None = None, client: HubClient | None = None
) -> tuple[str, Path]:
    """Bring a pipeline's files to this machine and return (commit, folder).

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; "" for the newest.
        library: a folder of models, below which a download is kept as owner/name (owner/name@revision for a certain
            one). What is there whole is used without asking the Hub, and so is what the Hub's own cache has whole.
            None keeps downloads in that cache.

    Without a network an earlier download is used as it is; whether that is whole is for `check_folder` to say.

    Raises:
        ModelFileError: no such repository or revision, no pipeline in it, only pickles, out of reach, stopped half-way,
            or no room for it. What has arrived is kept, and the next call goes on from there.
    """
    client = client or HuggingFace()
    kept = library / _folder_name(repository, revision) if library else None
    if kept and _is_whole(kept):
        return checkpoints.downloaded_commit(kept), kept
    cure = "check the id, log in with `hf auth login` if it is gated, or choose a local folder"
    try:
        # What was begun is finished as it was begun: half of one commit and half of the next would be no model.
        begun = checkpoints.downloaded_commit(kept) if kept else ""
        commit, files = client.commit_and_files(repository, begun or revision)
    except OSError as error:
        cached = client.cached_folder(repository, revision)
        if cached is None:
            reason = f"it is not on this machine and the Hub gives no answer ({first_line(error)})"
            raise ModelFileError("model", repository, reason, cure) from error
        return cached
    names = {file.name for file in files}
    index_name = next((name for name in (checkpoints.INDEX, MODULAR_INDEX) if name in names), None)
    if index_name is None:
        reason = f"the repository has no {checkpoints.INDEX}: it is no diffusers pipeline"
        raise ModelFileError("model", repository, reason, "look for a repository of it in diffusers format")
    cached = client.cached_folder(repository, commit)
    if cached and _is_whole(cached[1]):
        return cached
    # Into the cache in any case: a folder of models has an index only when the rest of it is there.
    if index_name == MODULAR_INDEX:
        refuse_own_code(repository, names)
    index_path = client.download(repository, index_name, commit, None, lambda count: None)
    wanted = _wanted(repository, files, checkpoints.read_index(index_path.parent))
    _check_room(client, repository, commit, wanted, kept)
    if kept:
        try:
            checkpoints.note_commit(kept, commit)
        except OSError as error:
            reason = f"{kept} cannot be written ({first_line(error)})"
            cure = "make it writable, or put another folder first among the diffusers paths"
            raise ModelFileError("model", repository, reason, cure) from error
        wanted += [file for file in files if file.name == index_name]
    _download_all(client, repository, commit, wanted, kept, callbacks)
    return commit, kept or index_path.parent


def _folder_name(repository: str, revision: str) -> str:
    return repository + (f"@{revision.replace('/', '-')}" if revision else "")


def _is_whole(folder: Path) -> bool:
    try:
        checkpoints.check_folder(folder)
    except ModelFileError:
        return False
    return True


def fetch_cached(repository: str, commit: str, client: HubClient | None = None) -> Path:
    """The folder of a commit that `fetch` has brought into the Hub's cache.

    Raises:
        ModelFileError: it is not in the cache any more.
    """
    cached = (client or HuggingFace()).cached_folder(repository, commit)
    if cached is None:
        raise ModelFileError("model", repository, f"commit {commit} is not in the Hub cache any more", "load it again")
    return cached[1]


def _wanted(repository: str, files: Iterable[RemoteFile], index: dict[str, Any]) -> list[RemoteFile]:
    """The files that the pipeline's components need: configurations, vocabularies, and one set of .safetensors."""
    wanted = []
    for component, (library, class_name) in components(index).items():
        beginning = place_in(index, component) + "/"
        own = [file for file in files if file.name.rpartition("/")[0] + "/" == beginning]
        wanted += [file for file in own if file.name.endswith(_SMALL_FILES) and ".index." not in file.name]
        if not has_weights(library, class_name):
            continue
        weights = [file for file in own if ".safetensors" in file.name]
        if not own and index.get(PLACES):  # in another repository
            continue
        if not weights:
            checkpoints.refuse_pickle(Path(repository, component))
        plain = [file for file in weights if checkpoints.weight_variant(file.name.split("/")[-1]) is None]
        wanted += plain or weights
    return wanted


def _check_room(
    client: HubClient, repository: str, commit: str, files: Iterable[RemoteFile], folder: Path | None
) -> None:
    """Say before a download that it does not fit on the disk."""
    needed = sum(max(0, file.size - client.arrived(repository, file.name, commit, folder)) for file in files)
    place = folder or client.cache_place()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if needed > free:
        reason = f"the download takes {needed / GIGABYTE:.1f} GB, and {place} has room for {free / GIGABYTE:.1f} GB"
        raise ModelFileError("model", repository, reason, "free some space, or download it to another disk")


def _download_all(
    client: HubClient, repository: str, commit: str, files: list[RemoteFile], folder: Path | None, callbacks: Callbacks
) -> None:
    total = max(1, sum(file.size for file in files) // MEGABYTE)
    arrived = 0
    for number, file in enumerate(files, 1):
        received = 0
        message = f"{file.name} ({number} of {len(files)}), MB"
        callbacks.tick("download", min(arrived // MEGABYTE, total), total, message)

        def on_bytes(count: int, message: str = message, before: int = arrived) -> None:
            nonlocal received
            received += count
            callbacks.tick("download", min((before + received) // MEGABYTE, total), total, message)

        try:
            client.download(repository, file.name, commit, folder, on_bytes)
        except OSError as error:
            reason = f"the download stopped at {file.name} ({first_line(error)})"
            cure = "run again: what has arrived is kept"
            if error.errno == errno.ENOSPC:
                cure = "free some space, then " + cure
            raise ModelFileError("model", repository, reason, cure) from error
        arrived += file.size
    callbacks.tick("download", total, total)

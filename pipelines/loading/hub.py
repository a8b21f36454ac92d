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
from ..modular.index import MODULAR_INDEX, PLACES, cached, place_in, refuse_own_code
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
        held = client.cached_folder(repository, revision)
        if held is None:
            reason = f"it is not on this machine and the Hub gives no answer ({first_line(error)})"
            raise ModelFileError("model", repository, reason, cure) from error
        return held
    names = {file.name for file in files}
    index_name = next((name for name in (checkpoints.INDEX, MODULAR_INDEX) if name in names), None)
    if index_name is None:
        reason = f"the repository has no {checkpoints.INDEX}: it is no diffusers pipeline"
        raise ModelFileError("model", repository, reason, "look for a repository of it in diffusers format")
    held = client.cached_folder(repository, commit)
    if held and _is_whole(held[1]):
        return held
    # Into the cache in any case: a folder of models has an index only when the rest of it is there.
    if index_name == MODULAR_INDEX:
        refuse_own_code(repository, names)
    index_path = client.download(repository, index_name, commit, None, lambda count: None)
    index = checkpoints.read_index(index_path.parent)
    wanted = _wanted(repository, files, index)
    _check_room(client, repository, commit, wanted, kept)
    for place, names_in in elsewhere(index, names).items():
        _fetch_components(client, repository, index, place, names_in, callbacks)
    if kept:
        try:
            checkpoints.note_commit(kept, commit)
        except OSError as error:
            reason = f"{kept} cannot be written ({first_line(error)})"
            cure = "make it writable, or put another folder first among the diffusers paths"
            raise ModelFileError("model", repository, reason, cure) from error
        wanted += [file for file in files if file.name == index_name]
    _download_all(client, repository, commit, wanted, kept, callbacks)
    if kept is None:
        client.note_revision(repository, revision, commit)
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
    held = (client or HuggingFace()).cached_folder(repository, commit)
    if held is None:
        raise ModelFileError("model", repository, f"commit {commit} is not in the Hub cache any more", "load it again")
    return held[1]


def _wanted(repository: str, files: Iterable[RemoteFile], index: dict[str, Any]) -> list[RemoteFile]:
    """The files that the pipeline's components need: configurations, vocabularies, and one set of .safetensors."""
    files = list(files)
    wanted = []
    for component, (library, class_name) in components(index).items():
        folder = place_in(index, component)
        if index.get(PLACES) and not _in_folder(files, folder):  # in another repository
            continue
        wanted += _of_component(repository, files, folder, has_weights(library, class_name))
    return wanted


def _in_folder(files: Iterable[RemoteFile], folder: str) -> list[RemoteFile]:
    """The files directly in a folder of a repository, "" for the repository itself."""
    return [file for file in files if file.name.rpartition("/")[0] == folder]


def _of_component(repository: str, files: Iterable[RemoteFile], folder: str, weighs: bool) -> list[RemoteFile]:
    """Those that a component needs. Raises ModelFileError where it weighs something, and has pickles alone."""
    own = _in_folder(files, folder)
    small = [file for file in own if file.name.endswith(_SMALL_FILES) and ".index." not in file.name]
    if not weighs:
        return small
    weights = [file for file in own if ".safetensors" in file.name]
    if not weights:
        checkpoints.refuse_pickle(Path(repository, folder))
    plain = [file for file in weights if checkpoints.weight_variant(file.name.split("/")[-1]) is None]
    return small + (plain or weights)


def elsewhere(index: dict[str, Any], names: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """(repository, revision) -> the components of a modular index that are in it, and not among the files `names`."""
    folders = {name.rpartition("/")[0] for name in names}
    found: dict[tuple[str, str], list[str]] = {}
    for component in components(index):
        place = index.get(PLACES, {}).get(component)
        there = place is None or place.subfolder in folders - {""} or Path(place.source).is_dir()
        if not there and is_hub_id(place.source):
            found.setdefault((place.source, place.revision or ""), []).append(component)
    return found


def _fetch_components(
    client: HubClient,
    model: str,
    index: dict[str, Any],
    place: tuple[str, str],
    names: list[str],
    callbacks: Callbacks,
) -> None:
    """Bring components that a modular repository names in another one into the Hub's cache.

    Raises:
        ModelFileError: they are not there, pickles alone, out of reach, or there is no room for them.
    """
    repository, revision = place
    shown = f"its {', '.join(names)} {'is' if len(names) == 1 else 'are'} in another repository, {repository}"
    try:
        commit, files = client.commit_and_files(repository, revision)
    except OSError as error:
        if all(cached(index[PLACES][name]) is not None for name in names):
            return
        reason = f"{shown}, and the Hub gives no answer ({first_line(error)})"
        cure = f"check the connection, or log in with `hf auth login` if {repository} is gated"
        raise ModelFileError("model", model, reason, cure) from error
    wanted: list[RemoteFile] = []
    for name in names:
        library, class_name = components(index)[name]
        folder = index[PLACES][name].subfolder
        if not _in_folder(files, folder):
            reason = f"{shown}, where there is no {folder or 'file'}"
            raise ModelFileError("model", model, reason, "use a model whose components are where its index says")
        wanted += _of_component(repository, files, folder, has_weights(library, class_name))
    _check_room(client, repository, commit, wanted, None)
    _download_all(client, repository, commit, wanted, None, callbacks)
    client.note_revision(repository, revision, commit)


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

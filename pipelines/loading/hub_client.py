"""The Hugging Face Hub as `hub` sees it: a small interface, and `huggingface_hub` behind it.

Everything above can so be tested without a network.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...errors import first_line
from ..modular.index import MODULAR_INDEX
from . import checkpoints

log = logging.getLogger(__name__)
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")
_HTTP_LIBRARIES = ("httpx", "httpcore", "requests", "urllib3")
"""What huggingface_hub may speak through, by the beginning of their modules' names: httpx2 is one of them too."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. Attributes: name (path inside it), size in bytes (0 when unknown)."""

    name: str
    size: int = 0


class HubClient(Protocol):
    """What is needed of the Hub. `folder` is where a download is kept; None is the Hub's own cache."""

    def commit_and_files(self, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that `revision` ("" = newest) means now, and its files. Raises OSError when out of reach."""

    def cached_folder(self, repository: str, revision: str) -> tuple[str, Path] | None:
        """Commit and folder in the Hub's cache, without any network; None when there is none."""

    def cache_place(self) -> Path:
        """Where the Hub's cache is."""

    def arrived(self, repository: str, name: str, commit: str, folder: Path | None) -> int:
        """Bytes of this file that are there already, as far as can be told without a network."""

    def note_revision(self, repository: str, revision: str, commit: str) -> None:
        """Note in the Hub's cache which commit a revision ("" = newest) means, for a time without a network."""

    def download(
        self, repository: str, name: str, commit: str, folder: Path | None, on_bytes: Callable[[int], None]
    ) -> Path:
        """Fetch one file (or find it there) and return its path. `on_bytes` gets the bytes as they arrive.

        Raises OSError when it does not arrive; a part of it is kept, and the next attempt goes on from there.
        """


@contextmanager
def _network_errors() -> Iterator[None]:
    """Every way in which the Hub can be out of reach or say no, as an OSError, whichever HTTP library is below."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError) as error:
        raise OSError(first_line(error)) from error
    except Exception as error:
        if type(error).__module__.startswith(_HTTP_LIBRARIES):
            raise OSError(first_line(error)) from error
        raise


class HuggingFace:
    """`huggingface_hub`, with its cache, its login and its offline mode."""

    def commit_and_files(self, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        with _network_errors():
            info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
        files = [RemoteFile(item.rfilename, item.size or 0) for item in info.siblings or []]
        return str(info.sha), files

    def cached_folder(self, repository: str, revision: str) -> tuple[str, Path] | None:
        from huggingface_hub import try_to_load_from_cache

        for index in (checkpoints.INDEX, MODULAR_INDEX):
            path = try_to_load_from_cache(repository, index, revision=revision or None)
            if isinstance(path, str):
                folder = Path(path).parent  # .../snapshots/<commit>
                return folder.name, folder
        return None

    def cache_place(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def arrived(self, repository: str, name: str, commit: str, folder: Path | None) -> int:
        from huggingface_hub import try_to_load_from_cache

        if folder is None:
            cached = try_to_load_from_cache(repository, name, revision=commit)
            places = [Path(cached)] if isinstance(cached, str) else []
        else:
            places = [folder / name, _partial(folder / name)]
        return sum(place.stat().st_size for place in places if place.is_file())

    def note_revision(self, repository: str, revision: str, commit: str) -> None:
        from huggingface_hub.file_download import repo_folder_name

        if revision == commit or not _REVISION.fullmatch(revision or "main") or ".." in revision:
            return
        from huggingface_hub import constants

        name = revision or constants.DEFAULT_REVISION
        file = self.cache_place() / repo_folder_name(repo_id=repository, repo_type="model") / "refs" / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(commit, encoding="utf-8")
        except OSError as error:
            log.debug("%s is not noted: %s", file, first_line(error))

    def download(
        self, repository: str, name: str, commit: str, folder: Path | None, on_bytes: Callable[[int], None]
    ) -> Path:
        from tqdm import tqdm

        class Bar(tqdm):
            """Passes the bytes on instead of drawing them."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                on_bytes(int(n or 0))
                return None

        with _network_errors():
            if folder is None:
                return _fetch_into_cache(repository, name, commit, Bar)
            target = folder / name
            return target if target.is_file() else _fetch(repository, name, commit, lambda etag: target, Bar)


def _fetch_into_cache(repository: str, name: str, commit: str, bar: type) -> Path:
    """Fetch a file into the Hub's own cache, in its layout: `blobs/<etag>`, and a link to it under the commit."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    cached = try_to_load_from_cache(repository, name, revision=commit)
    if isinstance(cached, str):
        return Path(cached)
    storage = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
    blob = _fetch(repository, name, commit, lambda etag: storage / "blobs" / etag, bar)
    place = storage / "snapshots" / commit / name
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except FileExistsError:  # another process was as quick
        pass
    except OSError:  # no links here, as on Windows without developer mode
        blob.replace(place)
    return place


def _fetch(repository: str, name: str, commit: str, place: Callable[[str], Path], bar: type) -> Path:
    """Fetch a file, or the rest of it, to where `place` wants its etag.

    Through plain HTTP: huggingface_hub's own download starts each file again after a stop, and hf_xet's threads do not
    hear a cancel.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url, headers = hf_hub_url(repository, name, revision=commit), build_hf_headers()
    found = get_hf_file_metadata(url, headers=headers)
    target, size = place(found.etag or commit), found.size
    if target.is_file():
        return target
    partial = _partial(target)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as file:
        http_get(url, file, resume_size=file.tell(), headers=headers, expected_size=size, **_bar_of(http_get, bar))
    return partial.replace(target)


def _partial(target: Path) -> Path:
    """Where a file is kept until it is whole."""
    return target.with_name(target.name + ".partial")


def _bar_of(function: Callable[..., Any], bar: type) -> dict[str, Any]:
    """The releases whose functions take no bar of ours report whole files only."""
    return {"tqdm_class": bar} if "tqdm_class" in inspect.signature(function).parameters else {}

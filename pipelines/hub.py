"""Downloads from the Hugging Face Hub: only what a diffusers pipeline needs, pinned to one commit, with progress.

All access goes through a small client, so that everything else here can be tested without a network.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..callbacks import Callbacks
from ..errors import ModelFileError
from . import checkpoints

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = (".json", ".txt", ".model", ".jinja")
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. Attributes: name (path inside it), size in bytes (0 when unknown)."""

    name: str
    size: int = 0


class HubClient(Protocol):
    """What is needed of the Hub."""

    def commit_and_files(self, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that `revision` ("" = newest) means now, and its files. Raises OSError when out of reach."""

    def cached_folder(self, repository: str, revision: str) -> tuple[str, Path] | None:
        """Commit and folder of an earlier download, without any network; None when there is none."""

    def download(self, repository: str, name: str, commit: str, on_bytes: Callable[[int], None]) -> Path:
        """Fetch one file (or find it in the cache) and return its path. `on_bytes` gets the bytes as they arrive."""


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a Hub id, "owner/name"."""
    return _ID.fullmatch(source) is not None


def fetch(repository: str, revision: str, callbacks: Callbacks, client: HubClient | None = None) -> tuple[str, Path]:
    """Bring a pipeline's files into the Hub cache and return (commit, folder).

    Without a network an earlier download is used as it is; whether that is whole is for `check_folder` to say.

    Raises:
        ModelFileError: no such repository or revision, no pipeline in it, only pickles, or out of reach.
    """
    client = client or _HuggingFace()
    cure = "check the id, log in with `hf auth login` if it is gated, or choose a local folder"
    try:
        commit, files = client.commit_and_files(repository, revision)
    except OSError as error:
        cached = client.cached_folder(repository, revision)
        if cached is None:
            reason = f"it is not on this machine and the Hub gives no answer ({_first_line(error)})"
            raise ModelFileError("model", repository, reason, cure) from error
        return cached
    names = {file.name for file in files}
    if checkpoints.INDEX not in names:
        reason = f"the repository has no {checkpoints.INDEX}: it is no diffusers pipeline"
        raise ModelFileError("model", repository, reason, "look for a repository of it in diffusers format")
    nothing = lambda count: None
    index_path = client.download(repository, checkpoints.INDEX, commit, nothing)
    wanted = _wanted(repository, files, checkpoints.read_index(index_path.parent))
    _download_all(client, repository, commit, wanted, callbacks)
    return commit, index_path.parent


def fetch_cached(repository: str, commit: str, client: HubClient | None = None) -> Path:
    """The folder of a commit that `fetch` has brought here.

    Raises:
        ModelFileError: it is not in the cache any more.
    """
    cached = (client or _HuggingFace()).cached_folder(repository, commit)
    if cached is None:
        raise ModelFileError("model", repository, f"commit {commit} is not in the Hub cache any more", "load it again")
    return cached[1]


def _wanted(repository: str, files: Iterable[RemoteFile], index: dict[str, Any]) -> list[RemoteFile]:
    """The files that the pipeline's components need: configurations, vocabularies, and one set of .safetensors."""
    wanted = []
    for component, (_, class_name) in checkpoints.components(index).items():
        own = [file for file in files if file.name.startswith(component + "/") and file.name.count("/") == 1]
        wanted += [file for file in own if file.name.endswith(_SMALL_FILES) and ".index." not in file.name]
        if not checkpoints.has_weights(class_name):
            continue
        weights = [file for file in own if ".safetensors" in file.name]
        if not weights:
            checkpoints.refuse_pickle(Path(repository, component))
        plain = [file for file in weights if checkpoints.weight_variant(file.name.split("/")[-1]) is None]
        wanted += plain or weights
    return wanted


def _download_all(
    client: HubClient, repository: str, commit: str, files: list[RemoteFile], callbacks: Callbacks
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
            client.download(repository, file.name, commit, on_bytes)
        except OSError as error:
            reason = f"the download stopped at {file.name} ({_first_line(error)})"
            raise ModelFileError("model", repository, reason, "run again: what has arrived is kept") from error
        arrived += file.size
    callbacks.tick("download", total, total)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _network_errors() -> Iterator[None]:
    """Every way in which the Hub can be out of reach or say no, as an OSError, whichever HTTP library is below."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError) as error:
        raise OSError(_first_line(error)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("httpx", "httpcore", "requests", "urllib3"):
            raise OSError(_first_line(error)) from error
        raise


class _HuggingFace:
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

        path = try_to_load_from_cache(repository, checkpoints.INDEX, revision=revision or None)
        if not isinstance(path, str):
            return None
        folder = Path(path).parent  # .../snapshots/<commit>
        return folder.name, folder

    def download(self, repository: str, name: str, commit: str, on_bytes: Callable[[int], None]) -> Path:
        from huggingface_hub import hf_hub_download
        from tqdm import tqdm

        class Bar(tqdm):
            """Passes the bytes on instead of drawing them."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                on_bytes(int(n or 0))
                return None

        # The releases that cannot take a bar of ours report whole files only.
        bars: dict[str, Any] = (
            {"tqdm_class": Bar} if "tqdm_class" in inspect.signature(hf_hub_download).parameters else {}
        )
        with _network_errors():
            return Path(hf_hub_download(repository, name, revision=commit, **bars))

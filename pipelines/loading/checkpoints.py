"""Checks of model folders and files that read no weights: what is there, whether it is whole, and whether it is safe.

A folder passes when every component of its `model_index.json` is there with its configuration, every weight file that
an index names exists, and every .safetensors file is as long as its own header says. Pickles are refused: loading one
runs whatever code it holds.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ModelFileError

INDEX = "model_index.json"
COMMIT_NOTE = ".hub_commit"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
DOWNLOAD_AGAIN = "download the model again"
CONVERT = "use a copy in .safetensors format"

_MAX_HEADER = 100_000_000
"""Longest header that the safetensors format allows, in bytes."""
_NO_WEIGHTS = re.compile(r"(Tokenizer(Fast)?|Scheduler|Processor(Fast)?|Extractor)$")
"""Class names of components that are configuration only."""
_CONFIG_FILES = (
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "config.json",
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


def read_index(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a diffusers folder.

    Raises:
        ModelFileError: it is missing, unreadable, or names no pipeline class of diffusers.
    """
    path = folder / INDEX
    if not path.is_file():
        cure = "choose the folder that holds it; a component's own folder is not a pipeline"
        raise ModelFileError("model", str(folder), f"there is no {INDEX} in it", cure)
    index = read_json(path)
    name = index.get("_class_name")
    if isinstance(name, list):
        reason = f"its {INDEX} asks for code of its own ({name[0]}), and code in model folders is never run"
        raise ModelFileError("model", str(folder), reason, "use a model whose pipeline is part of diffusers")
    if not isinstance(name, str) or not name:
        raise ModelFileError("model", str(folder), f"its {INDEX} names no pipeline class", DOWNLOAD_AGAIN)
    return index


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelFileError when the file is unreadable, cut off, or holds something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError("model", str(path), f"it cannot be read ({error})", DOWNLOAD_AGAIN) from error
    if not isinstance(data, dict):
        raise ModelFileError("model", str(path), "it holds no JSON object", DOWNLOAD_AGAIN)
    return data


def note_commit(folder: Path, commit: str) -> None:
    """Note in a folder which Hub commit is being downloaded into it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMMIT_NOTE).write_text(commit + "\n", encoding="utf-8")


def downloaded_commit(folder: Path) -> str:
    """The Hub commit that a folder was downloaded from, by this pack or with `hf download --local-dir`; "" unknown."""
    for note in (folder / COMMIT_NOTE, folder / ".cache" / "huggingface" / "download" / f"{INDEX}.metadata"):
        try:
            return note.read_text(encoding="utf-8").split()[0]
        except (OSError, ValueError, IndexError):
            continue
    return ""


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> (library, class) of the components that a `model_index.json` says are there."""
    found = {}
    for name, entry in index.items():
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[0] and entry[1]:
            found[name] = (str(entry[0]), str(entry[1]))
    return found


def has_weights(class_name: str) -> bool:
    """Whether a component of this class comes with weights, judged by its name."""
    return _NO_WEIGHTS.search(class_name) is None


def check_folder(folder: Path) -> dict[str, Any]:
    """Check a diffusers folder without reading weights, and return its `model_index.json`.

    Raises:
        ModelFileError: it is no pipeline, a component is missing, half-downloaded, corrupt, or a pickle.
    """
    index = read_index(folder)
    for name, (_, class_name) in components(index).items():
        part = folder / name
        if not part.is_dir():
            reason = f"its {INDEX} lists the component {name!r}, but that folder is missing"
            raise ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)
        if not any((part / config).is_file() for config in _CONFIG_FILES):
            raise ModelFileError("model", str(part), "its configuration file is missing", DOWNLOAD_AGAIN)
        if has_weights(class_name):
            _check_weights(part)
    return index


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            refuse_pickle(folder / pickles[0])
        raise ModelFileError("model", str(folder), "it holds no .safetensors file", DOWNLOAD_AGAIN)
    indices = sorted(folder.glob("*.safetensors.index*.json"))
    if any(weight_variant(path.name) is None for path in files):  # then that is what will be loaded
        indices = [path for path in indices if weight_variant(path.name) is None]
    indexed = set()
    for path in indices:
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFileError("model", str(path), "it lists no weights", DOWNLOAD_AGAIN)
        shards = set(weight_map.values())
        indexed |= shards
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            reason = f"{len(missing)} of {len(shards)} weight files are missing, the first is {missing[0]}"
            raise ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)
    for file in files:
        if _SHARD.search(file.name) and file.name not in indexed and weight_variant(file.name) is None:
            reason = "it is one part of several, but the index file that joins them is missing"
            raise ModelFileError("model", str(file), reason, DOWNLOAD_AGAIN)
        read_header(file)


def refuse_pickle(path: Path) -> None:
    """Raise the ModelFileError that says why a pickle is not loaded."""
    raise ModelFileError("model", str(path), "it is a pickle, and loading one can run any code it holds", CONVERT)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a .safetensors file: tensor name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        ModelFileError: the file cannot be read, is no safetensors file, or is shorter or longer than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ModelFileError("model", str(path), _damage(size), DOWNLOAD_AGAIN)
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelFileError("model", str(path), f"it cannot be read ({error.strerror})") from error
    except ValueError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError("model", str(path), _damage(size), DOWNLOAD_AGAIN) from error
    if not isinstance(header, dict):
        raise ModelFileError("model", str(path), _damage(size), DOWNLOAD_AGAIN)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != 8 + length + end:
        reason = f"it has {size} bytes, but its header describes {8 + length + end}: a broken or unfinished download"
        raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN)
    return tensors


def _damage(size: int) -> str:
    return "it is empty" if size == 0 else "it is not a safetensors file, or its beginning is damaged"


def variant(folder: Path, index: dict[str, Any]) -> str | None:
    """The file-name variant ("fp16") to load, where some component has no plain weight file; None otherwise."""
    for name, (_, class_name) in components(index).items():
        if not has_weights(class_name):
            continue
        marks = {weight_variant(path.name) for path in (folder / name).glob("*.safetensors")}
        if marks and None not in marks:
            return sorted(mark for mark in marks if mark)[0]
    return None


def weight_variant(file_name: str) -> str | None:
    """The variant in the name of a weight file or its index, None where it is plain.

    >>> [weight_variant(n) for n in ("a.safetensors", "a.fp16-00001-of-00002.safetensors")]
    [None, 'fp16']
    """
    parts = _SHARD.sub(".safetensors", file_name).split(".")
    if "index" in parts:  # a.safetensors.index.fp16.json
        return parts[3] if len(parts) == 5 else None
    return parts[1] if len(parts) == 3 else None


def fingerprint(path: Path) -> str:
    """Identity of a model folder or file: names, sizes and change times of everything that a load reads.

    Contents are not read, so it costs milliseconds. An edited, added, removed or replaced file changes it.
    """
    digest = hashlib.sha256()
    for file in _model_files(path):
        status = file.stat()
        name = file.relative_to(path).as_posix() if file != path else file.name
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _model_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for pattern in ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"):
        yield from sorted(path.glob(pattern))

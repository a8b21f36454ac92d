"""Checks of model folders and files that read no weights: what is there, whether it is whole, and whether it is safe.

A folder passes when every component of its `model_index.json` is there with its configuration, every weight file that
an index names exists, and every .safetensors file is as long as its own header says. Pickles are refused: loading one
runs whatever code it holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelFileError, first_line
from ...safetensors_header import DOWNLOAD_AGAIN, file_size, read_header
from ..modular.index import MODULAR_INDEX, as_model_index, component_folder, other_folders
from .components import CONFIG_FILES, components, find_class, has_weights, proofs
from .plausible import check_config
from .small_files import MAX_INDEX, read_json

INDEX = "model_index.json"
COMMIT_NOTE = ".hub_commit"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
CONVERT = "use a copy in .safetensors format: a diffusers folder or a single file"

_WEIGHTS = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call a component's weights; files of other names beside them are not read."""
_CLASS = re.compile(r"[A-Z]\w{0,199}", re.ASCII)
"""What the name of a class looks like."""
_FILE = re.compile(r"[^\\/:\x00-\x1f]{1,200}\.safetensors")
"""The name of a weight file in an index: it lies beside the index, on any system."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


def read_index(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a diffusers folder; of a modular one its `modular_model_index.json`, in the same form.

    Where a folder has both, the classical one counts, unless diffusers does not have the class that it names.

    Raises:
        ModelFileError: it is missing, unreadable, or names no pipeline class of diffusers.
    """
    path, modular = folder / INDEX, folder / MODULAR_INDEX
    if not path.is_file() and not modular.is_file():
        cure = "choose the folder that holds it; a component's own folder is not a pipeline"
        raise ModelFileError("model", str(folder), f"there is no {INDEX} or {MODULAR_INDEX} in it", cure)
    index = read_json(path) if path.is_file() else {}
    if modular.is_file() and (not index or find_class("diffusers", str(index.get("_class_name"))) is None):
        return as_model_index(folder, read_json(modular))
    name = index.get("_class_name")
    if isinstance(name, list) and name:
        reason = f"its {INDEX} asks for code of its own ({str(name[0])[:80]}), and code in model folders is never run"
        raise ModelFileError("model", str(folder), reason, "use a model whose pipeline is part of diffusers")
    if not isinstance(name, str) or not _CLASS.fullmatch(name):
        raise ModelFileError("model", str(folder), f"its {INDEX} names no pipeline class", DOWNLOAD_AGAIN)
    for part, entry in index.items():
        absent = isinstance(entry, list) and len(entry) == 2 and entry[0] is None
        if not part.startswith("_") and isinstance(entry, list) and len(entry) == 2 and not absent:
            _check_component(folder, part, entry)
    return index


def _check_component(folder: Path, name: str, entry: list[Any]) -> None:
    """Refuse a component whose name would lead out of the folder, or whose library and class are no names."""
    if all(isinstance(value, int | float) for value in entry):  # a setting, not a component
        return
    library, class_name = entry
    plain = name.isidentifier() and isinstance(library, str) and isinstance(class_name, str)
    if not plain or not library or not _CLASS.fullmatch(class_name):
        reason = f"its {INDEX} lists the component {name[:80]!r} in no form that diffusers writes"
        raise ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)


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


@dataclass(frozen=True)
class CheckedFolder:
    """A diffusers folder that has passed `check_folder`.

    Attributes:
        index: its `model_index.json`.
        variant: the variant of the weight files that a load reads, as `variant` tells it.
        headers: component with weights -> tensor name -> {"dtype", "shape", "data_offsets"}, over all of its files.
    """

    index: dict[str, Any]
    variant: str | None
    headers: dict[str, dict[str, Any]]


def check_folder(folder: Path) -> CheckedFolder:
    """Check a diffusers folder without reading weights. The header of every weight file is read, once.

    Raises:
        ModelFileError: it is no pipeline, a component is missing, half-downloaded, corrupt, or a pickle.
    """
    try:
        index = read_index(folder)
        checked = CheckedFolder(index, variant(folder, index), {})
        for name, (library, class_name) in components(index).items():
            part = component_folder(folder, index, name)
            if not part.is_dir():
                reason = f"its {INDEX} lists the component {name!r}, but that folder is missing"
                raise ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)
            if not any((part / proof).is_file() for proof in proofs(library, class_name)):
                raise ModelFileError("model", str(part), "its configuration file is missing", DOWNLOAD_AGAIN)
            if has_weights(library, class_name):
                checked.headers[name] = _check_weights(part, checked.variant)
            _check_configurations(part, len(checked.headers.get(name, ())))
    except OSError as error:  # no permission, a link in a circle, a disk that is gone
        raise ModelFileError("model", str(folder), f"it cannot be read ({first_line(error)})", "check it") from error
    return checked


def _check_configurations(folder: Path, tensors: int) -> None:
    for file in folder.iterdir():
        if not file.is_dir() and file.exists():
            file_size(file)  # diffusers reads whatever bears a name that it knows
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            check_config(folder / name, tensors)


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The weight files of a component that a load reads; other variants and strange files beside them are left alone.

    Args:
        variant: that of the whole model, as `variant` tells it; a component without it loads its plain files.

    Raises:
        ModelFileError: an index names files that are not there.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(".")]
    indices = [path for path in sorted(folder.glob("*.safetensors.index*.json")) if not path.name.startswith(".")]
    marks = {weight_variant(path.name) for path in (*files, *indices)}
    mark = variant if variant in marks or None not in marks else None
    chosen = [path for path in files if weight_variant(path.name) == mark]
    single = [path for path in chosen if path.name.split(".")[0] in _WEIGHTS]
    shards: set[str] = set()
    for index in indices:
        if weight_variant(index.name) == mark:
            shards |= _shards(index)
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        reason = f"{len(missing)} of {len(shards)} weight files are missing, the first is {missing[0]}"
        raise ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)
    return [folder / shard for shard in sorted(shards)] + single or chosen


def _check_weights(folder: Path, variant: str | None) -> dict[str, Any]:
    """Check the weight files of a component, and return what their headers say of each tensor."""
    files = weight_files(folder, variant)
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            refuse_pickle(folder / pickles[0])
        raise ModelFileError("model", str(folder), "it holds no .safetensors file", DOWNLOAD_AGAIN)
    part = next((path for path in files if _SHARD.search(path.name)), None)
    if part is not None and not any(folder.glob("*.safetensors.index*.json")):
        reason = "it is one part of several, but the index file that joins them is missing"
        raise ModelFileError("model", str(part), reason, DOWNLOAD_AGAIN)
    entries: dict[str, Any] = {}
    for file in files:
        entries |= read_header(file)
    return entries


def _shards(path: Path) -> set[str]:
    """The files that an index names, all of them beside it."""
    weight_map = read_json(path, MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError("model", str(path), "it lists no weights", DOWNLOAD_AGAIN)
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _FILE.fullmatch(shard):
            raise ModelFileError("model", str(path), f"{str(shard)[:80]!r} in it is no file name", DOWNLOAD_AGAIN)
    return set(weight_map.values())


def refuse_pickle(path: Path) -> None:
    """Raise the ModelFileError that says why a pickle is not loaded."""
    raise ModelFileError("model", str(path), "it is a pickle, and loading one can run any code it holds", CONVERT)


def variant(folder: Path, index: dict[str, Any]) -> str | None:
    """The file-name variant ("fp16") to load, where some component has no plain weight file; None otherwise."""
    for name, (library, class_name) in components(index).items():
        if not has_weights(library, class_name):
            continue
        files = component_folder(folder, index, name).glob("*.safetensors")
        marks = {weight_variant(path.name) for path in files if not path.name.startswith(".")}
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

    Raises:
        ModelFileError: a file cannot be looked at.
    """
    digest = hashlib.sha256()
    try:
        for file in _model_files(path):
            status = file.stat()
            inside = file != path and file.is_relative_to(path)
            name = file.relative_to(path).as_posix() if inside else file.name if file == path else file.as_posix()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:  # a link that leads nowhere, or a file that was removed meanwhile
        raise ModelFileError("model", str(path), f"it cannot be read ({first_line(error)})", DOWNLOAD_AGAIN) from error
    return digest.hexdigest()[:16]


def stamp(path: Path) -> str:
    """What tells whether the files of a loaded model are those that were loaded; "" where nobody can look at them.

    Weights on the CPU are mapped from their files: where a file was cut off since, reading them ends the process, even
    when it has its length and its date back. The time of the last change of a file's state shows that; a copy of the
    model has other ones, and so it is no part of the identity.
    """
    try:
        return " ".join(f"{status.st_size}:{status.st_ctime_ns}" for status in map(Path.stat, _model_files(path)))
    except OSError:
        return ""


def _model_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    found = [path.glob(pattern) for pattern in ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")]
    found += [folder.glob(f"*{end}") for folder in outside(path) for end in (".json", ".safetensors", ".txt", ".model")]
    for files in found:
        yield from (file for file in sorted(files) if not file.name.startswith(".") and file.exists())


def outside(folder: Path) -> list[Path]:
    """The folders of components that a modular folder names and that are not in it; none where it cannot be read."""
    try:
        return other_folders(folder, read_index(folder)) if (folder / MODULAR_INDEX).is_file() else []
    except ModelFileError:
        return []

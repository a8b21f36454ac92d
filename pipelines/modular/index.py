"""`modular_model_index.json` in the form of a `model_index.json`, and where each component that it lists is.

An entry has three elements: library, class, and what to load it by (repository or folder, subfolder, revision,
variant). A component may be in another folder or another repository. Nothing is imported but diffusers and
transformers, so no code that a model brings is ever run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from ...optimizations.components import is_modular_class
from ...safetensors_header import DOWNLOAD_AGAIN
from .blocks import LEAST, TEXT, default_blocks, needed_components, text_components

MODULAR_INDEX = "modular_model_index.json"
PLACES = "_places"
"""Entry of the returned index: component -> `Place`."""
BLOCKS = "_blocks_class_name"
_CUSTOM = ("block.py", "modular_config.json")
"""Files beside an index that bring blocks of their own."""
_NAME = re.compile(r"[A-Za-z_]\w{0,199}", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NOT_RUN = "code in model folders is never run"
_MAY_BE_ABSENT = ("text_encoder_3", "tokenizer_3")
"""Of Stable Diffusion 3, which runs without its largest text encoder."""
_PARTS = ("scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json", "config.json")


@dataclass(frozen=True)
class Place:
    """Where a component is loaded from. Attributes: folder or repository; folder in it, "" for itself; revision."""

    source: str
    subfolder: str = ""
    revision: str | None = None


def is_modular(index: Mapping[str, Any]) -> bool:
    """Whether an index was made by `as_model_index`."""
    return PLACES in index


def as_model_index(folder: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `modular_model_index.json` in the form of a `model_index.json`.

    Args:
        folder: where it is.
        entries: its content.

    Returns:
        [library, class] by component, without those that it gives no place for; its settings; and the `PLACES`.

    Raises:
        ModelFileError: an entry of another form, blocks that are not part of diffusers, or a place that nothing here
            reads.
    """
    _refuse_own_blocks(folder, entries)
    index: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for name, entry in entries.items():
        if name.startswith("_") or not isinstance(entry, list):
            index[name] = entry
        elif len(entry) == 3 and isinstance(entry[2], dict):
            place = _place(folder, name, entry[2])
            if place is not None:
                index[name], places[name] = _class_of(folder, name, entry), place
        elif len(entry) == 3 and entry[2] is None:
            continue
        elif not entry or isinstance(entry[0], int | float):  # a setting
            index[name] = tuple(entry)
        else:
            raise _broken(folder, f"its {MODULAR_INDEX} lists {name[:80]!r} in no form that diffusers writes")
    index[PLACES] = places
    _check_needed(folder, index)
    return index


def component_folder(folder: Path, index: Mapping[str, Any], name: str) -> Path:
    """Where the files of a component are: a subfolder of its own name, but in a modular folder where its entry says.

    As in diffusers, files in the folder itself go before the repository that an entry names.

    Raises:
        ModelFileError: they are in a repository that is not on this machine.
    """
    place: Place | None = index.get(PLACES, {}).get(name)
    if place is None:
        return folder / name
    if place.subfolder and (folder / place.subfolder).is_dir():
        return folder / place.subfolder
    if not _REPOSITORY.fullmatch(place.source) or Path(place.source).is_dir():
        elsewhere = Path(place.source, place.subfolder)
        if Path(place.source) == folder or not elsewhere.is_dir():
            reason = f"its {MODULAR_INDEX} lists the component {name!r}, but {place.subfolder or elsewhere} is missing"
            raise ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)
        return elsewhere
    held = cached(place)
    if held is None:
        where = f"{place.source}/{place.subfolder}".rstrip("/")
        reason = f"its {name} is in another repository, {where}, which is not on this machine"
        raise ModelFileError("model", str(folder), reason, f"run `hf download {place.source}`")
    return held


def other_folders(folder: Path, index: Mapping[str, Any]) -> list[Path]:
    """The folders outside `folder` that components are loaded from, those on this machine."""
    found = []
    for name in index.get(PLACES, {}):
        try:
            place = component_folder(folder, index, name)
        except ModelFileError:
            continue
        if not place.is_relative_to(folder):
            found.append(place)
    return found


def folders(folder: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """The folder of each component of a modular index; {} for a classical one."""
    return {name: component_folder(folder, index, name) for name in index.get(PLACES, {})}


def place_in(index: Mapping[str, Any], name: str) -> str:
    """The subfolder of a component in the model's own folder or repository, were it there."""
    place: Place | None = index.get(PLACES, {}).get(name)
    return name if place is None else place.subfolder


def refuse_own_code(source: str, names: Iterable[str]) -> None:
    """Raise ModelFileError where files of these names, beside a modular index, bring blocks of a model's own."""
    brought = sorted(set(_CUSTOM) & set(names))
    if brought:
        reason = f"it brings blocks of its own ({brought[0]}), and {_NOT_RUN}"
        raise ModelFileError("model", source, reason, "use a model whose blocks are part of diffusers")


def _refuse_own_blocks(folder: Path, entries: Mapping[str, Any]) -> None:
    refuse_own_code(str(folder), [name for name in _CUSTOM if (folder / name).is_file()])
    import diffusers

    name, blocks = entries.get("_class_name"), entries.get(BLOCKS)
    for value in (name, blocks) if blocks is not None else (name,):
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise _broken(folder, f"its {MODULAR_INDEX} names no pipeline class")
        if not isinstance(getattr(diffusers, value, None), type):
            reason = f"diffusers {diffusers.__version__} has no {value}, and {_NOT_RUN}"
            raise ModelFileError("model", str(folder), reason, "update diffusers, or use a model that it knows")
    if not is_modular_class(getattr(diffusers, str(name))):
        raise _broken(folder, f"its {MODULAR_INDEX} names {name}, which is no modular pipeline")
    if getattr(diffusers, str(name)).default_blocks_name is None:
        reason = f"its {MODULAR_INDEX} names {name}, which has no blocks of its own"
        raise ModelFileError("model", str(folder), reason, "use a model whose blocks are part of diffusers")


def _check_needed(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise ModelFileError where components that every call needs have no place."""
    import diffusers

    blocks = default_blocks(getattr(diffusers, index["_class_name"]), index.get(BLOCKS))
    missing = [
        name for name in needed_components(blocks, LEAST) if name not in index[PLACES] and name not in _MAY_BE_ABSENT
    ]
    if missing and not any(name.startswith(TEXT) for name in index[PLACES]):
        # Encoded texts may take the place of them.
        missing = [name for name in missing if name not in text_components(blocks)]
    if missing:
        reason = f"its {MODULAR_INDEX} gives no place for {', '.join(missing)}, which {index['_class_name']} needs"
        raise ModelFileError("model", str(folder), reason, "use a model that has them, or name their repositories")


def _class_of(folder: Path, name: str, entry: list[Any]) -> list[str]:
    """(library, class): of what is loaded, else of what was saved."""
    hint = entry[2].get("type_hint")
    library, class_name = hint if isinstance(hint, list) and len(hint) == 2 and all(hint) else entry[:2]
    plain = isinstance(library, str) and isinstance(class_name, str) and name.isidentifier()
    if not plain or not _NAME.fullmatch(class_name):
        raise _broken(folder, f"its {MODULAR_INDEX} names no class for its {name[:80]}")
    return [library, class_name]


def _place(folder: Path, name: str, spec: Mapping[str, Any]) -> Place | None:
    source = spec.get("pretrained_model_name_or_path") or spec.get("repo")
    if source is None:
        return None
    subfolder, revision = spec.get("subfolder"), spec.get("revision")
    subfolder = "" if subfolder is None else subfolder
    for value in (source, subfolder, "" if revision is None else revision):
        if not isinstance(value, str) or len(value) > 4096 or "\0" in value:
            raise _broken(folder, f"its {MODULAR_INDEX} says in no form that diffusers writes where its {name[:80]} is")
    if re.match(r"[\\/]{2}|\w+://", source):
        reason = f"its {name[:80]} is to come from {source[:80]}, over the network, outside the Hub"
        raise ModelFileError("model", str(folder), reason, "download it, and name its folder")
    if os.path.isabs(subfolder) or ".." in Path(subfolder).parts:
        raise _broken(folder, f"its {name[:80]} is to be at {subfolder[:80]!r}, outside of where it says")
    if source.endswith((".safetensors", ".gguf", ".bin", ".ckpt", ".pt", ".pth")):
        reason = f"its {name[:80]} is a single file ({os.path.basename(source)[:80]}), and components here are folders"
        raise ModelFileError("model", str(folder), reason, "use a copy whose components are in diffusers format")
    return Place(source, subfolder, revision)


def cached(place: Place) -> Path | None:
    """A component's folder in the Hub's cache, None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    for name in _PARTS:
        file = f"{place.subfolder}/{name}" if place.subfolder else name
        found = try_to_load_from_cache(place.source, file, revision=place.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _broken(folder: Path, reason: str) -> ModelFileError:
    return ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)

"""Where the files of a model are: found from what the user typed, and checked without reading weights."""

from __future__ import annotations

import os
from pathlib import Path

from ...callbacks import Callbacks
from ...errors import InputError, ModelFileError
from ...optimizations.quantization import schemes
from ...safetensors_header import SUFFIX
from .. import tiny
from ..modular.index import folders
from ..types import LoadKey
from . import checkpoints, hub, single_file
from .components import components
from .parts import AUDIO_INPUT, ENCODER_INPUT, MODEL_INPUT, NONE, input_of, locate_parts
from .small_files import plain_path

TINY = "tiny:"
TAKEN = "choose a diffusers folder, a .safetensors file or a Hub id (owner/name)"


def is_local(source: str) -> bool:
    """Whether resolving `source` needs no network: an embedded tiny pipeline, or a path."""
    return source.startswith(TINY) or os.path.lexists(_as_path(source)) or not hub.is_hub_id(source)


def locate(
    source: str, revision: str, quantization: str, library: Path | None, callbacks: Callbacks
) -> tuple[str, str, str]:
    """Find a model, download a Hub id, and check the files.

    Returns:
        (source as a key holds it, Hub commit or "", identity of the files).

    Raises:
        ModelFileError, InputError, MissingDependencyError: as `loader.resolve`.
    """
    if source.startswith(TINY):
        family = source.removeprefix(TINY)
        if family not in tiny.PIPELINE_CLASSES:
            cure = f"choose one of: {', '.join(TINY + name for name in tiny.PIPELINE_CLASSES)}"
            raise InputError("model", source, "there is no embedded tiny pipeline of that name", cure)
        _check_no_revision(revision)
        return source, "", tiny.identity(family)
    path = _as_path(source)
    if path.exists():
        _check_no_revision(revision)
        path = _absolute(path)
        _check_path(path, quantization)
        return str(path), "", checkpoints.fingerprint(path)
    if path.is_symlink():
        raise ModelFileError("model", source, f"it is a link to {os.readlink(path)}, which is not there", TAKEN)
    if not hub.is_hub_id(source):
        raise ModelFileError("model", source, "there is no such folder or file", f"check the path, or {TAKEN}")
    commit, folder = hub.fetch(source, revision, callbacks, library)
    _check_path(folder, quantization)
    if library and folder.is_relative_to(library):  # from now on a local model like any other
        return str(folder.resolve()), "", checkpoints.fingerprint(folder)
    return source, commit, checkpoints.fingerprint(folder)


def _check_no_revision(revision: str) -> None:
    if revision:
        raise InputError("revision", revision, "this model is not from the Hub, and has no revisions", "leave it empty")


def _as_path(source: str) -> Path:
    return plain_path("model", source, ModelFileError)


def _absolute(path: Path) -> Path:
    """The path of a folder or file without links, but for a file that is one itself: its name says what it holds.

    In the Hub's cache `model.safetensors` is a link to a file that is named after its contents alone.
    """
    return path.parent.resolve() / path.name if path.suffix == SUFFIX and path.is_file() else path.resolve()


def _check_path(path: Path, quantization: str) -> None:
    if path.is_dir():
        index = checkpoints.check_folder(path).index
        schemes.check_checkpoint(path, components(index), quantization, folders(path, index))
    elif path.suffix in checkpoints.PICKLES:
        checkpoints.refuse_pickle(path)
    elif path.suffix != SUFFIX:
        reason = f"{path.suffix or 'a file without a suffix'} is no format of diffusers pipelines"
        raise ModelFileError("model", str(path), reason, TAKEN)
    else:
        single_file.pipeline_class_of(path)


def folder_of(key: LoadKey) -> Path | None:
    """Where a key's files are: the folder or the single file; None for an embedded tiny pipeline."""
    if key.source.startswith(TINY):
        return None
    if not key.revision:
        return Path(key.source)
    return hub.fetch_cached(key.source, key.revision)


def check(key: LoadKey) -> None:
    """Repeat the checks of `locate` on a key, in milliseconds: the files may have changed since.

    Raises:
        ModelFileError: as `locate`.
    """
    path = folder_of(key)
    if path is None:
        return
    if key.parts:
        given: dict[str, list[str]] = {}
        for slot, file in key.parts:
            files = given.setdefault(input_of(slot), [])
            # What the file of the diffusion model holds is found there again.
            if file not in files and (file != key.parts[0][1] or input_of(slot) != ENCODER_INPUT):
                files.append(file)
        texts = [] if any(slot.startswith(ENCODER_INPUT) for slot, _ in key.parts) else [NONE]
        diffusion_model, *second = given[MODEL_INPUT]
        vae, audio = (given.get(name, [NONE])[0] for name in ("vae", AUDIO_INPUT))
        texts = [*given.get(ENCODER_INPUT, ()), *texts]
        locate_parts(diffusion_model, texts, vae, second[0] if second else "", audio)
        return
    if not path.exists():
        raise ModelFileError("model", key.source, "it is not there any more", "choose another model")
    _check_path(path, key.quantization)


def files_stamp(key: LoadKey) -> str:
    """What changes when a file of a key is written to or replaced; "" where there are none to look at."""
    if key.parts:
        return " ".join(checkpoints.stamp(Path(file)) for _, file in key.parts)
    try:
        path = folder_of(key)
    except ModelFileError:
        return ""
    return "" if path is None else checkpoints.stamp(path)

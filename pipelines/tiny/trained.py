"""The embedded pipelines whose weights were trained: folders beside this module, in the form that diffusers saves.

Networks and schedulers are built from their configurations and filled strictly, so that nothing stays random unseen.
Tokenizers are built from their vocabularies, which every release of transformers can do; their own files it cannot
all read.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from .tokenizers import clip_tokenizer, t5_tokenizer

FOLDER = Path(__file__).with_name("trained")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
BEFORE_NAMES = "text_model."
"""What releases of transformers write before the names of CLIP's text model, or leave out."""
CURE = "install the pack again, with the files of pipelines/tiny/trained"


def trained_folder(name: str) -> Path | None:
    """Return the folder with the trained weights of a tiny family; None where there are none. Reads nothing."""
    folder = FOLDER / name
    return folder if (folder / "model_index.json").is_file() else None


@lru_cache(maxsize=8)
def digest(name: str) -> str:
    """Return what the files of a trained family hold, as 12 hexadecimal digits."""
    found, folder = hashlib.sha256(), FOLDER / name
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        found.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]


def load(name: str) -> Any:
    """Build a trained pipeline on the CPU in float32.

    Raises:
        ModelFileError: a file is missing, or its tensors do not fit.
    """
    import diffusers

    folder = FOLDER / name
    index = _json(folder / "model_index.json")
    parts = {part: _part(folder / part, *kind) for part, kind in index.items() if isinstance(kind, list) and all(kind)}
    return getattr(diffusers, index["_class_name"])(**parts)


def _part(folder: Path, library: str, kind: str) -> Any:
    if "Tokenizer" in kind:
        return _tokenizer(folder, kind)
    import diffusers
    import transformers

    if library == "transformers":
        built = _text_encoder(getattr(transformers, kind), folder)
    elif "Scheduler" in kind:
        return getattr(diffusers, kind).from_config(_json(folder / "scheduler_config.json"))
    else:
        built = getattr(diffusers, kind).from_config(_json(folder / "config.json"))
    _fill(built, folder)
    return built


def _text_encoder(kind: Any, folder: Path) -> Any:
    config = _json(folder / "config.json")
    settings = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    return kind(kind.config_class.from_dict(settings))


def _tokenizer(folder: Path, kind: str) -> Any:
    model, longest = (
        _json(folder / "tokenizer.json")["model"],
        _json(folder / "tokenizer_config.json")["model_max_length"],
    )
    if kind.startswith("CLIP"):
        return clip_tokenizer(model["vocab"], [_pair(merge) for merge in model["merges"]], longest)
    if kind.startswith("T5"):
        return t5_tokenizer([(piece, score) for piece, score in model["vocab"]], longest)
    raise ModelFileError("model", str(folder), f"no {kind} is built here", CURE)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Both parts of a merge, which older files hold as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _fill(built: Any, folder: Path) -> None:
    """Put a folder's weights into a network: every tensor must be there, and none may be left over."""
    from safetensors.torch import load_file

    file = next((folder / each for each in WEIGHTS if (folder / each).is_file()), None)
    if file is None:
        raise ModelFileError("model", str(folder), "its weights are missing", CURE)
    expected, tensors = built.state_dict(), load_file(file)
    if not expected.keys() & tensors.keys():
        tensors = {_other_name(key): value for key, value in tensors.items()}
    # Encoders hold their embedding under two names, of which a file has one.
    shared = _shared_names(built)
    tensors |= {key: tensors[other] for key, other in shared.items() if key not in tensors and other in tensors}
    different = sorted(expected.keys() ^ tensors.keys())
    different += sorted(key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape)
    if different:
        reason = f"{len(different)} of its tensors do not fit: {', '.join(different[:4])}"
        raise ModelFileError("model", str(file), reason, CURE)
    built.load_state_dict(tensors, strict=True)


def _other_name(key: str) -> str:
    return key.removeprefix(BEFORE_NAMES) if key.startswith(BEFORE_NAMES) else BEFORE_NAMES + key


def _shared_names(built: Any) -> dict[str, str]:
    """Name in the state dict -> the other name of the same tensor."""
    names: dict[int, list[str]] = {}
    for key, tensor in built.state_dict().items():
        names.setdefault(tensor.data_ptr(), []).append(key)
    return {key: other for same in names.values() for key in same for other in same if other != key}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else "it cannot be read"
        raise ModelFileError("model", str(file), reason, CURE) from error

"""The bytes of an adapter file: checked before anything of it is believed, and read within limits.

The embedded tiny LoRAs are no files; their names stand for paths everywhere.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelFileError, first_line
from ...safetensors_header import DOWNLOAD_AGAIN, is_named_safetensors, read_header
from ..loading import checkpoints
from ..tiny import TINY_LORAS, lora_tensors

if TYPE_CHECKING:
    import torch

METADATA_KEY = "lora_adapter_metadata"
"""Where PEFT and diffusers keep the adapter's configuration in a file's header."""
MAX_RANK = 4096

_DAMAGED = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
_NARROW = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")


def stamp(path: str) -> tuple[int, int]:
    """Size and change time: tells whether a file is still the one that was read.

    Raises:
        ModelFileError: it is not there, or no file.
    """
    if path in TINY_LORAS:
        return 0, 0
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelFileError("lora", path, f"it cannot be read ({reason})", "choose another file") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError("lora", path, "it is no file", "choose a .safetensors file")
    return status.st_size, status.st_mtime_ns


def check(path: str) -> dict[str, tuple[int, ...]]:
    """Check an adapter file without reading its weights.

    Returns:
        Key -> shape of every tensor.

    Raises:
        ModelFileError: missing, not a .safetensors file, damaged, or larger in some respect than any adapter.
    """
    if path in TINY_LORAS:
        return {key: tuple(tensor.shape) for key, tensor in lora_tensors(path).items()}
    stamp(path)
    if not is_named_safetensors(Path(path)):
        pickle = Path(path).suffix in checkpoints.PICKLES
        reason = "it is a pickle, and loading one can run any code it holds" if pickle else "it is no .safetensors file"
        raise ModelFileError("lora", path, reason, "use a copy in .safetensors format")
    entries = read_header(Path(path), "lora")
    reason = _oversize(entries)
    if reason:
        raise ModelFileError("lora", path, reason, "choose another file")
    return {key: tuple(entry["shape"]) for key, entry in entries.items()}


def _oversize(entries: dict[str, Any]) -> str:
    """What about the tensors is more than any adapter has, or nothing that a weight can be; "" when all is well."""
    if not entries:
        return "it holds no tensors"
    for key, entry in entries.items():
        shape = entry["shape"]
        down, up = key.endswith(("lora_A.weight", "down.weight")), key.endswith(("lora_B.weight", "up.weight"))
        rank = shape[0] if down and shape else shape[1] if up and len(shape) > 1 else 0
        if rank > MAX_RANK:
            return f"{key} has rank {rank}, more than the {MAX_RANK} that there is room for"
        if (down or up) and entry["dtype"] in _INTEGERS:
            return f"{key} holds whole numbers ({entry['dtype']}), and nothing says what they stand for"
    return ""


def read(path: str, keys: Iterable[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Some tensors of a file, and the adapter configuration in its header ({} when there is none).

    8-bit floats come as 32-bit ones: nothing can be computed with them.

    Args:
        path: the file.
        keys: the tensors to read: the rest may be a whole model.

    Raises:
        ModelFileError: it cannot be read.
    """
    if path in TINY_LORAS:
        return lora_tensors(path), {}
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # A copy: what is mapped would change, or end the process, with its file.
            tensors = {key: file.get_tensor(key).clone() for key in keys}
            header = (file.metadata() or {}).get(METADATA_KEY)
    except (OSError, SafetensorError, *_DAMAGED) as error:
        reason = f"it cannot be read ({first_line(error)})"
        raise ModelFileError("lora", path, reason, DOWNLOAD_AGAIN) from error
    narrow = [getattr(torch, name) for name in _NARROW if hasattr(torch, name)]
    tensors = {key: tensor.float() if tensor.dtype in narrow else tensor for key, tensor in tensors.items()}
    broken = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        reason = f"{len(broken)} of its {len(tensors)} tensors hold NaN or infinity: {broken[0]}"
        raise ModelFileError("lora", path, reason, DOWNLOAD_AGAIN)
    try:
        metadata = json.loads(header) if header else {}
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ModelFileError("lora", path, f"the {METADATA_KEY} in its header is damaged", DOWNLOAD_AGAIN)
    return tensors, metadata

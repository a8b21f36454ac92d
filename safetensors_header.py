"""The header of a .safetensors file, read within limits before anything of the file is believed.

Whoever reads one reads it here: models, adapters and VAEs have the same limits. Size, nesting and number of entries are
bounded before anything is parsed, so that no file makes a check take long or need more memory than a few hundred MiB.
Pipes and devices are refused: reading one can wait for ever.
"""

from __future__ import annotations

import json
import math
import stat
import struct
from pathlib import Path
from typing import Any, TypeGuard

from .errors import ModelFileError

SUFFIX = ".safetensors"
METADATA = "__metadata__"
DOWNLOAD_AGAIN = "download it again"
MAX_HEADER = 64 * 2**20
"""Bytes of a header; the format allows 100 MB, the largest real ones are below 10."""
MAX_ENTRIES = 100_000
"""Tensors in one file; the largest models that diffusers reads have some ten thousand."""
_MAX_PARTS = 12 * MAX_ENTRIES
"""Commas and opening brackets in a JSON text: they bound how many Python objects come of it."""
_MAX_SIZES = 64
"""Dimensions of a tensor: what torch has room for."""
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_BITS |= {"U16": 16, "U32": 32, "U64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}


def is_named_safetensors(path: Path) -> bool:
    """Whether a file says by its name that it is one, or the file that it links to does.

    The Hub's cache holds files under the hash of their contents, and links of their real names to them.
    """
    return path.suffix == SUFFIX or (path.is_symlink() and path.resolve().suffix == SUFFIX)


def read_header(path: Path, name: str = "model") -> dict[str, Any]:
    """The header of a .safetensors file: tensor name -> {"dtype", "shape", "data_offsets"}.

    Args:
        name: of the input, for the error.

    Raises:
        ModelFileError: the file cannot be read, is no safetensors file, or is shorter or longer than its header says.
    """
    return {key: entry for key, entry in _header(path, name).items() if key != METADATA}


def read_metadata(path: Path, name: str = "model") -> dict[str, str]:
    """What a .safetensors file says of itself beside its tensors. Raises ModelFileError as `read_header`."""
    return _header(path, name).get(METADATA, {})


def _header(path: Path, name: str) -> dict[str, Any]:
    """The whole header, its metadata too, once it is known to fit the file."""
    size = file_size(path, name)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= size - 8:
                raise ModelFileError(name, str(path), _damage(size), DOWNLOAD_AGAIN)
            if length > MAX_HEADER:
                reason = f"its header has {length} bytes, and no model's has more than {MAX_HEADER}"
                raise ModelFileError(name, str(path), reason, DOWNLOAD_AGAIN)
            header = parse_json(file.read(length))
    except OSError as error:
        raise ModelFileError(name, str(path), f"it cannot be read ({why(error)})", DOWNLOAD_AGAIN) from error
    except TooManyPartsError as error:
        raise ModelFileError(name, str(path), f"its header is no model's: {error}", DOWNLOAD_AGAIN) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(name, str(path), _damage(size), DOWNLOAD_AGAIN) from error
    reason = _fault(header, size - 8 - length) if isinstance(header, dict) else _damage(size)
    if reason:
        raise ModelFileError(name, str(path), reason, DOWNLOAD_AGAIN)
    return header


def read_shapes(path: Path, name: str = "model") -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape. Raises ModelFileError as `read_header`."""
    return {key: tuple(entry["shape"]) for key, entry in read_header(path, name).items()}


def file_size(path: Path, name: str = "model") -> int:
    """Bytes of an ordinary file, or of what a link leads to.

    Raises:
        ModelFileError: it is not there, or it is a folder, a pipe or a device.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError) and not path.is_symlink()
        reason = "there is no such file" if missing else f"it cannot be read ({why(error)})"
        raise ModelFileError(name, str(path), reason, "check the path") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ModelFileError(name, str(path), f"it is {kind}, not a file", "choose a file")
    return status.st_size


class TooManyPartsError(ValueError):
    """A JSON text of more objects than any model's."""


def parse_json(content: bytes) -> Any:
    """What a JSON text says. Raises TooManyPartsError, or ValueError or RecursionError where it says nothing."""
    parts = sum(content.count(sign) for sign in (b",", b"[", b"{"))
    if parts > _MAX_PARTS:
        raise TooManyPartsError(f"it has {parts} entries, and {_MAX_PARTS} are the most that are read")
    return json.loads(content.decode("utf-8"))


def why(error: Exception) -> str:
    """What a library says of a file that cannot be read."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _damage(size: int) -> str:
    return "it is empty" if size == 0 else "it is not a safetensors file, or its beginning is damaged"


def _fault(header: dict[str, Any], room: int) -> str:
    """What is wrong with a header in a file that has `room` bytes after it; "" when nothing is."""
    tensors = {key: entry for key, entry in header.items() if key != METADATA}
    if len(tensors) > MAX_ENTRIES:
        return f"it has {len(tensors)} tensors, and no model's file has more than {MAX_ENTRIES}"
    wrong = next((key for key, entry in tensors.items() if not _is_entry(entry)), None)
    if wrong is not None or not _is_metadata(header.get(METADATA, {})):
        what = "its metadata is" if wrong is None else f"the entry of {wrong[:80]!r} is"
        return f"its header is damaged: {what} not of the form that the safetensors format asks for"
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if end != room:
        return f"it holds {room} bytes of tensors, but its header describes {end}: a broken or unfinished download"
    return ""


def _is_entry(entry: Any) -> bool:
    """Whether a header's entry is {"dtype": str, "shape": sizes, "data_offsets": [begin, end]}, and they agree."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        return False
    if len(shape) > _MAX_SIZES or math.prod(max(1, size) for size in shape) >= 2**63:
        return False
    bits = _BITS.get(entry["dtype"])
    return bits is None or math.prod(shape) * bits == (offsets[1] - offsets[0]) * 8


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _is_metadata(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())

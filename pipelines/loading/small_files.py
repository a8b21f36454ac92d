"""Reading the small files of a model, which may hold anything: JSON and the headers of .safetensors files.

Size, nesting and number of entries are bounded before anything is parsed, so that no file makes a check take long or
need more memory than a few hundred MiB. Pipes and devices are refused: reading one can wait for ever.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import struct
from pathlib import Path
from typing import Any, TypeGuard

from ...errors import InputError, ModelFileError

DOWNLOAD_AGAIN = "download the model again"
MAX_JSON = 16 * 2**20
"""Bytes of a configuration; real ones are a few KiB."""
MAX_INDEX = 64 * 2**20
"""Bytes of an index that says which file holds which tensor."""
MAX_HEADER = 64 * 2**20
"""Bytes of a .safetensors header; the format allows 100 MB, the largest real ones are below 10."""
MAX_ENTRIES = 250_000
"""Tensors in one file; the largest models that diffusers reads have some ten thousand."""
_MAX_PARTS = 12 * MAX_ENTRIES
"""Commas and opening brackets in a JSON text: they bound how many Python objects come of it."""
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_BITS |= {"U16": 16, "U32": 32, "U64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}


def plain_path(name: str, text: str, kind: type[InputError] = InputError) -> Path:
    """The path that a person typed, `~` at its beginning replaced.

    Args:
        name: of the input, for the error.
        kind: type of the error.

    Raises:
        InputError: no file can have that path: it is too long, or holds a NUL or half a surrogate pair.
    """
    try:
        path = os.path.expanduser(text)  # pathlib's own raises for `~nobody`
        os.lstat(path)
    except FileNotFoundError:
        pass
    except UnicodeError:
        raise kind(name, text, "it holds characters that no path can have", "check the path") from None
    except (OSError, ValueError) as error:  # too long, a NUL, a file where a folder should be, no permission
        if isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise kind(name, text, f"no file can have that path ({_why(error)})", "check the path") from None
    return Path(path)


def file_size(path: Path, name: str = "model") -> int:
    """Bytes of an ordinary file, or of what a link leads to.

    Raises:
        ModelFileError: it is not there, or it is a folder, a pipe or a device.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ModelFileError(name, str(path), f"it cannot be read ({_why(error)})", DOWNLOAD_AGAIN) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise ModelFileError(name, str(path), f"it is {kind}, not a file", DOWNLOAD_AGAIN)
    return status.st_size


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes.

    Raises:
        ModelFileError: the file is unreadable, cut off, too long, nested too deeply, or holds something else.
    """
    size = file_size(path)
    if size > limit:
        reason = f"it has {size} bytes, and no such file of a model has more than {limit}"
        raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        data = _parse(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError("model", str(path), f"it cannot be read ({_why(error)})", DOWNLOAD_AGAIN) from error
    if not isinstance(data, dict):
        raise ModelFileError("model", str(path), "it holds no JSON object", DOWNLOAD_AGAIN)
    return data


def read_header(path: Path) -> dict[str, Any]:
    """The header of a .safetensors file: tensor name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        ModelFileError: the file cannot be read, is no safetensors file, or is shorter or longer than its header says.
    """
    size = file_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= size - 8:
                raise ModelFileError("model", str(path), _damage(size), DOWNLOAD_AGAIN)
            if length > MAX_HEADER:
                reason = f"its header has {length} bytes, and no model's has more than {MAX_HEADER}"
                raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN)
            header = _parse(file.read(length))
    except OSError as error:
        raise ModelFileError("model", str(path), f"it cannot be read ({_why(error)})", DOWNLOAD_AGAIN) from error
    except _TooManyPartsError as error:
        raise ModelFileError("model", str(path), f"its header is no model's: {error}", DOWNLOAD_AGAIN) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError("model", str(path), _damage(size), DOWNLOAD_AGAIN) from error
    if not isinstance(header, dict):
        raise ModelFileError("model", str(path), _damage(size), DOWNLOAD_AGAIN)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    wrong = next((name for name, entry in tensors.items() if not _is_entry(entry)), None)
    if wrong is not None or not _is_metadata(header.get("__metadata__", {})):
        what = "its metadata is" if wrong is None else f"the entry of {wrong[:80]!r} is"
        reason = f"its header is damaged: {what} not of the form that the safetensors format asks for"
        raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN)
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != 8 + length + end:
        reason = f"it has {size} bytes, but its header describes {8 + length + end}: a broken or unfinished download"
        raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN)
    return tensors


class _TooManyPartsError(ValueError):
    """A JSON text of more objects than any model's."""


def _parse(content: bytes) -> Any:
    parts = sum(content.count(sign) for sign in (b",", b"[", b"{"))
    if parts > _MAX_PARTS:
        raise _TooManyPartsError(f"it has {parts} entries, and {_MAX_PARTS} are the most that are read")
    return json.loads(content.decode("utf-8"))


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _damage(size: int) -> str:
    return "it is empty" if size == 0 else "it is not a safetensors file, or its beginning is damaged"


def _is_entry(entry: Any) -> bool:
    """Whether a header's entry is {"dtype": str, "shape": sizes, "data_offsets": [begin, end]}, and they agree."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        return False
    bits = _BITS.get(entry["dtype"])
    return len(shape) <= 64 and (bits is None or math.prod(shape) * bits == (offsets[1] - offsets[0]) * 8)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _is_metadata(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())

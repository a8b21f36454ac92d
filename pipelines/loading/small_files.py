"""What a model's files are called, and the JSON files among them, which may hold anything: read within limits."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import InputError, ModelFileError
from ...safetensors_header import DOWNLOAD_AGAIN, file_size, parse_json, why

MAX_JSON = 16 * 2**20
"""Bytes of a configuration; real ones are a few KiB."""
MAX_INDEX = 64 * 2**20
"""Bytes of an index that says which file holds which tensor."""


def plain_path(name: str, text: str, kind: type[InputError] = InputError) -> Path:
    """The path that a person typed, `~` at its beginning replaced.

    Args:
        name: of the input, for the error.
        kind: type of the error.

    Raises:
        InputError: no file can have that path: it is empty, too long, or holds a NUL or half a surrogate pair.
    """
    if not text:  # pathlib's own reading is the working folder; an unset variable of a shell looks like this
        raise kind(name, text, "it is empty", "name a file or a folder")
    try:
        path = os.path.expanduser(text)  # pathlib's own raises for `~nobody`
        os.lstat(path)
    except FileNotFoundError:
        pass
    except UnicodeError:
        raise kind(name, text, "it holds characters that no path can have", "check the path") from None
    except (OSError, ValueError) as error:  # too long, a NUL, a file where a folder should be, no permission
        if isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise kind(name, text, f"no file can have that path ({why(error)})", "check the path") from None
    return Path(path)


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
        data = parse_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError("model", str(path), f"it cannot be read ({why(error)})", DOWNLOAD_AGAIN) from error
    if not isinstance(data, dict):
        raise ModelFileError("model", str(path), "it holds no JSON object", DOWNLOAD_AGAIN)
    return data


def identity_of(files: Iterable[Path]) -> str:
    """What tells whether files are the same ones still: their names, sizes and times of change, as 16 digits."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]

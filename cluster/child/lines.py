"""What ComfyUI's process and the driver's say to each other: a JSON object a line, of plain values alone.

To the driver: {"do": "make", "run", "folder", "count", "model"}, {"do": "cancel", "run"}; the end of its input ends it.
From it: {"event": "ready" | "gone" | "accepted" | "joined" | "tick" | "made" | "lost" | "noted" | "over", ...}.
"""

from __future__ import annotations

import base64
import json
import threading
from typing import IO, TYPE_CHECKING, Any

from ... import errors
from ...callbacks import Progress
from ...errors import FastDiffusersError
from ..connection import ClusterError

if TYPE_CHECKING:
    import torch

Line = dict[str, Any]
KEEP_THEIR_TYPE = ("InputError", "ModelFileError", "MissingDependencyError")


class Speaker:
    """Writes lines, from any thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, **line: Any) -> None:
        """Raises OSError where nobody listens any more."""
        with self._lock:
            self._stream.write(json.dumps(line).encode() + b"\n")
            self._stream.flush()

    def close(self) -> None:
        """Say nothing more. Raises OSError where nobody listens any more."""
        self._stream.close()


def progress_line(progress: Progress, with_preview: bool) -> Line:
    """A tick as plain values."""
    line = {"stage": progress.stage, "done": progress.done, "total": progress.total, "message": progress.message}
    if with_preview and progress.preview_latent is not None:
        pixels = progress.preview_latent.half().contiguous().cpu()
        line["preview"] = base64.b64encode(pixels.numpy().tobytes()).decode()
        line["shape"], line["format"] = list(pixels.shape), progress.preview_format
    return line


def preview_of(line: Line) -> torch.Tensor | None:
    """The preview of a tick, [C, H, W] or [C, 1, H, W], None where it has none."""
    if "preview" not in line:
        return None
    import torch

    content = bytearray(base64.b64decode(line["preview"]))
    return torch.frombuffer(content, dtype=torch.float16).reshape(line["shape"])


def error_line(error: BaseException) -> Line:
    """An error as plain values: this pack's about an input with its parts, any other as its text."""
    if isinstance(error, FastDiffusersError):
        name = type(error).__name__
        if name in KEEP_THEIR_TYPE:
            arguments = [value if isinstance(value, int | float) else str(value) for value in error._arguments()]
            return {"error": name, "arguments": arguments}
        return {"error": "", "arguments": [str(error)]}
    return {"error": "", "arguments": [f"{type(error).__name__}: {errors.first_line(error)}"]}


def error_of(line: Line) -> FastDiffusersError:
    """The error of an `error_line`."""
    if line["error"] in KEEP_THEIR_TYPE:
        error: FastDiffusersError = getattr(errors, line["error"])(*line["arguments"])
        return error
    return ClusterError(*line["arguments"])

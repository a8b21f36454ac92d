"""Video files: their frames as a player shows them, or their shape alone."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, first_line

if TYPE_CHECKING:
    import torch

VIDEOS = (
    *(".mp4", ".mkv", ".webm", ".mov", ".avi"),
    *(".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv"),
)
"""Suffixes of the files that are read as videos."""
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, EOFError),
    *(struct.error, zlib.error),
)
"""The built-in ones of what `unreadable` gives."""
_BYTES = 5
"""Of memory that a value of a frame takes while a video is read: as it is decoded, and as a float."""


def unreadable() -> tuple[type[Exception], ...]:
    """What Pillow and PyAV raise for a file that is no picture and no video, is broken, or is too large for them."""
    import av
    from PIL import Image

    return (*UNREADABLE, Image.DecompressionBombError, av.FFmpegError)


def read_video(path: Path, name: str) -> tuple[torch.Tensor, float | None]:
    """Read all frames of a video file, upright as a player shows them.

    Args:
        name: of the input, for errors.

    Returns:
        Frames [T, H, W, 3] in 0..1, and the frame rate in frames per second, None where the file does not say.

    Raises:
        InputError: it is no video, has frames of several sizes, or takes more memory than there is.
    """
    import av
    import torch

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(name, str(path), "it has no picture track", "use a video file")
            stream = container.streams.video[0]
            rate = stream.average_rate
            cure = f"cut it or scale it down: ffmpeg -i {path.name} -t 5 -vf scale=-2:480 short.mp4"
            check_memory(name, path, (_count(stream), stream.height, stream.width), cure)
            arrays = [_upright(frame) for frame in container.decode(video=0)]
    except InputError:
        raise
    except unreadable() as error:
        reason = f"it cannot be read as a video ({first_line(error)})"
        raise InputError(name, str(path), reason, "use an mp4") from None
    if not arrays:
        raise InputError(name, str(path), "it holds no frames", "use an mp4 with at least one frame")
    if len(sizes := list(dict.fromkeys(f"{array.shape[1]}x{array.shape[0]}" for array in arrays))) > 1:
        reason = f"its frames have several sizes: {', '.join(sizes)}"
        raise InputError(name, str(path), reason, "save it anew in one size")
    frames = torch.empty(len(arrays), *arrays[0].shape)
    for target, array in zip(frames, arrays, strict=True):
        target.copy_(torch.from_numpy(array))
    return frames.div_(255), float(rate) if rate else None


def shape_of_video(path: Path) -> tuple[tuple[int, int, int] | None, float | None]:
    """((frames, height, width), frames per second), of which one frame is decoded; (None, None) for what `read_video`
    will complain of."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return None, None
            stream = container.streams.video[0]
            rate = float(stream.average_rate) if stream.average_rate else None
            first = next(container.decode(video=0), None)
        with av.open(str(path)) as container:
            count = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
    except unreadable():
        return None, None
    return (None if first is None else (count, *_upright(first).shape[:2])), rate


def has_sound(path: Path) -> bool:
    """Whether a file is a video with a sound track."""
    import av

    if not path.is_file() or path.suffix.lower() not in VIDEOS:
        return False
    try:
        with av.open(str(path)) as container:
            return bool(container.streams.audio)
    except unreadable():
        return False


def read_sound(path: Path, name: str) -> tuple[torch.Tensor, int] | None:
    """The sound of a video file at its own rate, float [channels, samples], and samples per second; None without one.

    Args:
        name: of the input, for errors.

    Raises:
        InputError: the track cannot be read.
    """
    import av
    import torch

    if not has_sound(path):
        return None
    try:
        with av.open(str(path)) as container:
            track = container.streams.audio[0]
            plain = av.AudioResampler(format="fltp", layout=track.layout, rate=track.rate)  # the numbers alone change
            blocks = [block for heard in container.decode(track) for block in plain.resample(heard)]
            blocks += plain.resample(None)
            waveform = [torch.from_numpy(block.to_ndarray()) for block in blocks]
            return (torch.cat(waveform, dim=1), int(track.rate)) if waveform else None
    except unreadable() as error:
        reason = f"its sound cannot be read ({first_line(error)})"
        raise InputError(name, str(path), reason, "use an mp4, or one without sound") from None


def check_memory(name: str, path: Path, shape: tuple[int, int, int], cure: str) -> None:
    """Raise InputError for a clip that takes more memory than is free.

    Args:
        shape: frames, height, width.
    """
    import torch

    from ...memory import GIB, device_memory

    frames, height, width = shape
    needed, free = frames * height * width * 3 * _BYTES, device_memory(torch.device("cpu")).free
    if needed > free:
        reason = f"its {frames} frames of {width}x{height} take {needed / GIB:.1f} GiB, and {free / GIB:.1f} are free"
        raise InputError(name, str(path), reason, cure)


def _count(stream: Any) -> int:
    """How many frames a video has by its header, 0 where that does not say."""
    if stream.frames or not (stream.duration and stream.time_base and stream.average_rate):
        return int(stream.frames)
    return int(stream.duration * stream.time_base * stream.average_rate)


def _upright(frame: Any) -> Any:
    """A frame as an array [H, W, 3] of bytes, turned as its file says: telephones keep pictures as the sensor lies."""
    import numpy

    array = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # to the left
    return numpy.ascontiguousarray(numpy.rot90(array, turns)) if turns else array

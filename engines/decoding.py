"""From the bytes of an answer to frames. They come from another machine, so they are read within limits."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

from ..report import logger
from .answers import EngineError

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 1 << 27
"""Of a picture: 11585 x 11585."""
MOST_CLIP_PIXELS = 1 << 30
"""Of all frames of a clip: 517 of 1920 x 1080."""
MOST_SOUND_SECONDS = 3600


_BROKEN: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, EOFError),
    *(struct.error, zlib.error),
)
"""What Pillow, PyAV and numpy raise for a file that is none, or is cut off or damaged."""


def picture(data: object, where: str) -> Image:
    """A picture from the base64 text of an answer, complete, as RGB or RGBA.

    Args:
        where: the server, for the error.

    Raises:
        EngineError: it is no picture, is cut off, or is too large.
    """
    from PIL import Image

    if not isinstance(data, str):
        raise EngineError(f"{where}: the answer has no b64_json, so there is no picture in it")
    try:
        content = base64.b64decode(data, validate=True)
        with Image.open(io.BytesIO(content), formats=FORMATS) as head:
            width, height = head.size
            if width * height > MOST_PIXELS:
                raise EngineError(f"{where}: the picture is {width}x{height}, more than is read")
            if head.format == "PNG":
                head.verify()  # to its end, whatever Pillow is told of files that are cut off
        with Image.open(io.BytesIO(content), formats=FORMATS) as whole:
            has_alpha = whole.mode in ("RGBA", "LA", "PA") or "transparency" in whole.info
            return whole.convert("RGBA" if has_alpha else "RGB")
    except binascii.Error:
        raise EngineError(f"{where}: the picture cannot be read: what came is no base64 text. Run it again.") from None
    except Image.DecompressionBombError:
        raise EngineError(f"{where}: the picture has more than {MOST_PIXELS} pixels, more than is read") from None
    except _BROKEN as error:
        logger.debug("%s: %s", where, error)
        what = f"the {len(content)} bytes that came are no whole PNG, JPEG or WebP file"
        raise EngineError(f"{where}: the picture cannot be read: {what}. Run it again.") from None


def clip(data: bytes, where: str) -> tuple[numpy.ndarray[Any, Any], float | None, tuple[Any, int] | None]:
    """A clip from the bytes of a video file.

    Returns:
        Frames [T, H, W, 3] as uint8; frames per second, None where the file does not say; and its sound, where it has
        one, as (float32 array [channels, samples], samples per second).

    Raises:
        EngineError: it is no video, is cut off, or is too large.
    """
    import av
    import numpy

    unreadable: tuple[type[Exception], ...] = (av.FFmpegError, *_BROKEN)
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            if not container.streams.video:
                raise EngineError(f"{where}: the video has no pictures")
            stream = container.streams.video[0]
            frames: list[Any] = []
            pixels = 0
            for frame in container.decode(video=0):
                pixels += frame.width * frame.height
                if pixels > MOST_CLIP_PIXELS:
                    raise EngineError(f"{where}: the clip has more pixels than are read ({frame.width}x{frame.height})")
                frames.append(frame.to_ndarray(format="rgb24"))
            rate = float(stream.average_rate) if stream.average_rate else None
            if len({frame.shape for frame in frames}) != 1 or len(frames) < (stream.frames or 1):
                raise EngineError(f"{where}: the video is not whole. Run it again.")
        return numpy.stack(frames), rate, _sound(data)
    except unreadable as error:
        logger.debug("%s: %s", where, error)
        what = f"the {len(data)} bytes that came are no whole mp4 file"
        raise EngineError(f"{where}: the video cannot be read: {what}. Run it again.") from None


def _sound(data: bytes) -> tuple[Any, int] | None:
    import av
    import numpy

    with av.open(io.BytesIO(data), format="mp4") as container:
        if not container.streams.audio:
            return None
        rate = container.streams.audio[0].rate
        layout = container.streams.audio[0].layout.name
        planes = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        blocks: list[Any] = []
        samples = 0
        for frame in container.decode(audio=0):
            blocks += [block.to_ndarray() for block in planes.resample(frame)]
            samples += frame.samples
            if samples > rate * MOST_SOUND_SECONDS:
                break
    return (numpy.concatenate(blocks, axis=1), rate) if blocks else None

"""A clip's file: its frames with their rate, its shape alone, and what of it is not read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, first_line
from ..media import left_out, pictures_of, read_frames
from ..videos import VIDEOS, has_sound, shape_of_video, unreadable

if TYPE_CHECKING:
    import torch


def read_clip(path: Path, name: str) -> tuple[torch.Tensor, float | None]:
    """As `read_frames`, with every picture of an animated one.

    Returns:
        Frames [T, H, W, 3] in 0..1, and the frame rate in frames per second (None for pictures, and for an animation
        whose pictures are not shown equally long).

    Raises:
        InputError: nothing there, nothing readable in it, or pictures of different sizes.
    """
    import numpy
    import torch
    from PIL import Image, ImageSequence

    if _pictures_in(path) < 2:
        return read_frames(path, name)
    frames: list[torch.Tensor] = []
    durations: set[float] = set()
    try:
        with Image.open(path) as animation:
            for picture in ImageSequence.Iterator(animation):
                frames.append(torch.from_numpy(numpy.asarray(picture.convert("RGB")).astype(numpy.float32) / 255))
                durations.add(picture.info.get("duration", 0))
    except unreadable() as error:
        reason = f"its picture {len(frames) + 1} cannot be read ({first_line(error)})"
        raise InputError(name, str(path), reason, "save it anew") from None
    milliseconds = float(durations.pop()) if len(durations) == 1 else 0.0
    return torch.stack(frames), 1000 / milliseconds if milliseconds > 0 else None


def clip_shape(path: Path, name: str) -> tuple[torch.Tensor, float | None]:
    """As `read_clip`, but the frames take no memory: only their shape holds. One frame of a video is decoded."""
    import torch
    from PIL import Image

    shape: tuple[int, int, int] | None = None
    rate: float | None = None
    if path.is_file() and path.suffix.lower() in VIDEOS:
        shape, rate = shape_of_video(path)
    elif path.is_dir():
        files = pictures_of(path)
        try:
            sizes: set[tuple[int, int]] = set()
            for file in files:
                with Image.open(file) as picture:
                    turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                    sizes.add(picture.size[::-1] if turned else picture.size)
        except unreadable():  # reading says what is wrong with it
            sizes = set()
        if len(sizes) == 1:
            width, height = sizes.pop()
            shape = len(files), height, width
    if shape is None:
        return read_clip(path, name)
    return torch.zeros(1, 1, 1, 1).expand(*shape, 3), rate


def clip_left_out(path: Path, heard: bool = False) -> list[str]:
    """What `read_clip` does not read of a file or of a folder's files, one sentence each.

    Args:
        heard: whether its sound is read beside the frames.
    """
    several = _pictures_in(path)
    notes = [note for note in left_out(path) if several < 2 or f"the first of its {several} pictures" not in note]
    return [*notes, *([f"{path.name}: its sound is left out."] if not heard and has_sound(path) else [])]


def _pictures_in(path: Path) -> int:
    """Pictures in one file of pictures, 0 for anything else."""
    from PIL import Image

    if not path.is_file() or path.suffix.lower() in VIDEOS:
        return 0
    try:
        with Image.open(path) as picture:
            return int(getattr(picture, "n_frames", 1))
    except unreadable():
        return 0

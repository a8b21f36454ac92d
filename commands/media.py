"""Frames to files and back: png pictures, mp4 video, folders of png.

Frames are float tensors [T, H, W, 3] in 0..1 on the CPU; T = 1 is a picture.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, first_line
from .files import check_file_target, check_named, check_writable, filling_folder, numbered, replacing
from .keeping import Form
from .videos import UNREADABLE, VIDEOS, check_memory, read_video, unreadable

if TYPE_CHECKING:
    import torch

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_PARTS = re.compile(r"(\d+)")
FRAMES = "frame_*"
"""Files of a folder of frames."""
SOUND_BITS_PER_SECOND = 256_000
"""Of the AAC track: as close to lossless as the picture beside it."""


def check_output(path: Path, video: bool) -> None:
    """Check the form of `--output` and that it can be written, before anything runs.

    A path without a suffix is a folder of png files; with one, it is `.png` for pictures and `.mp4` for video.

    Raises:
        InputError: wrong suffix for what comes out, nothing can be written there, or the folder holds frames already.
    """
    check_named("output", path, (".png", ".mp4", ".safetensors"))
    if path.suffix == "" or path.is_dir():
        if path.is_file():
            raise InputError("output", str(path), "it is a file, not a folder", "add .png or .mp4 to the name")
        check_writable("output", path)
        if path.is_dir() and (there := min(path.glob(FRAMES), default=None)) is not None:
            reason = f"the folder holds {there.name} already, and nothing that is there is deleted"
            raise InputError("output", str(path), reason, "choose another folder, or empty it")
    else:
        check_file_target("output", path, (".mp4",) if video else (".png",))


def frame_forms(frames: torch.Tensor, path: Path, frame_rate: float | None, audio: dict[str, Any] | None) -> list[Form]:
    """How frames can be written: as `path` asks for (see `write_frames`), and smaller."""
    suffix = "" if path.is_dir() else path.suffix

    def write(target: Path) -> list[Path]:
        return write_frames(frames, target, frame_rate, audio)

    def write_smaller(target: Path) -> list[Path]:
        return write_frames(frames, target, frame_rate, audio, smaller=True)

    if suffix.lower() == ".png":
        return [Form(suffix, write), Form(".jpg", write_smaller, "as jpg")]
    loss = "as jpg" if suffix == "" else "compressed more"
    return [Form(suffix, write), Form(suffix, write_smaller, loss)]


def write_frames(
    frames: torch.Tensor,
    path: Path,
    frame_rate: float | None,
    audio: dict[str, Any] | None = None,
    smaller: bool = False,
) -> list[Path]:
    """Write a batch [B, T, H, W, C] in the form that `path` asks for (see `check_output`).

    Args:
        frames: float, 0..1; C = 3, or 4 with alpha, which png keeps and video and jpg have no place for.
        path: `.png`, `.mp4` or a folder.
        frame_rate: frames per second; used for video.
        audio: {"waveform": float [B, channels, samples], "sample_rate": int} for video with sound.
        smaller: pictures as jpg (`path` ends in .jpg then), video at visibly lower quality.

    Returns:
        The files (for a folder: the folder) that were written.
    """
    if path.suffix == "" or path.is_dir():
        write_picture_folder(frames.flatten(0, 1), path, ".jpg" if smaller else ".png")
        return [path]
    if path.suffix.lower() in PICTURES:
        frames = frames.flatten(0, 1).unsqueeze(1)
    targets = numbered(path, frames.shape[0])
    for index, target in enumerate(targets):
        if path.suffix.lower() in PICTURES:
            write_picture(frames[index, 0], target)
        else:
            sound = None if audio is None else (audio["waveform"][index], int(audio["sample_rate"]))
            write_mp4(frames[index], target, frame_rate or 24.0, sound, crf=30 if smaller else 14)
    return targets


def to_bytes(frame: torch.Tensor) -> Any:
    """Float [..., 3] in 0..1 to a numpy uint8 array, rounded; values outside are clamped."""
    import torch

    return (frame.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def write_picture(frame: torch.Tensor, path: Path) -> None:
    """Write one picture [H, W, 3 or 4] as png, or as jpg where the name ends so."""
    with replacing(path) as temporary:
        _save_picture(frame, temporary)


def write_picture_folder(frames: torch.Tensor, folder: Path, suffix: str = ".png") -> None:
    """Write [T, H, W, 3 or 4] as frame_00000.png, frame_00001.png, ..."""
    with filling_folder(folder, FRAMES) as temporary:
        for index, frame in enumerate(frames):
            _save_picture(frame, temporary / f"frame_{index:05d}{suffix}")


def _save_picture(frame: torch.Tensor, path: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(to_bytes(frame))
    if path.suffix.lower() == ".jpg":
        picture.convert("RGB").save(path, format="JPEG", quality=90)
    else:
        picture.save(path, format="PNG")


def write_mp4(
    frames: torch.Tensor, path: Path, frame_rate: float, sound: tuple[torch.Tensor, int] | None = None, crf: int = 14
) -> None:
    """Write [T, H, W, 3] as H.264 at near-lossless quality, with AAC sound if there is any.

    Args:
        frames: float, 0..1; a fourth channel is left out. Odd widths and heights are kept: they are stored as 4:4:4.
        path: the `.mp4` file.
        frame_rate: frames per second, > 0.
        sound: (float [channels, samples] in -1..1, sample rate in Hz); what is longer than the frames is cut off.
        crf: H.264's quality, 0 (lossless) to 51.
    """
    import av

    count, height, width, _ = frames.shape
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        stream.options = {"crf": str(crf), "preset": "medium"}
        voice = None
        if sound is not None:
            layout = _sound_layout(sound[0])
            voice = container.add_stream("aac", rate=sound[1], layout=layout, bit_rate=SOUND_BITS_PER_SECOND)
        for index in range(count):
            picture = av.VideoFrame.from_ndarray(to_bytes(frames[index, ..., :3]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if voice is not None and sound is not None:
            waveform, sample_rate = sound
            _mux_sound(container, voice, waveform[:, : math.ceil(count / frame_rate * sample_rate)], sample_rate)


def _sound_layout(waveform: torch.Tensor) -> str:
    """Of more than two channels, the first two are written."""
    return "mono" if waveform.shape[0] == 1 else "stereo"


def _mux_sound(container: Any, stream: Any, waveform: torch.Tensor, sample_rate: int) -> None:
    import av

    samples = waveform[:2].float().cpu().contiguous().numpy()
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=_sound_layout(waveform))
    frame.sample_rate = sample_rate
    frame.pts = 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def read_picture(path: Path, name: str = "image", alpha: bool = False) -> torch.Tensor:
    """Read one picture, upright, as float [H, W, 3] in 0..1: grey as equal channels, the first of an animation.

    Args:
        alpha: as [H, W, 4] where some of it is transparent; else the colours are as they are below the transparency.

    Raises:
        InputError: the file is missing or is no picture.
    """
    import numpy
    import torch
    from PIL import Image, ImageOps

    if not path.is_file():
        reason = "it is a folder" if path.is_dir() else "there is no such file"
        raise InputError(name, str(path), reason, "check the path")
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow's own conversion cuts off at 255
                grey = numpy.asarray(upright)
                if grey.min() < 0 or grey.max() > 65535:
                    reason = (
                        f"its numbers go from {grey.min()} to {grey.max()}, and nothing says which of them is white"
                    )
                    raise InputError(name, str(path), reason, "save it as a png of 8 or 16 bits")
                shades = torch.from_numpy(grey.astype(numpy.float32) / 65535)
                return shades[..., None].expand(-1, -1, 3).contiguous()
            if upright.mode == "F":
                reason = "its numbers have a floating point, and nothing says which of them is white"
                raise InputError(name, str(path), reason, "save it as a png of 8 or 16 bits")
            pixels = numpy.asarray(upright.convert("RGBA" if _is_clear(upright) and alpha else "RGB"))
    except InputError:
        raise
    except Image.DecompressionBombError:
        reason = f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which may be meant to fill the memory"
        raise InputError(name, str(path), reason, "scale it down") from None
    except UNREADABLE as error:
        reason = f"it cannot be read as a picture ({first_line(error)})"
        raise InputError(name, str(path), reason, "use a png or jpg") from None
    return torch.from_numpy(pixels.astype(numpy.float32) / 255)


def _is_clear(picture: Any) -> bool:
    """Whether any pixel of a picture of Pillow's is transparent, in whatever way its file says so."""
    if "transparency" not in picture.info and picture.mode not in ("RGBA", "LA", "PA", "La", "RGBa"):
        return False
    lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
    return bool(lowest < 255)


def left_out(path: Path, alpha: bool = False) -> list[str]:
    """What `read_picture` and `read_frames` do not read of a file or of a folder's files, one sentence each.

    Args:
        alpha: whether transparency is read.
    """
    from PIL import Image

    files = pictures_of(path) if path.is_dir() else [path]
    notes = _taken_as_frames(path, files) if path.is_dir() else []
    for file in files:
        try:
            with Image.open(file) as picture:
                count = getattr(picture, "n_frames", 1)
                if count > 1:
                    notes.append(f"{file.name}: the first of its {count} pictures is used.")
                if not alpha and _is_clear(picture):
                    notes.append(f"{file.name}: its transparency is left out, and its colours are used alone.")
        except unreadable():  # a video, or what reading complains of
            continue
    return notes


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, whose numbers count as numbers: 2 is before 10."""
    found = (file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    return sorted(found, key=lambda file: [int(each) if each.isdecimal() else each for each in _PARTS.split(file.name)])


def _taken_as_frames(folder: Path, files: list[Path]) -> list[str]:
    """That pictures are frames in the order of their names, where these are not those of one row of frames."""
    rows = {_PARTS.sub("0", file.name) for file in files}
    if len(files) < 2 or (len(rows) == 1 and all(_PARTS.search(file.stem) for file in files)):
        return []
    shown = ", ".join([*(file.name for file in files[:3]), *(["..."] if len(files) > 3 else [])])
    return [f"{folder.name}: its {len(files)} pictures are taken as frames, in the order of their names ({shown})."]


def read_frames(path: Path, name: str = "frames") -> tuple[torch.Tensor, float | None]:
    """Read a video file, a folder of pictures (in the order of their names) or one picture.

    Returns:
        Frames [T, H, W, 3] in 0..1, and the frame rate in frames per second (None for pictures).

    Raises:
        InputError: nothing there, nothing readable in it, or pictures of different sizes.
    """
    import torch

    if path.is_dir():
        files = pictures_of(path)
        if not files:
            raise InputError(name, str(path), "the folder holds no pictures", "use a folder of png files")
        first = read_picture(files[0], name)
        rows, columns = first.shape[:2]
        check_memory(name, path, (len(files), rows, columns), "use fewer pictures, or smaller ones")
        frames = torch.empty(len(files), *first.shape)
        for file, frame in zip(files, frames, strict=True):
            picture = first if file is files[0] else read_picture(file, name)
            if picture.shape != first.shape:
                found, wanted = ("x".join(map(str, each.shape[1::-1])) for each in (picture, first))
                reason = f"it is {found}, but {files[0].name} is {wanted}"
                raise InputError(name, str(file), reason, "use pictures of one size")
            frame.copy_(picture)
        return frames, None
    if path.suffix.lower() in VIDEOS and path.is_file():
        return read_video(path, name)
    return read_picture(path, name)[None], None

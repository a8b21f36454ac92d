"""The options of `generate` for what a run is held to beside its prompt, and what is read of their files."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from ...pipelines.conditions.kinds import ROLES
from ...pipelines.loading.small_files import plain_path
from ..media import read_frames, read_picture
from ..options import path_argument

if TYPE_CHECKING:
    from ...pipelines.conditions.kinds import Condition, ControlNetKey, KeyframeCondition


def add_condition_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("conditions")
    group.add_argument(
        "--mask",
        type=path_argument,
        metavar="FILE",
        help="picture of what --image keeps and what is made anew: black is kept, white is made anew",
    )
    group.add_argument(
        "--control-image",
        action="append",
        default=[],
        type=path_argument,
        metavar="FILE",
        help="control picture, as the control model reads it; repeat for several",
    )
    group.add_argument(
        "--controlnet",
        action="append",
        default=[],
        metavar="FOLDER",
        help="control model for each --control-image: a diffusers folder, or tiny:FAMILY for an embedded one",
    )
    group.add_argument(
        "--control-strength", type=float, default=1.0, metavar="X", help="1 (default): as the control model was trained"
    )
    group.add_argument("--control-start", type=float, default=0.0, metavar="SHARE", help="share of the steps, 0 to 1")
    group.add_argument("--control-end", type=float, default=1.0, metavar="SHARE", help="share of the steps, 0 to 1")
    for role in ROLES:
        group.add_argument(
            "--video" if role == "video" else f"--{role}-video",
            type=path_argument,
            metavar="FILE",
            help=f"clip {_FOR[role]}: a video file, or a folder of pictures",
        )
    group.add_argument(
        "--keyframe",
        action="append",
        default=[],
        metavar="FILE[@FRAME][:STRENGTH]",
        help="picture at a frame of the video (0: the first, -1: the last), with its strength (1); repeat for several",
    )


_FOR = {
    "video": "to start from or to edit",
    "control": "for a model that reads a control clip",
    "pose": "of the pose, for Wan-Animate",
    "face": "of the face, for Wan-Animate",
    "background": "of the background, for Wan-Animate",
}
_KEYFRAME = re.compile(r"(?P<file>.+?)(?:@(?P<frame>-?\d+))?(?::(?P<strength>[0-9.]+))?", re.DOTALL)


def keyframe(text: str) -> KeyframeCondition:
    """One `--keyframe` option. Raises InputError for a picture that cannot be read, or a strength that is no number."""
    from ...pipelines.conditions.kinds import KeyframeCondition

    found = _KEYFRAME.fullmatch(text)
    if found is None:
        raise InputError("keyframe", text, "it names no file", "use FILE@FRAME:STRENGTH")
    try:
        strength = float(found["strength"] or 1.0)
    except ValueError:
        raise InputError("keyframe strength", found["strength"], "it must be a number", "use 1.0") from None
    picture = read_picture(plain_path("keyframe", found["file"]), "keyframe")
    return KeyframeCondition(picture[None], int(found["frame"] or 0), strength)


def conditions(args: argparse.Namespace) -> tuple[Condition, ...]:
    """What the options describe, their files read. Raises InputError for one that cannot be read."""
    from ...pipelines.conditions.controlnets import resolve_controlnet
    from ...pipelines.conditions.kinds import ControlCondition, MaskCondition, VideoCondition

    pictures = args.control_image
    models: list[ControlNetKey | None] = [resolve_controlnet(source) for source in args.controlnet]
    if models and len(models) != len(pictures):
        counts = f"{len(models)} for {len(pictures)} of --control-image"
        raise InputError("controlnet", counts, "each control model reads one picture", "give as many of both")
    found: list[Condition] = []
    if args.mask is not None:
        found.append(MaskCondition(read_picture(args.mask, "mask").mean(dim=-1)[None]))
    for picture, model in zip(pictures, models or [None] * len(pictures), strict=True):
        image = read_picture(picture, "control_image")[None]
        limits = args.control_strength, args.control_start, args.control_end
        found.append(ControlCondition(image, model, *limits))
    for role in ROLES:
        clip = getattr(args, "video" if role == "video" else f"{role}_video")
        if clip is not None:
            found.append(VideoCondition(read_frames(clip, f"{role}_video")[0], role))
    return (*found, *map(keyframe, args.keyframe))


def condition_files(args: argparse.Namespace) -> list[Path]:
    """The pictures among them, for what is not read of a file to be said."""
    return [*([] if args.mask is None else [args.mask]), *args.control_image]

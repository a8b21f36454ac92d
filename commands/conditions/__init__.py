"""The options of `generate` for what a run is held to beside its prompt, and what is read of their files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...pipelines.conditions.kinds import REFERENCE, ROLES
from ...pipelines.loading.small_files import plain_path
from ..media import left_out, read_picture
from ..options import path_argument
from ..videos import read_sound
from .clip_files import clip_left_out, clip_shape, read_clip
from .given import argument

if TYPE_CHECKING:
    import torch

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
        metavar="PATH",
        help="control model for each --control-image: a diffusers folder or a .safetensors file, or tiny:FAMILY for an "
        "embedded one",
    )
    group.add_argument(
        "--control-strength",
        type=float,
        metavar="X",
        help="1 (default): as the control model was trained; 0: without it",
    )
    group.add_argument("--control-start", type=float, metavar="SHARE", help="share of the steps, 0 (default) to 1")
    group.add_argument("--control-end", type=float, metavar="SHARE", help="share of the steps, 0 to 1 (default)")
    group.add_argument(
        "--control-mode",
        action="append",
        default=[],
        type=int,
        metavar="N",
        help="for a ControlNet Union: which kind of picture each --control-image is, as the model's page numbers them",
    )
    group.add_argument(
        "--image-prompt",
        action="append",
        default=[],
        type=path_argument,
        metavar="FILE",
        help="picture that says, beside the prompt, what to make; repeat for several",
    )
    group.add_argument(
        "--image-prompt-model",
        type=path_argument,
        metavar="PATH",
        help="what reads the image prompts: an IP-Adapter's .safetensors file, or a Flux Redux folder",
    )
    group.add_argument(
        "--image-prompt-encoder",
        type=path_argument,
        metavar="FOLDER",
        help="vision model of the IP-Adapter (default: image_encoder beside its file)",
    )
    group.add_argument(
        "--image-prompt-strength", type=float, metavar="X", help="1 (default): as the IP-Adapter was trained, 0 to 2"
    )
    for role in ROLES:
        several: dict[str, Any] = {"action": "append", "default": []} if role == REFERENCE else {}
        group.add_argument(
            "--video" if role == "video" else f"--{role}-video",
            type=path_argument,
            metavar="FILE",
            help=f"clip {_FOR[role]}: a video file, or a folder of pictures{_AGAIN if several else ''}",
            **several,
        )
    group.add_argument(
        "--keyframe",
        action="append",
        default=[],
        metavar="FILE[@FRAME][:STRENGTH]",
        help="picture at a frame of the video (0: the first, -1: the last), with its strength (1); repeat for several",
    )
    group.add_argument(
        "--argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the pipeline's call that no other option gives: eta=0.5, say; as JSON or text, or "
        "NAME=@FILE for a picture or a tensor in a .safetensors file; repeat for several",
    )


_FOR = {
    "video": "to start from or to edit",
    "control": "for a model that reads a control clip",
    "pose": "of the pose, for Wan-Animate",
    "face": "of the face, for Wan-Animate",
    "background": "of the background, for Wan-Animate",
    "reference": "that an LTX-2 LoRA made for one keeps to, or a reference of MiniMax-H3",
}
_AGAIN = "; of MiniMax-H3 a picture too, and repeat for several, in their order"
_KEYFRAME = re.compile(r"(?P<file>.+?)(?:@(?P<frame>-?\d+))?(?::(?P<strength>[0-9.]+))?", re.DOTALL)


_ANY_KEYFRAME = re.compile(r".+?(?:@(?P<frame>[^@:/\\]*))?(?::(?P<strength>[^@:/\\]*))?", re.DOTALL)
"""The same with anything for frame and strength, to say which of them is wrong."""
_AS = "write FILE@FRAME:STRENGTH, as in first.png@0:0.8"


def keyframe(text: str, read: Callable[..., torch.Tensor] = read_picture) -> KeyframeCondition:
    """One `--keyframe` option. Raises InputError for a picture that cannot be read, or a frame or a strength that is no
    number."""
    from ...pipelines.conditions.kinds import KeyframeCondition

    found = _KEYFRAME.fullmatch(text)
    if found is None:
        raise InputError("keyframe", text, "it names no file", _AS)
    file = plain_path("keyframe", found["file"])
    if not file.is_file():
        _check_written(text)
    try:
        held_by = float(found["strength"] or 1.0)
    except ValueError:
        raise InputError("keyframe strength", found["strength"], "it must be a number", _AS) from None
    return KeyframeCondition(read(file, "keyframe")[None], int(found["frame"] or 0), held_by)


def _check_written(text: str) -> None:
    """Raise InputError for what of a keyframe that names no file may be meant as its frame or its strength."""
    if text.startswith("@"):
        raise InputError("keyframe", text, "it names no file", _AS)
    if re.fullmatch(r".+:[0-9.]+@-?\d+", text, re.DOTALL):
        raise InputError("keyframe", text, "the strength stands before the frame", _AS)
    found = _ANY_KEYFRAME.fullmatch(text)
    frame, strength = (None, None) if found is None else (found["frame"], found["strength"])
    if frame is not None and not re.fullmatch(r"-?\d+", frame):
        raise InputError("keyframe frame", frame, "it must be a whole number", _AS)
    if strength is not None and not re.fullmatch(r"[0-9]*\.?[0-9]+", strength):
        raise InputError("keyframe strength", strength, "it must be a number above 0", _AS)


def absolute_keyframe(text: str) -> str:
    """A `--keyframe` option that holds in any working folder."""
    found = _KEYFRAME.fullmatch(text)
    if found is None:
        return text
    file = plain_path("keyframe", found["file"])
    return f"{file.absolute()}{text.removeprefix(found['file'])}"


def conditions(args: argparse.Namespace, read: Callable[..., torch.Tensor] = read_picture) -> tuple[Condition, ...]:
    """What the options describe. Raises InputError for a file that cannot be read.

    Args:
        read: what reads a picture; with any other than `read_picture`, of clips only the shape is read.
    """
    from ...pipelines.conditions.controlnets import resolve_controlnet
    from ...pipelines.conditions.kinds import ControlCondition, MaskCondition, Sound, VideoCondition

    pictures = args.control_image
    models: list[ControlNetKey | None] = [resolve_controlnet(source) for source in args.controlnet]
    if models and len(models) != len(pictures):
        counts = f"{len(models)} for {len(pictures)} of --control-image"
        raise InputError("controlnet", counts, "each control model reads one picture", "give as many of both")
    given = {name: getattr(args, f"control_{name}") for name in ("strength", "start", "end")}
    limits = {name: value for name, value in given.items() if value is not None}
    modes = args.control_mode
    if (limits or modes) and not pictures:
        name, value = next(iter(limits.items()), None) or ("mode", modes[0])
        raise InputError(f"control_{name}", value, *_without_control(args, name))
    if modes and len(modes) not in (1, len(pictures)):
        counts = f"{len(modes)} for {len(pictures)} of --control-image"
        raise InputError("control_mode", counts, "each control picture has one", "give as many of both")
    modes = (modes or [None]) * (1 if len(modes) > 1 else len(pictures))
    reads = read_clip if read is read_picture else clip_shape
    found: list[Condition] = []
    if args.mask is not None:
        found.append(MaskCondition(read(args.mask, "mask").mean(dim=-1)[None]))
    for picture, model, mode in zip(pictures, models or [None] * len(pictures), modes, strict=True):
        image = read(picture, "control_image")[None]
        found.append(ControlCondition(image, model, **limits, mode=mode))
    found += _image_prompts(args, read)
    for role, name, clip in _clips(args):
        frames, rate = reads(clip, name)
        heard = read_sound(clip, name) if role == REFERENCE else None
        found.append(VideoCondition(frames, role, rate, None if heard is None else Sound(*heard)))
    found += [keyframe(text, read) for text in args.keyframe]
    return (*found, *(argument(text, read) for text in args.argument))


def _without_control(args: argparse.Namespace, name: str) -> tuple[str, str]:
    """Why a `--control-...` option has nothing to hold for, and what to do about it."""
    if all(role == REFERENCE for role, _, _ in _clips(args)):
        reason = "there is no control picture for it to hold for"
        return reason, f"give a --control-image where the model takes one, or leave --control-{name} out"
    cure = f"leave --control-{name} out"
    if name == "strength":
        cure += "; a model whose call has a scale for its clip takes that as --argument conditioning_scale=0.5"
    return "it holds for a control picture, and a clip is none", cure


def _clips(args: argparse.Namespace) -> Iterator[tuple[str, str, Path]]:
    """(role, name of the input, file) of every clip, in the order in which they are given."""
    for role in ROLES:
        name = "video" if role == "video" else f"{role}_video"
        given = getattr(args, name)
        yield from ((role, name, clip) for clip in (given if isinstance(given, list) else [given]) if clip is not None)


def _image_prompts(args: argparse.Namespace, read: Callable[..., torch.Tensor]) -> list[Condition]:
    from ...pipelines.conditions.image_prompts.keys import resolve_image_prompt
    from ...pipelines.conditions.kinds import ImagePromptCondition

    if not args.image_prompt:
        for name in ("model", "encoder", "strength"):
            value = getattr(args, f"image_prompt_{name}")
            if value is not None:
                cure = f"give an --image-prompt, or leave --image-prompt-{name} out"
                raise InputError(f"image_prompt_{name}", value, "there is no image prompt for it", cure)
        return []
    if args.image_prompt_model is None:
        reason, cure = "nothing says what reads the image prompt", "give --image-prompt-model"
        raise InputError("image_prompt_model", "none", reason, cure)
    key = resolve_image_prompt(str(args.image_prompt_model), str(args.image_prompt_encoder or ""))
    strength = 1.0 if args.image_prompt_strength is None else args.image_prompt_strength
    return [ImagePromptCondition(read(path, "image_prompt")[None], key, strength) for path in args.image_prompt]


def conditions_left_out(args: argparse.Namespace) -> list[str]:
    """What of the files of the conditions is not read, one sentence each."""
    matched = [_KEYFRAME.fullmatch(text) for text in args.keyframe]
    keyframes = [plain_path("keyframe", found["file"]) for found in matched if found is not None]
    pictures = [*([] if args.mask is None else [args.mask]), *args.control_image, *args.image_prompt, *keyframes]
    notes = [note for path in pictures for note in left_out(path)]
    return [*notes, *(note for role, _, clip in _clips(args) for note in clip_left_out(clip, heard=role == REFERENCE))]

"""References of MiniMax-H3: pictures and clips that its result takes things from, in the order in which they are given.

They are `VideoCondition`s of the role "reference", of which one with a single frame is a picture. Several pictures in
`images` come before them; a picture alone stays the first frame. Rules and figures are those of diffusers'
`minimax_h3/before_encoder.py` (`MiniMaxH3Ref2VASetupStep`) and `minimax_h3/encoders.py`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import InputError, MissingDependencyError
from .kinds import REFERENCE, Sound, VideoCondition
from .pictures import check_image
from .rates import check_rate
from .taking import call_takes

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

Request = TypeVar("Request", bound="SampleRequest")

ARGUMENT = "references"
"""The input of the blocks that takes them."""
DENOISER, SOUND_VAE = "transformer_ref", "audio_vae"
"""The components that a run with references needs: its own denoiser, and what encodes the sound of clips."""
_MOST_PICTURES, _MOST_CLIPS = 9, 3
_MOST_ASPECT = 4
_LEAST_FRAMES = 13
"""Of a clip at the model's rate: two a second are shown to the text encoder, and it takes them in pairs."""
_GROUP, _REST = 17, 5
"""Frames of a clip that its VAE encodes: 17n + 5, the most that there are."""
_LEAST_RATE = 1.0
_CHANNELS = 2


def references_of(request: SampleRequest) -> list[VideoCondition]:
    """The conditions that are references, in their order."""
    return [each for each in request.conditions if isinstance(each, VideoCondition) and each.role == REFERENCE]


def takes_references(family: Family) -> bool:
    """Whether the family's own call takes a list of references."""
    return bool(family.classes) and ARGUMENT in call_takes(family.classes[-1])


def with_references(family: Family, request: Request) -> Request:
    """The request with the pictures of `images` as references where they are that: several, or beside others."""
    if not request.images or not takes_references(family):
        return request
    if len(request.images) < 2 and not references_of(request):
        return request
    for index, image in enumerate(request.images):
        check_image(f"images[{index}]", image)
    pictures = (
        VideoCondition(image[None], REFERENCE, given_as=f"images[{index}]")
        for index, image in enumerate(request.images)
    )
    return replace(request, images=(), conditions=(*pictures, *request.conditions))


def named_references(request: SampleRequest) -> list[tuple[str, VideoCondition]]:
    """The references with the names of their inputs: with a number where one gives several."""
    found, name = references_of(request), f"{REFERENCE}_video"
    several = sum(not each.given_as for each in found) > 1
    numbers = count()
    return [(each.given_as or (f"{name}[{next(numbers)}]" if several else name), each) for each in found]


def check_references(family: Family, request: SampleRequest) -> list[str]:
    """Notes on what becomes of the references.

    Raises:
        InputError: there are too many, or one is of a shape, a rate or a length that the model does not read.
    """
    references, notes = named_references(request), []
    clips = [name for name, each in references if len(each.frames) > 1]
    pictures = len(references) - len(clips)
    for number, most, what in ((pictures, _MOST_PICTURES, "pictures"), (len(clips), _MOST_CLIPS, "clips")):
        if number > most:
            reason = f"{family.name} takes at most {most}"
            raise InputError("references", f"{number} {what}", reason, "leave the others out")
    if request.last_image is not None:
        reason = f"beside references {family.name} keeps to no first and no last frame"
        raise InputError("last_image", "given", reason, "leave last_image (--last-image) or the references out")
    for name, each in references:
        rows, columns = (int(edge) for edge in each.frames.shape[1:3])
        if max(rows, columns) > _MOST_ASPECT * min(rows, columns):
            reason = f"{family.name} reads pictures and clips from 1:{_MOST_ASPECT} to {_MOST_ASPECT}:1"
            raise InputError(name, f"{columns}x{rows}", reason, "cut a part out")
        if name in clips:
            notes += _check_clip(family, request, name, each)
    if shown := sum(bool(each.given_as) for _, each in references):
        many = "1 reference" if shown == 1 else f"{shown} references"
        notes.append(f"images: {many}; a picture alone, beside no reference, is {family.name}'s first frame.")
    return notes


def _check_clip(family: Family, request: SampleRequest, name: str, clip: VideoCondition) -> list[str]:
    notes, given = [], len(clip.frames)
    if clip.frame_rate is None:
        notes.append(f"{name}: {family.frame_rate:g} frames per second assumed, since it has no rate.")
    else:
        check_rate(clip.frame_rate)
        if clip.frame_rate < _LEAST_RATE:
            reason = f"its frames are copied to {family.frame_rate:g} per second, and from so few that takes the memory"
            raise InputError(name, f"{clip.frame_rate:g} frames per second", reason, "use 1 per second or more")
    wanted = request.num_frames or family.num_frames
    there = _at_rate(given, scale := _scale(family, clip))
    if min(there, wanted) < _LEAST_FRAMES:
        shown = f"{given} frames" if scale == 1 else f"{given} frames at {clip.frame_rate:g} per second"
        reason = f"{family.name} reads a clip of at least {_LEAST_FRAMES} frames at {family.frame_rate:g} per second"
        raise InputError(name, shown, reason, "give a longer clip, or its pictures one by one")
    used = min(there, wanted)
    encoded = max(1, (used - _REST) // _GROUP) * _GROUP + _REST
    if (read := min(used, encoded)) < there:
        at = "" if scale == 1 else f" at {family.frame_rate:g} per second"
        notes.append(f"{name}: the first {read} of its {there} frames{at} are encoded.")
    if clip.sound is not None:
        notes += _check_sound(name, clip.sound, wanted / (family.frame_rate or 1.0))
    return notes


def _check_sound(name: str, sound: Sound, seconds: float) -> list[str]:
    waveform, notes = sound.waveform, []
    shape = list(waveform.shape)
    if len(shape) != 2 or 0 in shape:
        raise InputError(name, f"sound of shape {shape}", "sound is [channels, samples]", "leave the sound out")
    if not bool(waveform.isfinite().all()):
        raise InputError(name, "sound", "it holds NaN or infinite values", "make the sound anew, or leave it out")
    if shape[0] > _CHANNELS:
        notes.append(f"{name}: the first {_CHANNELS} of its sound's {shape[0]} channels are used.")
    if shape[1] > seconds * sound.sample_rate:
        notes.append(f"{name}: of its sound's {shape[1] / sound.sample_rate:.3g} s the first {seconds:.3g} are used.")
    return notes


def check_reference_parts(
    family: Family, request: SampleRequest, parts: Mapping[str, Mapping[str, Any]] | None
) -> None:
    """Refuse references that a model has no denoiser for, or whose sound it cannot read.

    Args:
        request: checked.
        parts: the configuration of each of `DENOISER` and `SOUND_VAE` that the model holds; None where only the load
            tells it.

    Raises:
        InputError: a component is missing.
        MissingDependencyError: sound at another rate than the model's needs torchaudio, which is not installed.
    """
    if parts is None or not takes_references(family) or not references_of(request):
        return
    if DENOISER not in parts:
        reason = f"{family.name} reads them with a denoiser of its own, {DENOISER}, which this model does not hold"
        cure = f"use a copy with {DENOISER}; the first frame is one picture in images, the last one is last_image"
        raise InputError("references", len(references_of(request)), reason, cure)
    sounds = [each.sound for each in references_of(request) if each.sound is not None]
    own = parts.get(SOUND_VAE, {}).get("sampling_rate", 0)
    others = [sound.sample_rate for sound in sounds if own and sound.sample_rate != own]
    if others and importlib.util.find_spec("torchaudio") is None:
        raise MissingDependencyError("torchaudio", f"a reference's sound of {others[0]} Hz, where the model has {own},")


def refuse_loras(family: Family, request: SampleRequest, names: str) -> None:
    """Raise InputError for LoRAs beside references: they go into the denoiser that makes no run with references.

    Args:
        names: of the LoRAs, "" for none.
    """
    if names and takes_references(family) and references_of(request):
        reason = f"with references {family.name} runs its denoiser {DENOISER}, and LoRAs go into the other one"
        raise InputError("lora", names, reason, "leave the LoRAs out, or the references")


def reference_values(family: Family, request: SampleRequest, to_picture: Any) -> list[Any]:
    """The references as diffusers' own objects, in their order.

    Args:
        to_picture: [H, W, C] and (width, height) to a picture of Pillow's in that size.
    """
    from diffusers.modular_pipelines import minimax_h3

    made: list[Any] = []
    for each in references_of(request):
        size = (int(each.frames.shape[2]), int(each.frames.shape[1]))
        if len(each.frames) == 1:
            made.append(minimax_h3.MiniMaxH3ImageReference(to_picture(each.frames[0], size)))
            continue
        # What comes after the frames of the result is not read: their copies alone could fill the memory.
        needed = math.ceil((request.num_frames or len(each.frames)) / _scale(family, each)) + 1
        frames = [to_picture(frame, size) for frame in each.frames[:needed]]
        heard: dict[str, Any] = {}
        if each.sound is not None:
            heard = {"audio": each.sound.waveform[:_CHANNELS], "sample_rate": each.sound.sample_rate}
        rate = each.frame_rate or family.frame_rate
        made.append(minimax_h3.MiniMaxH3VideoReference(frames, fps=rate, **heard))
    return made


def reference_facts(request: SampleRequest) -> str:
    """The references in words, in their order."""
    shown = []
    for each in references_of(request):
        frames, rows, columns = each.frames.shape[:3]
        rate = "" if each.frame_rate is None else f" at {each.frame_rate:g} per second"
        heard = "" if each.sound is None else " with sound"
        what = "picture" if frames == 1 else f"{frames} frames"
        shown.append(f"{what} of {columns}x{rows}{rate}{heard}")
    return "; ".join(shown)


def _scale(family: Family, clip: VideoCondition) -> float:
    """Frames of the model's rate to one of the clip."""
    own = family.frame_rate or 1.0
    return own / (clip.frame_rate or own)


def _at_rate(frames: int, scale: float) -> int:
    return math.floor(frames * scale + 0.5)

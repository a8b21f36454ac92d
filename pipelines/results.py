"""What a pipeline outside the table of families returns, as frames: every class names, orders and nests it its own way.

Pictures come as tensors, numpy arrays or PIL pictures, alone, in lists, or in lists of lists; with the channels before
or after the rows; a clip with or without a batch around it. Sound is `sound.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .classes.outputs import CLIPS, PICTURES, SOUNDS
from .sound import summary

if TYPE_CHECKING:
    import torch

    from ..report import OptimizationReport
    from .families import Family
    from .types import LoadedPipeline, SampleRequest, SampleResult

GIVEN_NOT_FINITE = (
    "the latent that was given holds NaN or infinite values: what is decoded of it is black or broken. Make it anew."
)
NOT_FINITE = "the {what} holds NaN or infinite values: it is black, silent or broken. {cure}."
_ASIDE = ("nsfw_content_detected", "nsfw_detected", "watermark_detected")
"""Verdicts of checkers, which have blackened the picture already."""


def refuse_without_picture(family: Family, sound_counts: bool = True) -> None:
    """Raise InputError for a class whose result is neither picture nor sound: embeddings for another pipeline, text.

    Args:
        sound_counts: False where sound alone is of no use either.
    """
    if family.makes:
        cure = "choose a model of pictures or video"
        if family.makes.startswith("embeddings"):
            cure = "choose the pipeline that makes pictures of them"
        raise InputError("model", family.name, f"it makes {family.makes}", cure)
    if family.sound_alone and not sound_counts:
        raise InputError("model", family.name, "it makes sound alone", "use the node Diffusers Sampler, output 'audio'")


def frames_of(outputs: Sequence[Any], report: OptimizationReport) -> torch.Tensor | None:
    """The pictures or clips in what a pipeline returned.

    Args:
        outputs: of each call, a `BaseOutput` or a tuple.
        report: told what was changed, and what else the pipeline gave that nothing here carries.

    Returns:
        float32 [B, T, H, W, C] in 0..1 on the CPU, C = 3, or 4 with alpha; linear HDR may be above 1. None when there
        is no picture in it.
    """
    clips: list[torch.Tensor] = []
    name: str | None = None
    for output in outputs:
        parts = dict(output.items()) if isinstance(output, Mapping) else _by_position(output)
        name = next((name for name in (*CLIPS, *PICTURES) if parts.get(name) is not None), None)
        _report_rest(parts, name, report)
        clips += () if name is None else _clips(parts[name], name in CLIPS)
    if not clips:
        if name is not None:
            report.note("the pipeline's result has no form of a picture.")
        return None
    frames = _one_tensor(clips, report)
    if name == "prediction" and bool((frames < 0).any()):
        report.note("the result's values are directions, from -1 to 1: the picture shows them as 0 to 1.")
        frames = frames / 2 + 0.5
    return frames


def _by_position(output: Any) -> dict[str, Any]:
    """A plain tuple's parts: the first is the result, as in every pipeline of diffusers."""
    first = output[0] if isinstance(output, tuple) and output else output
    return {"frames" if getattr(first, "ndim", 0) == 5 else "images": first}


def _report_rest(parts: dict[str, Any], name: str | None, report: OptimizationReport) -> None:
    if any(bool(each) for verdict in _ASIDE for each in _leaves(parts.get(verdict))):
        report.note("the pipeline's own checker objected to the picture, and changed it.")
    rest = [key for key, value in parts.items() if value is not None and key not in (name, *SOUNDS, *_ASIDE)]
    if rest:
        report.note(f"the pipeline also gave {', '.join(rest)}, which no output here carries.")


def _one_tensor(clips: list[torch.Tensor], report: OptimizationReport) -> torch.Tensor:
    import torch

    if len({clip.shape for clip in clips}) > 1:
        clips = _filled_up(clips)
        report.note("the results differ in size: the smaller ones are filled up with black, right and below.")
    frames = torch.stack(clips)
    if frames.shape[-1] < 3:
        frames = frames[..., :1].expand(*frames.shape[:-1], 3)
    return frames.contiguous()


def _clips(value: Any, is_clip: bool) -> Iterator[torch.Tensor]:
    """Every clip in it, [T, H, W, C]; a picture is one of a single frame."""
    import torch

    if isinstance(value, list | tuple):
        singles = [_channels_last(each, is_clip) for each in value] if is_clip else []
        if singles and all(each is not None and each.ndim == 3 for each in singles):
            yield torch.stack(singles)  # type: ignore[arg-type]
        else:
            for each in value:
                yield from _clips(each, is_clip)
        return
    pixels = _channels_last(value, is_clip)
    if pixels is None:
        return
    if is_clip:
        yield from pixels.reshape(-1, *((1, 1, *pixels.shape)[-4:]))
    else:
        yield from pixels.reshape(-1, 1, *pixels.shape[-3:])


def _channels_last(value: Any, is_clip: bool) -> torch.Tensor | None:
    """One leaf with its channels last, float32 in 0..1 on the CPU, 3 to 5 axes; None where it is no picture."""
    import numpy
    import torch
    from PIL.Image import Image

    if isinstance(value, Image):
        value = numpy.array(value if value.mode in ("RGB", "RGBA", "L") else value.convert("RGB"))
        value = value[..., None] if value.ndim == 2 else value
    from_numpy = isinstance(value, numpy.ndarray)
    if from_numpy:
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor) or not 3 <= value.ndim <= 5:
        return None
    channels = _channel_axis(value.shape, from_numpy, is_clip)
    if channels is None:
        return None
    whole = not value.is_floating_point()
    pixels = value.movedim(channels, -1).float().cpu()
    return pixels / 255 if whole else pixels


def _channel_axis(shape: torch.Size, channels_last: bool, is_clip: bool) -> int | None:
    """Which axis holds the channels: before the rows in tensors, last in numpy arrays, and before the frames at times.

    Three and four channels are looked for first: one may be an axis of length one.
    """
    before_rows, last = len(shape) - 3, len(shape) - 1
    likely = [last, before_rows] if channels_last else [before_rows, last]
    if is_clip and len(shape) > 3:
        likely.append(before_rows - 1)
    return next((axis for count in ((3, 4), (1,)) for axis in likely if shape[axis] in count), None)


def _filled_up(clips: list[torch.Tensor]) -> list[torch.Tensor]:
    """All of the size of the largest, and with alpha where one of them has it."""
    import torch

    sizes = [max(clip.shape[axis] for clip in clips) for axis in range(4)]
    filled = []
    for clip in clips:
        if clip.shape[-1] == 1:
            clip = clip.expand(*clip.shape[:-1], min(3, sizes[3]))
        if clip.shape[-1] < sizes[3]:
            clip = torch.cat((clip, torch.ones_like(clip[..., :1])), -1)
        room = clip.new_zeros(sizes)
        frames, rows, columns, _ = clip.shape
        room[:frames, :rows, :columns] = clip
        filled.append(room)
    return filled


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def not_finite(what: str, loaded: LoadedPipeline) -> str:
    """Say that a result is broken, with what can still be tried."""
    if loaded.key.dtype == "float16":
        return NOT_FINITE.format(what=what, cure="Use dtype bfloat16 or float32")
    return NOT_FINITE.format(
        what=what,
        cure=f"Precision is not the cause, since dtype is {loaded.key.dtype}: run it without LoRAs, and if that is "
        "broken too, download the model's files again",
    )


def _size(result: SampleResult, request: SampleRequest, family: Family) -> str:
    """Pixels as they came, or as asked for where nothing was decoded."""
    width, height, count = request.width, request.height, request.num_frames
    if result.frames is not None:
        frames, height, width = result.frames.shape[1:4]
        count = count or frames
    return f"{width}x{height}" + (f"x{count}" if family.video else "")


def check_and_report(result: SampleResult, loaded: LoadedPipeline, request: SampleRequest) -> None:
    """Clear a result of NaN, saying so, and put the facts of its run into its report."""
    report = result.report
    if result.frames is not None and request.width and request.height:
        rows, columns = result.frames.shape[2:4]
        if (columns, rows) != (request.width, request.height):
            asked = f"{request.width}x{request.height}"
            report.note(f"size: {columns}x{rows} instead of {asked}, as {loaded.family.name} itself makes of it.")
    if result.frames is not None and not bool(result.frames.isfinite().all()):
        report.note(not_finite("picture", loaded))
        result.frames = result.frames.nan_to_num(0.0, 1.0, 0.0)
    if result.audio is not None:
        if not bool(result.audio["waveform"].isfinite().all()):
            report.note(not_finite("sound", loaded))
            result.audio["waveform"] = result.audio["waveform"].nan_to_num(0.0, 0.0, 0.0)
        report.facts["sound"] = summary(result.audio)
    if request.flow_shift is not None:
        report.facts["flow_shift"] = request.flow_shift
    if result.step_experts:
        counts = Counter(result.step_experts)
        report.facts["steps by expert"] = ", ".join(f"{name} {count}" for name, count in counts.items())
    report.facts.update(
        {
            **loaded.facts,
            "size": _size(result, request, loaded.family),
            "steps": len(result.step_seconds),
            "guidance": request.guidance,
            **({"guidance_2": request.guidance_2} if loaded.family.second_guidance else {}),
            "scheduler": request.scheduler,
            "seeds": list(result.seeds),
            "seconds": {name: round(value, 4) for name, value in result.stage_seconds.items()},
        }
    )

"""The outputs of Diffusers Sampler: a result as ComfyUI's images, latent, video and sound."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from comfy_api.latest import InputImpl, Types, io
from comfy_execution.graph_utils import ExecutionBlocker

from . import types

if TYPE_CHECKING:
    import torch

    from ..pipelines.types import SampleResult

STILL_FRAME_RATE = 1.0
"""Frame rate that is put out with still images: one a second, so that a video made of them can be looked at."""
UNDECODED = "Diffusers Sampler: 'decode' is off, or the model has no VAE, so there are no images to pass on."
NO_PICTURE = (
    "Diffusers Sampler: no images to pass on: 'decode' is off, or this model makes sound alone (output 'audio')."
)
NO_LATENT = (
    "Diffusers Sampler: this model's pipeline, or the server that runs it, shows no latent. Use the output 'images', "
    "and disconnect 'latent'."
)
SILENT_MODEL = "Diffusers Sampler: this model makes no sound, so there is none to pass on. Disconnect 'audio'."


def outputs() -> list[Any]:
    """The outputs in the node's schema. New ones go last: saved graphs know them by their place."""
    return [
        io.Image.Output(display_name="images"),
        io.Latent.Output(display_name="latent"),
        io.Float.Output(display_name="frame_rate"),
        types.Report.Output(display_name="report"),
        io.Video.Output(display_name="video"),
        io.Audio.Output(display_name="audio"),
    ]


def values(result: SampleResult) -> tuple[Any, ...]:
    """Return one result in the order of `outputs`; a missing one is an `ExecutionBlocker` that says why."""
    rate = result.frame_rate or STILL_FRAME_RATE
    missing = UNDECODED if result.audio is None else NO_PICTURE
    images: Any = ExecutionBlocker(missing)
    video: Any = ExecutionBlocker(missing)
    if result.frames is not None:
        images = result.frames.flatten(0, 1)
        sound = None if result.audio is None else in_a_row(result.audio, result.frames.shape[1] / rate)
        # A video has no place for alpha, and ComfyUI's encoder takes three channels.
        components = Types.VideoComponents(images=images[..., :3], audio=sound, frame_rate=Fraction(rate))
        video = InputImpl.VideoFromComponents(components)
    audio = ExecutionBlocker(SILENT_MODEL) if result.audio is None else result.audio
    latent: Any = ExecutionBlocker(NO_LATENT) if result.latent is None else {"samples": result.latent}
    return images, latent, rate, result.report, video, audio


def in_a_row(sound: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Join the sounds of a batch one after the other, as its frames are.

    Args:
        sound: {"waveform": [B, channels, samples], "sample_rate": int}.
        seconds: of each video. A sound that is longer is cut, one that is shorter ends in silence.

    Returns:
        The same with one waveform, [1, channels, samples]; every sound begins at the sample nearest to its first frame.
    """
    import torch

    waveform, rate = sound["waveform"], sound["sample_rate"]
    starts = [round(index * seconds * rate) for index in range(waveform.shape[0] + 1)]
    row = torch.zeros(1, waveform.shape[1], starts[-1], dtype=waveform.dtype)
    for item, start, stop in zip(waveform, starts, starts[1:], strict=False):
        _fill(row[0, :, start:stop], item)
    return {"waveform": row, "sample_rate": rate}


def _fill(target: torch.Tensor, source: torch.Tensor) -> None:
    samples = min(target.shape[-1], source.shape[-1])
    target[..., :samples] = source[..., :samples]

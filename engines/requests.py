"""From a request of the sampler to the fields that both servers have; what they have none for is refused, by name."""

from __future__ import annotations

from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..optimizations.settings import OptimizationSettings
from ..pipelines.conditions.arguments.names import CALLED, arguments_of
from ..pipelines.families import Family
from ..pipelines.requests import SCHEDULER_DEFAULT, check_request
from ..pipelines.schedulers import known_name
from ..report import OptimizationRecord
from .settings import NO_LATENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..pipelines.types import SampleRequest
    from ..report import OptimizationReport

_UNKNOWN: dict[str, Any] = {
    "guidance": None,
    "width": 0,
    "height": 0,
    "size_multiple": 1,
    "images": "optional",
    "negative_above": -1.0,  # which guidance switches a negative prompt off is the model's to say
}
MAX_FRAMES = 100000
"""Of a clip that a server is asked for: how many its model makes is not known here."""
PICTURES = Family("the server's model", max_images=16, **_UNKNOWN)
CLIPS = Family("the server's model", max_images=1, video=True, num_frames=0, max_frames=MAX_FRAMES, **_UNKNOWN)
"""A model of which nothing is known but that it makes pictures, or clips: their ranges are checked, and no more."""
_NO_FIELD = "the servers have no field for it"
_LEAVE_OUT = "leave it out, or run the model here"
_NOT_HERE = "how the server's model runs is chosen where the server is started"


def check(request: SampleRequest, video: bool) -> list[str]:
    """Find out what cannot be asked of a server, before anything is sent.

    Returns:
        Notes: what has no meaning for pictures, or for clips.

    Raises:
        InputError: the first thing that no field can say, or that is out of range.
    """
    for name, value, reason in _refused(request, video):
        raise InputError(name, value, reason, _LEAVE_OUT)
    if (request.width is None) != (request.height is None):
        name = "width" if request.width is None else "height"
        raise InputError(name, "not given", "a server takes both, or neither", "give both")
    for name in ("steps", "width", "height"):
        value = getattr(request, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(name, value, "it must be a whole number above 0", "leave it out for the server's own")
    rate = request.frame_rate
    if video and rate is not None and rate != int(rate):
        raise InputError("frame_rate", rate, "a server takes whole frames per second", f"use {max(1, round(rate))}")
    return check_request(CLIPS if video else PICTURES, request)


def _refused(request: SampleRequest, video: bool) -> Iterator[tuple[str, object, str]]:
    given = {
        "scheduler": request.scheduler if known_name(request.scheduler) != SCHEDULER_DEFAULT else None,
        "strength": request.strength if request.strength != 1.0 else None,
        "max_sequence_length": request.max_sequence_length,
        "last_image": None if request.last_image is None else "a picture",
        "positive": None if request.positive is None else "encoded text",
        "negative": None if request.negative is None else "encoded text",
        "latent": None if request.latent is None else "a latent",
        "argument": ", ".join(arguments_of(request)) or None,
        "conditions": ", ".join(CALLED.get(type(each), type(each).__name__) for each in request.conditions) or None,
    }
    yield from ((name, value, _NO_FIELD) for name, value in given.items() if value is not None)
    if not request.decode:
        yield "decode", False, NO_LATENT
    if request.guidance_2 is not None:
        yield (
            "guidance_2",
            request.guidance_2,
            "one of the servers means the expert for much noise, the other that for little",
        )
    if request.flow_shift is not None and not video:
        yield "flow_shift", request.flow_shift, "the servers have no field for it where pictures are made"


def refuse_loras(loras: tuple[Any, ...]) -> None:
    """Raise InputError where LoRAs were chosen: a server reads its own files, and each has its own way to name them."""
    if loras:
        cure = "leave it out, and give the LoRA to the server when it is started"
        raise InputError("lora", loras[0].path, "a server reads no file of this machine", cure)


def fields(request: SampleRequest, seed: int, video: bool) -> dict[str, Any]:
    """What is said of one result, under the names that both servers read. The seed is always among them."""
    size = f"{request.width}x{request.height}" if request.width and request.height else None
    said: dict[str, Any] = {
        "prompt": request.prompt,
        "seed": seed,
        "size": size,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
    }
    if video:
        said |= {
            "num_frames": request.num_frames,
            "fps": None if request.frame_rate is None else int(request.frame_rate),
            "flow_shift": request.flow_shift,
        }
    else:
        said |= {"n": 1, "response_format": "b64_json", "output_format": "png"}
    return {name: value for name, value in said.items() if value is not None}


def unconfirmed(said: dict[str, Any]) -> str:
    """That a server does not tell what its model made of some fields; "" where none of those was sent."""
    names = [
        name for name in ("num_inference_steps", "guidance_scale", "negative_prompt", "flow_shift") if name in said
    ]
    if not names:
        return ""
    return f"sent as asked, and the server does not say whether its model heeds them: {', '.join(names)}."


def name_settings(settings: OptimizationSettings | None, report: OptimizationReport) -> None:
    """Name every optimization that was asked for and is not the server's to take."""
    plain = OptimizationSettings()
    for item in fields_of(plain):
        asked, usual = getattr(settings or plain, item.name), getattr(plain, item.name)
        if asked != usual:
            report.set(OptimizationRecord(item.name, _in_words(asked, usual), "off", _NOT_HERE, failed=True))


def _in_words(asked: Any, usual: Any) -> str:
    if not is_dataclass(asked):
        return str(asked)
    pairs = ((item.name, getattr(asked, item.name)) for item in fields_of(asked))
    return ", ".join(f"{name} {value}" for name, value in pairs if value != getattr(usual, name))

"""A run of the sampler on a server: as `pipelines.generate.generate`, with the server's model."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

from ..callbacks import SILENT, Callbacks
from ..errors import FastDiffusersError, first_line
from ..pipelines.arguments import to_pil
from ..pipelines.requests import seeds
from ..pipelines.results import frames_of
from ..pipelines.sound import summary
from ..pipelines.types import SampleResult
from ..report import OptimizationRecord, OptimizationReport
from . import images, requests, videos
from .connection import STAGE
from .decoding import clip
from .servers import Served, look
from .settings import AUTO, VIDEO

if TYPE_CHECKING:
    from ..optimizations.settings import OptimizationSettings
    from ..pipelines.types import SampleRequest
    from .settings import Engine


def makes_video(engine: Engine, request: SampleRequest, served: Served | None = None) -> bool:
    """Whether clips will come: as the user says, else as the server says of its model, else as frames are asked for."""
    if engine.makes != AUTO:
        return engine.makes == VIDEO
    if served is not None and served.video is not None:
        return served.video
    return (request.num_frames or 1) > 1


def generate(
    engine: Engine,
    request: SampleRequest,
    settings: OptimizationSettings | None = None,
    callbacks: Callbacks = SILENT,
    served: Served | None = None,
) -> SampleResult:
    """Make a batch on a server, one request for each item: item i with the seed `request.seed` + i.

    Args:
        settings: what of them was asked for is named in the report: a server's model runs as its server was started.
        served: what `look` found, where it was looked already.

    Returns:
        Frames, and the sound where a clip has one; never a latent. Where the server fails after it has made some of a
        batch, these, and what is missing.

    Raises:
        InputError: what no field of the servers can say, or nothing answers, before anything is made.
        EngineError: the server cannot make it, or its answer is of no use.
        Exception: whatever `callbacks.check_cancel` raises.
    """
    served = served or look(engine, callbacks)
    video = makes_video(engine, request, served)
    notes = requests.check(request, video)
    report = OptimizationReport()
    report.set(OptimizationRecord("engine", engine.server, served.name))
    requests.name_settings(settings, report)
    for note in notes:
        report.note(note)
    pictures = [_png(image) for image in request.images]
    all_seeds = seeds(request)
    outputs: list[dict[str, Any]] = []
    sounds: list[tuple[Any, int] | None] = []
    rates: list[float | None] = []
    seconds = {STAGE: 0.0, "decode": 0.0}
    said: dict[str, Any] = {}
    missing = ""
    for index, seed in enumerate(all_seeds):
        said = requests.fields(request, seed, video)
        if engine.model:
            said["model"] = engine.model
        one = f"{'clip' if video else 'picture'} {index + 1} of {len(all_seeds)}"

        def waiting(text: str, done: int = 0, index: int = index, one: str = one) -> None:
            callbacks.tick(STAGE, index * 100 + done, len(all_seeds) * 100, f"{one}: {text}")

        waiting("asked for")
        started = time.perf_counter()
        try:
            if video:
                data = videos.make(engine, served.server, said, pictures, callbacks, waiting)
                arrived = time.perf_counter()
                frames, rate, sound = clip(data, f"engine {engine.url}")
                outputs.append({"frames": [frames]})
                rates.append(rate)
                sounds.append(sound)
            else:
                outputs.append({"images": [images.make(engine, said, pictures, callbacks, waiting)]})
                arrived = time.perf_counter()
        except FastDiffusersError as error:
            if not outputs:
                raise
            missing = _missing("clip" if video else "picture", index, len(all_seeds), error)
            report.note(missing)
            break
        seconds[STAGE] += arrived - started
        seconds["decode"] += time.perf_counter() - arrived
        callbacks.tick(STAGE, (index + 1) * 100, len(all_seeds) * 100, one)
    result = SampleResult(
        frames=frames_of(outputs, report),
        latent=None,
        frame_rate=next(filter(None, rates), None) if video else None,
        seeds=all_seeds[: len(outputs)],
        step_seconds=[],
        stage_seconds=seconds,
        report=report,
        audio=_sound(sounds, report),
        missing=missing,
    )
    _report(result, engine, served, request, said)
    return result


def _missing(what: str, index: int, count: int, error: FastDiffusersError) -> str:
    """What of a batch did not come, and why."""
    last = index + 1 == count
    which = f"{what} {count} of {count} is" if last else f"{what}s {index + 1} to {count} of {count} are"
    return f"{which} missing: {first_line(error)}"


def _png(image: Any) -> bytes:
    target = io.BytesIO()
    to_pil(image).save(target, format="PNG")
    return target.getvalue()


def _sound(sounds: list[tuple[Any, int] | None], report: OptimizationReport) -> dict[str, Any] | None:
    """The sounds of a batch as one, the shorter ones ended in silence."""
    import torch

    found = [sound for sound in sounds if sound is not None]
    if not found:
        return None
    if len(found) != len(sounds) or len({(waves.shape[0], rate) for waves, rate in found}) > 1:
        report.note("the sound is left out: the clips have sounds of different forms.")
        return None
    waveform = torch.zeros(len(found), found[0][0].shape[0], max(waves.shape[1] for waves, _ in found))
    for row, (waves, _) in zip(waveform, found, strict=True):
        row[:, : waves.shape[1]] = torch.from_numpy(waves)
    return {"waveform": waveform, "sample_rate": found[0][1]}


def _report(result: SampleResult, engine: Engine, served: Served, request: SampleRequest, said: dict[str, Any]) -> None:
    """Put into the report what was made where, and what came otherwise than it was asked for."""
    report, frames = result.report, result.frames
    if frames is None:
        raise AssertionError("a picture or a clip was decoded")
    count, height, width = frames.shape[1:4]
    size = f"{width}x{height}" + (f"x{count}" if result.frame_rate else "")
    rate = result.frame_rate
    came = {
        "size": (said.get("size"), f"{width}x{height}"),
        "num_frames": (said.get("num_frames"), count),
        "frame_rate": (said.get("fps"), None if rate is None else int(rate) if rate == int(rate) else rate),
    }
    for name, (asked, found) in came.items():
        if asked is not None and asked != found:
            report.note(f"{name}: {found} came instead of {asked}: the server's model makes that.")
    if note := requests.unconfirmed(said):
        report.note(note)
    if result.audio is not None:
        report.facts["sound"] = summary(result.audio)
    report.facts |= {
        "model": served.model or "the server's model",
        "engine": f"{served.name} at {engine.url}",
        "size": size,
        "seeds": list(result.seeds),
    }
    asked_for = {"steps": request.steps, "guidance": request.guidance}
    report.facts |= {name: value for name, value in asked_for.items() if value is not None}
    report.timed({name: round(value, 4) for name, value in result.stage_seconds.items()})

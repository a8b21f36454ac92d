"""One denoising run: arguments by signature, steps watched, cancelled cleanly, and the result in ComfyUI's terms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..callbacks import SILENT, Callbacks
from ..errors import InputError
from ..optimizations.components import denoisers
from ..report import OptimizationReport
from . import latents
from .arguments import call_arguments, form_for
from .classes.guidance import guided
from .decoding import pipeline_vae
from .families import Family
from .requests import ready, seeds
from .schedulers import TRIAL_STEPS, scheduler_for_run
from .sound import STAGE as SOUND_STAGE
from .sound import sound_of, summary
from .steps import watched
from .text_length import cut_notes, watched_texts
from .types import LoadedPipeline, SampleRequest, SampleResult

if TYPE_CHECKING:
    import torch

NOT_FINITE = (
    "the {what} holds NaN or infinite values: it is black, silent or broken. Use dtype bfloat16 or float32, "
    "or attention sdpa."
)

Decode = Callable[["torch.Tensor"], "torch.Tensor"]
"""ComfyUI latent -> frames float32 [B, T, H, W, 3] in 0..1 on the CPU."""


def run(
    loaded: LoadedPipeline,
    request: SampleRequest,
    callbacks: Callbacks = SILENT,
    report: OptimizationReport | None = None,
    decode: Decode | None = None,
) -> SampleResult:
    """Sample once, and decode once unless `request.decode` is False. Sound is always decoded: no latent carries it.

    Args:
        loaded: a pipeline whose weights are where they shall compute (or have hooks that bring them).
        request: what to make; gaps are filled by the family's recommendations.
        callbacks: stages "text encode", "denoise" (with previews), "decode" and "decode sound". A cancel takes effect
            after the current step, and then nothing is decoded.
        report: continued with notes and facts; a new one when None.
        decode: replaces `pipeline_vae.decode`, to add fallbacks.

    Raises:
        InputError: the request does not suit the model, before any step.
        Exception: whatever `callbacks.check_cancel` or the model raises, unchanged. The pipeline is usable afterwards,
            and the next run equals that of a fresh pipeline.
    """
    report = report if report is not None else OptimizationReport()
    request = ready(loaded.family, request)
    for note in request.notes:
        report.note(note)
    callbacks.tick("text encode", 0, 1)
    stages: dict[str, float] = {}
    with _cleaned_up(loaded.pipeline):
        with watched_texts(loaded.pipeline) as texts:
            output, last, step_seconds, stages["text encode"] = _denoise(loaded, request, callbacks)
        for note in cut_notes(loaded.pipeline, texts, request):
            report.note(note)
        native = output[0]
        stages["denoise"] = sum(step_seconds)
        result = SampleResult(
            frames=None,
            latent=_comfy_latent(loaded, request, native, last, report),
            frame_rate=request.frame_rate,
            seeds=seeds(request),
            step_seconds=step_seconds,
            stage_seconds=stages,
            report=report,
        )
        if request.decode:
            callbacks.check_cancel()
            started = time.perf_counter()
            if loaded.family.known:
                decode = decode or (lambda latent: pipeline_vae.decode(loaded, latent, callbacks))
                result.frames = decode(result.latent)
            else:
                result.frames = _frames_of_pipeline(native)
            stages["decode"] = time.perf_counter() - started
        if loaded.family.sound or not loaded.family.known:
            started = time.perf_counter()
            result.audio = sound_of(loaded, output, callbacks)
            if result.audio is not None:
                stages[SOUND_STAGE] = time.perf_counter() - started
    _report(result, loaded, request)
    return result


def _denoise(
    loaded: LoadedPipeline, request: SampleRequest, callbacks: Callbacks
) -> tuple[Any, torch.Tensor | None, list[float], float]:
    """(what the pipeline returned, the latent after the last step, seconds per step, seconds before the first)."""
    family = loaded.family
    pipeline = form_for(loaded.pipeline, family, request)

    def on_step(done: int, total: int, estimate: torch.Tensor | None) -> None:
        preview = _preview(estimate, loaded, request)
        known = watch.known_seconds
        callbacks.tick(
            "denoise", done, total, preview_latent=preview, preview_format=family.comfy_format, step_seconds=known
        )

    with scheduler_for_run(pipeline, family, request.scheduler, request.steps or TRIAL_STEPS) as scheduler:
        if request.steps == 1 and scheduler.config.get("shift_terminal"):  # it stretches the distance to the last one
            raise InputError("steps", 1, "this model's scheduler divides by zero with a single step", "use 2 or more")
        arguments = call_arguments(pipeline, family, request)
        previews = family.known and callbacks.previews
        guidance = guided(pipeline, family.guidance_argument, request.guidance)
        with guidance, watched(pipeline, loaded.device, on_step, previews) as watch:
            if family.layout == "tokens":  # of image-to-video, the scheduler sees the frames after the first alone
                arguments["callback_on_step_end"] = watch.keep_latents
            output = pipeline(**arguments)
        return output, watch.latent, watch.step_seconds, watch.text_seconds


def _comfy_latent(
    loaded: LoadedPipeline, request: SampleRequest, native: Any, last: torch.Tensor | None, report: OptimizationReport
) -> torch.Tensor:
    family = loaded.family
    if family.known:
        # Flux.2 and LTX-2 pipelines return a latent that has left ComfyUI's convention; the loop's own has not.
        source = last if family.layout in latents.NORMALIZED_LAYOUTS and last is not None else native
        assert request.width is not None  # noqa: S101 - completed
        assert request.height is not None  # noqa: S101 - completed
        latent = latents.to_comfy(source, family, loaded.pipeline.vae, request.width, request.height).cpu()
        if not bool(latent.isfinite().all()):
            report.note(NOT_FINITE.format(what="latent"))
        return latent
    if last is None:
        raise InputError("model", family.name, "its pipeline runs no scheduler step", "use another pipeline")
    report.note(f"the latent is in {family.name}'s own layout: only the picture can be used.")
    return last.float().cpu()


def _frames_of_pipeline(output: torch.Tensor) -> torch.Tensor:
    """What an unknown pipeline decoded itself ("pt": [B, 3, H, W] or [B, T, 3, H, W] in 0..1) as frames."""
    clip = output if output.ndim == 5 else output.unsqueeze(1)
    return clip.permute(0, 1, 3, 4, 2).float().cpu().contiguous()


def _preview(estimate: torch.Tensor | None, loaded: LoadedPipeline, request: SampleRequest) -> torch.Tensor | None:
    """The first item of the batch in ComfyUI's convention, [C, h, w] or [C, T, h, w]."""
    if estimate is None or request.width is None or request.height is None:
        return None
    vae = loaded.pipeline.vae
    return latents.to_comfy(estimate[:1], loaded.family, vae, request.width, request.height)[0]


def _size(result: SampleResult, request: SampleRequest, family: Family) -> str:
    """Pixels as asked for, or as they came where that was left to the pipeline."""
    width, height, count = request.width, request.height, request.num_frames
    if result.frames is not None:
        frames, rows, columns = result.frames.shape[1:4]
        width, height, count = width or columns, height or rows, count or frames
    return f"{width}x{height}" + (f"x{count}" if family.video else "")


@contextmanager
def _cleaned_up(pipeline: Any) -> Iterator[None]:
    """Leave no state of this run behind, however it ends.

    A pipeline that finishes frees its own hooks; the exception that stops it skips that, and what step caches keep
    would reach into the next run. A decode after the pipeline's end brings the VAE to the device once more.
    """
    try:
        yield
    finally:
        pipeline._interrupt = False
        model: Any
        for model in denoisers(pipeline).values():
            if hasattr(model, "_reset_stateful_cache"):
                model._reset_stateful_cache()
            registry: Any = getattr(model, "_diffusers_hook", None)
            if hasattr(registry, "_set_context"):  # before diffusers 0.39 an exception left the last one in place
                registry._set_context(None)
        if hasattr(pipeline, "_all_hooks") and pipeline._all_hooks:
            pipeline.maybe_free_model_hooks()


def _report(result: SampleResult, loaded: LoadedPipeline, request: SampleRequest) -> None:
    report = result.report
    if result.frames is not None and not bool(result.frames.isfinite().all()):
        report.note(NOT_FINITE.format(what="picture"))
        result.frames = result.frames.nan_to_num(0.0, 1.0, 0.0)
    if result.audio is not None:
        if not bool(result.audio["waveform"].isfinite().all()):
            report.note(NOT_FINITE.format(what="sound"))
            result.audio["waveform"] = result.audio["waveform"].nan_to_num(0.0, 0.0, 0.0)
        report.facts["sound"] = summary(result.audio)
    report.facts.update(
        {
            **loaded.facts,
            "size": _size(result, request, loaded.family),
            "steps": len(result.step_seconds),
            "guidance": request.guidance,
            "scheduler": request.scheduler,
            "seeds": list(result.seeds),
            "seconds": {name: round(value, 4) for name, value in result.stage_seconds.items()},
        }
    )

"""One denoising run: arguments by signature, steps watched, cancelled cleanly, and the result in ComfyUI's terms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..callbacks import SILENT, Callbacks
from ..errors import first_line
from ..optimizations.components import denoisers, is_modular_class, step_experts
from ..report import OptimizationReport
from . import latents
from .arguments import call_arguments, form_for, stand_in_note, to_pil
from .classes.guidance import guided
from .conditions.arguments.idle import idle_notes
from .conditions.arguments.schedules import steps_note, with_steps
from .conditions.check import condition_facts, deciding_inputs
from .conditions.controlnets import controlled
from .conditions.further import refused_by_call
from .conditions.image_prompts.running import image_prompted
from .conditions.kept import blend_for, with_kept_latent
from .conditions.masks import repaints
from .decoding import pipeline_vae
from .embeddings.hooks import handed_over
from .families import Family
from .loading.mapped_files import check_unchanged
from .modular.run import Ran, call_blocks, fresh_parts, ignored
from .requested.item import OneByOne, item_of_batch, makes_batches
from .requested.random_numbers import StepNoise, random_numbers_kept, sampled_by_item
from .requests import ReadyRequest, ready, seeds
from .results import check_and_report, frames_of, not_finite
from .schedulers import TRIAL_STEPS, scheduler_for_run, schedulers_of
from .sound import STAGE as SOUND_STAGE
from .sound import sound_of
from .steps import Watch, watched
from .text_length import cut_notes, watched_texts
from .types import LoadedPipeline, SampleRequest, SampleResult

if TYPE_CHECKING:
    import torch

Decode = Callable[["torch.Tensor"], "torch.Tensor | None"]
"""ComfyUI latent -> frames float32 [B, T, H, W, 3] in 0..1 on the CPU; None where it is not worth decoding."""


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
    report.facts.update(condition_facts(loaded.family, request))
    callbacks.tick("text encode", 0, 1)
    stages: dict[str, float] = {}
    with (
        _cleaned_up(loaded.pipeline),
        random_numbers_kept(loaded.device),
        controlled(loaded, request, callbacks, report) as controlnets,
    ):
        with watched_texts(loaded.pipeline) as texts:
            outputs, last, watch, experts = _denoise(loaded, request, callbacks, report, controlnets)
        for note in cut_notes(loaded.pipeline, texts, request):
            report.note(note)
        step_seconds = watch.step_seconds
        stages["text encode"] = watch.text_seconds
        if watch.encode_seconds:
            stages["encode"] = watch.encode_seconds
        stages["denoise"] = sum(step_seconds)
        result = SampleResult(
            frames=None,
            latent=_comfy_latent(
                loaded, request, _first(outputs, loaded.family), _last(outputs, last, loaded.family), report
            ),
            frame_rate=request.frame_rate,
            seeds=seeds(request),
            step_seconds=step_seconds,
            step_experts=experts[: len(step_seconds)],
            stage_seconds=stages,
            report=report,
        )
        if request.decode or result.latent is None:
            callbacks.check_cancel()
            started = time.perf_counter()
            if result.latent is not None and loaded.family.known:
                decode = decode or (lambda latent: pipeline_vae.decode(loaded, latent, callbacks))
                result.frames = decode(result.latent)
            else:
                result.frames = frames_of(outputs, report)
            stages["decode"] = time.perf_counter() - started
        if loaded.family.sound or not loaded.family.known:
            started = time.perf_counter()
            result.audio = sound_of(loaded, outputs, callbacks, report, request.batch)
            if result.audio is not None:
                stages[SOUND_STAGE] = time.perf_counter() - started
    if note := stand_in_note(loaded.family, request):
        report.note(note)
    check_and_report(result, loaded, request)
    return result


def _denoise(
    loaded: LoadedPipeline,
    request: ReadyRequest,
    callbacks: Callbacks,
    report: OptimizationReport,
    controlnets: list[Any],
) -> tuple[list[Any], torch.Tensor | None, Watch, tuple[str, ...]]:
    """(what the pipeline returned, by call; the latent after the last step; what was seen; the expert of each step)."""
    family = loaded.family
    pipeline = form_for(loaded.pipeline, family, request, controlnets)
    modular = is_modular_class(type(pipeline))
    kept = with_kept_latent(loaded, request, callbacks).latent
    shows_latents = family.layout == "tokens" or (family.known and repaints(family, request))
    for note in ignored(pipeline, family, request.asked) if modular else ():
        report.note(note)

    def on_step(done: int, total: int, estimate: torch.Tensor | None) -> None:
        check_unchanged(loaded.key.source, loaded.mapped)
        if done == 1 and watch.noise is not None and watch.noise.shared:
            raise OneByOne(f"{type(pipeline).__name__} draws random numbers for a whole batch at once")
        preview = _preview(estimate, loaded, request)
        known = watch.known_seconds
        total += calls_to_come * (total - begun)
        try:
            callbacks.tick(
                "denoise", done, total, preview_latent=preview, preview_format=family.comfy_format, step_seconds=known
            )
        except BaseException as error:
            stopped.append(error)
            raise

    def call(request: SampleRequest) -> Any:
        request = replace(request, latent=kept if request.latent is None else request.latent)
        arguments = call_arguments(
            pipeline, family, request, device=loaded.device, dtype=loaded.dtype, vae=loaded.absent_vae
        )
        arguments = {name: value for name, value in arguments.items() if name not in prompted}
        arguments |= {name: value for name, value in prompted.items() if value is not None}
        watch.keep = blend_for(loaded, request)
        watch.noise = StepNoise(seeds(request), loaded.device, schedulers_of(pipeline))
        # The scheduler sees no first frame of image-to-video, and not what an inpaint class puts back after it.
        if shows_latents and not modular:
            arguments["callback_on_step_end"] = watch.keep_latents
        if request.batch > 1 and not makes_batches(arguments):
            raise OneByOne(f"{family.name} makes one at a time")
        try:
            encoded = request.positive is not None
            with sampled_by_item(getattr(pipeline, "vae", None), watch.noise.generators):
                return call_blocks(pipeline, arguments, encoded) if modular else pipeline(**arguments)
        except (AttributeError, TypeError, ValueError) as error:
            if not watch.done and isinstance(arguments.get("generator"), list) and "list" in str(error):
                raise OneByOne(f"{family.name} takes no list of generators ({first_line(error)})") from error
            if not watch.done and request.batch > 1 and "per prompt is not" in str(error):
                raise OneByOne(f"{type(pipeline).__name__} makes one at a time") from error
            raise

    def tried(request: SampleRequest) -> Any:
        try:
            return call(request)
        except Exception as error:
            refused = None if error in stopped else refused_by_call(type(pipeline).__name__, request, error)
            if refused is None:
                raise
            raise refused from error

    stopped: list[BaseException] = []
    calls_to_come = begun = 0
    steps, given = request.steps or TRIAL_STEPS, deciding_inputs(family, request)
    with (
        scheduler_for_run(pipeline, family, request.scheduler, request.flow_shift, steps, given) as scheduler,
        image_prompted(loaded, pipeline, request, callbacks, report, to_pil) as prompted,
    ):
        request = with_steps(request, scheduler)
        if modular:
            guidance = fresh_parts(pipeline, family, request, controlnets)
        else:
            guidance = guided(pipeline, family.guidance_argument, request.guidance)
        texts = handed_over(pipeline, family, request)
        with guidance, texts, watched(pipeline, loaded.device, on_step, family.known and callbacks.previews) as watch:
            try:
                outputs, last = [tried(request)], watch.latent
            except OneByOne as why:
                report.note(f"{why}: the batch was made one by one, each with its own seed.")
                watch.forget()
                outputs, each_last = [], []
                for index in range(request.batch):
                    calls_to_come, begun = request.batch - 1 - index, watch.done
                    item = ready(family, item_of_batch(family, request.asked, index))
                    outputs.append(tried(replace(item, steps=request.steps)))
                    each_last.append(watch.latent)
                last = _joined(each_last)
            done = watch.done // len(outputs)
            for note in filter(None, (steps_note(request, scheduler, done), *idle_notes(pipeline, scheduler, request))):
                report.note(note)
        return outputs, last, watch, step_experts(pipeline)


def _joined(latents: list[torch.Tensor | None]) -> torch.Tensor | None:
    import torch

    # MiniMax-H3's rows have no batch.
    found = [latent[None] if latent.ndim == 2 else latent for latent in latents if latent is not None]
    alike = len(found) == len(latents) and len({latent.shape for latent in found}) == 1
    return torch.cat(found) if alike else None


def _first(outputs: list[Any], family: Family) -> Any:
    """The first thing that the calls returned; of a family whose result is a latent, those of all calls together."""
    made = [output[0] for output in outputs]
    return _joined(made) if family.known and len(made) > 1 else made[0]


def _last(outputs: list[Any], last: torch.Tensor | None, family: Family) -> torch.Tensor | None:
    """The latent after the last step; of a modular pipeline outside the table what its blocks make of that."""
    if not family.known and len(outputs) == 1 and isinstance(outputs[0], Ran) and hasattr(outputs[0][0], "float"):
        found: torch.Tensor = outputs[0][0]
        return found
    return last


def _comfy_latent(
    loaded: LoadedPipeline, request: SampleRequest, native: Any, last: torch.Tensor | None, report: OptimizationReport
) -> torch.Tensor | None:
    family = loaded.family
    if family.known:
        # Flux.2 and LTX-2 pipelines return a latent that has left ComfyUI's convention; the loop's own has not.
        source = last if family.layout in latents.NORMALIZED_LAYOUTS and last is not None else native
        assert request.width is not None  # noqa: S101 - completed
        assert request.height is not None  # noqa: S101 - completed
        source = latents.of_result(source, family, request)
        latent = latents.to_comfy(source, family, loaded.vae, request.width, request.height).cpu()
        if not bool(latent.isfinite().all()):
            report.note(not_finite("latent", loaded))
        return latent
    if last is None:
        report.note(f"{family.name} steps no scheduler of its own: there is no latent and no preview, only its result.")
        return None
    report.note(f"the latent is in {family.name}'s own layout: only the picture can be used.")
    return last.float().cpu()


def _preview(estimate: torch.Tensor | None, loaded: LoadedPipeline, request: SampleRequest) -> torch.Tensor | None:
    """The first item of the batch in ComfyUI's convention, [C, h, w] or [C, T, h, w]."""
    if estimate is None or request.width is None or request.height is None:
        return None
    if estimate.ndim > 2:  # MiniMax-H3's rows have no batch
        estimate = latents.of_result(estimate[:1], loaded.family, request)
    return latents.to_comfy(estimate, loaded.family, loaded.vae, request.width, request.height)[0]


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

"""The main job, from a handle to frames: what the nodes, the command line and the benchmarks call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from ..callbacks import SILENT, Callbacks
from ..errors import check_choice
from ..fallback import all_finite
from ..optimizations.quantization.quantize import nothing_quantized_note
from ..optimizations.settings import OptimizationSettings, Workload
from ..report import OptimizationReport
from . import lora, sampling
from .cache import CACHE
from .conditions.weights import bytes_to_come, is_controlled
from .decoding import pipeline_vae
from .decoding.exactness import BIT_IDENTICAL, EXACTNESS_CHOICES
from .decoding.streaming import refuse_streaming
from .loading import loader
from .requested.absent import check_absent, require_vae
from .requested.before_load import check_before_load
from .requests import ready
from .results import GIVEN_NOT_FINITE, not_finite
from .slow_precision import slow_precision_note
from .types import LoadedPipeline, LoraSpec, PipelineHandle, SampleRequest, SampleResult

ENDED_NOT_FINITE = "the run ended in NaN or infinity with it, so it was made again without"

if TYPE_CHECKING:
    import torch

    from ..memory import MemoryProbe
    from .decoding.sharing import TileSharing


def generate(
    handle: PipelineHandle,
    request: SampleRequest,
    settings: OptimizationSettings,
    callbacks: Callbacks = SILENT,
    *,
    memory: MemoryProbe | None = None,
) -> SampleResult:
    """Load (or find in the cache), optimize, sample, decode.

    Args:
        handle: which pipeline; its `memory_mode` goes before that of `settings` unless it is "auto".
        request: what to make.
        settings: what to switch on. Whatever cannot be had falls back, and the report says so.
        callbacks: progress of every stage, and the way to cancel.
        memory: how much memory a device has, as the host counts it; torch's own figures when None.

    Returns:
        Frames, latent, and the report of what was really active.

    Raises:
        InputError: bad input; what can be said without the model is said before it loads.
        ModelFileError: the model cannot be read.
        Exception: whatever stops the run, unchanged. The pipeline stays in the cache, usable.
    """
    request = ready(loader.family_of_key(handle.key), request)
    check_before_load(handle.key, request, handle.loras)
    lora.check_loras(handle.loras)
    before = CACHE.peek(handle.key)
    with CACHE.use(handle.key, callbacks) as loaded:
        result = run_loaded(loaded, handle, request, settings, callbacks, memory=memory)
    result.report.timed(_loading(loaded, before) | result.report.facts["seconds"])
    return result


def run_loaded(
    loaded: LoadedPipeline,
    handle: PipelineHandle,
    request: SampleRequest,
    settings: OptimizationSettings,
    callbacks: Callbacks = SILENT,
    *,
    memory: MemoryProbe | None = None,
    sharing: TileSharing | None = None,
) -> SampleResult:
    """`generate` for a pipeline that is at hand: optimize, sample, decode, and learn from it what "auto" should be.

    A run that ends in NaN or infinity while another attention backend than SDPA was active is made again with SDPA.
    With `sharing`, processes that run the same make the tiles of the decode together; the first has the frames.
    """
    from ..optimizations import attention
    from ..optimizations.tuning.auto import AutoRun
    from ..optimizations.tuning.transfers import counted
    from .tuning_key import tuning_key

    request, settings = ready(loaded.family, request), handle.placing(settings)
    check_absent(loaded.key, request)
    workload = workload_of(loaded, request)
    key = tuning_key(handle, workload, settings)
    auto = AutoRun(loaded.pipeline, settings, key, workload, loaded.device, memory=memory)

    def spoilt(latent: torch.Tensor | None) -> bool:
        """Whether the run is made again with another attention backend, so that it is not worth decoding."""
        broken = latent is not None and not bool(latent.isfinite().all())
        return broken and attention.can_give_up(loaded.pipeline)

    def sample(report: OptimizationReport, callbacks: Callbacks) -> SampleResult:
        def decode(latent: torch.Tensor) -> torch.Tensor | None:
            if spoilt(latent):
                return None
            if sharing is not None and not sharing.leads:
                pipeline_vae.help_decode(loaded, sharing, callbacks)
                return None
            return _decode(loaded, latent, report, callbacks, memory, sharing=sharing)

        return sampling.run(loaded, request, callbacks, report, decode)

    with (
        _optimized(loaded, handle.loras, auto.settings, auto.workload, callbacks, memory) as report,
        auto.watching(report, callbacks) as watched,
        counted(loaded.pipeline, loaded.device) as moved,
    ):
        result = sample(report, watched)
    if loaded.device.type != "cpu":
        report.facts["moved_bytes"] = {"on": moved.on, "off": moved.off}
    auto.finish(report)
    if not spoilt(result.latent):
        return result
    attention.give_up(loaded.pipeline, ENDED_NOT_FINITE)
    with _optimized(loaded, handle.loras, auto.settings, auto.workload, callbacks, memory) as report:
        return sample(report, callbacks)


def decode(
    handle: PipelineHandle,
    latent: torch.Tensor,
    settings: OptimizationSettings,
    callbacks: Callbacks = SILENT,
    *,
    exactness: str = BIT_IDENTICAL,
    memory: MemoryProbe | None = None,
) -> tuple[torch.Tensor, OptimizationReport]:
    """Decode a ComfyUI latent with a pipeline's VAE.

    Args:
        exactness: "bit-identical" gives a clip as diffusers does; "fast" may differ within a tolerance that is
            measured first. The report says which of them ran, and the difference.

    Returns:
        Frames, float32 [B, T, H, W, 3] in 0..1 on the CPU, and the report.

    Raises:
        InputError: the latent is not one of this model's.
    """
    check_choice("exactness", exactness, EXACTNESS_CHOICES)
    require_vae(handle.key, "vae", "pipeline", "choose a VAE in its loader")
    pipeline_vae.check_decodes(loader.family_of_key(handle.key), latent)
    before = CACHE.peek(handle.key)
    with CACHE.use(handle.key, callbacks) as loaded:
        stride = loaded.family.latent_stride
        frames = loaded.family.clip_frames(latent.shape[2]) if latent.ndim == 5 else 1
        streamed = latent.ndim == 5 and not refuse_streaming(loaded.pipeline.vae)
        size = (latent.shape[-1] * stride, latent.shape[-2] * stride)
        workload = Workload(*size, frames, batch=latent.shape[0], streamed=streamed)
        with _optimized_vae(loaded, handle.placing(settings), workload, callbacks, memory) as report:
            started = time.perf_counter()
            pictures = _decode(loaded, latent, report, callbacks, memory, exactness)
            seconds = round(time.perf_counter() - started, 4)
    if not all_finite(latent):
        report.note(GIVEN_NOT_FINITE)
    elif not all_finite(pictures):
        report.note(not_finite("picture", loaded))
    report.facts["size"] = "x".join(map(str, (*size, *([frames] if latent.ndim == 5 else []))))
    report.timed(_loading(loaded, before) | {"decode": seconds})
    return pictures, report


def encode(
    handle: PipelineHandle,
    pixels: torch.Tensor,
    settings: OptimizationSettings,
    callbacks: Callbacks = SILENT,
    *,
    memory: MemoryProbe | None = None,
) -> tuple[torch.Tensor, OptimizationReport]:
    """Encode images [B, H, W, 3] or clips [B, T, H, W, 3] in 0..1 to a ComfyUI latent with a pipeline's VAE.

    Out of memory, it is done again in tiles, and in smaller ones. A clip whose length the VAE does not take is filled
    up with copies of its last frame, and the report says so.
    """
    from ..optimizations.vae_memory import shrink_until_it_fits

    require_vae(handle.key, "vae", "pipeline", "choose a VAE in its loader")
    pipeline_vae.check_encodes(loader.family_of_key(handle.key))
    before = CACHE.peek(handle.key)
    with CACHE.use(handle.key, callbacks) as loaded:
        height, width = pixels.shape[-3:-1]
        frames = pixels.shape[1] if pixels.ndim == 5 else 1
        workload = Workload(width, height, frames, pixels.shape[0])
        with _optimized_vae(loaded, handle.placing(settings), workload, callbacks, memory) as report:
            run = lambda: pipeline_vae.encode(loaded, pixels, callbacks, report)
            vae, edge = loaded.pipeline.vae, max(width, height)
            started = time.perf_counter()
            latent = shrink_until_it_fits(vae, run, report, edge=edge, stage="encode")
            seconds = round(time.perf_counter() - started, 4)
    report.facts["size"] = "x".join(map(str, (width, height, *([frames] if pixels.ndim == 5 else []))))
    report.timed(_loading(loaded, before) | {"encode": seconds})
    return latent, report


def _loading(loaded: LoadedPipeline, before: LoadedPipeline | None) -> dict[str, float]:
    """What loading took, as a stage of this run; nothing where the pipeline was in the cache already."""
    return {} if loaded is before else {"load": loaded.facts.get("load_seconds", 0.0)}


@contextmanager
def _optimized(
    loaded: LoadedPipeline,
    loras: tuple[LoraSpec, ...],
    settings: OptimizationSettings,
    workload: Workload,
    callbacks: Callbacks,
    memory: MemoryProbe | None,
) -> Iterator[OptimizationReport]:
    """Put the pipeline into the state that the settings describe, and keep torch's switches so while the block runs."""
    from ..optimizations.apply import active, apply, revert
    from ..optimizations.vae_memory import decode_that_shrinks

    pipeline = loaded.pipeline
    changes = bool(loras or lora.active_loras(loaded))
    lora_records = lora.set_loras(loaded, loras, callbacks, before_rebuild=revert) if changes else []
    report = apply(pipeline, settings, device=loaded.device, workload=workload, callbacks=callbacks, memory=memory)
    for record in lora_records:
        report.set(record)
    report.facts.update(loaded.facts)
    unquantized = nothing_quantized_note(loaded.key.quantization, loaded.facts.get("quantization", {}))
    for note in filter(None, (slow_precision_note(pipeline, loaded.device), unquantized)):
        report.note(note)
    # A pipeline that is not known decodes by itself, inside its own call.
    guard = nullcontext() if loaded.family.known else decode_that_shrinks(pipeline, report)
    with active(pipeline, settings, report), guard:
        yield report


@contextmanager
def _optimized_vae(
    loaded: LoadedPipeline,
    settings: OptimizationSettings,
    workload: Workload,
    callbacks: Callbacks,
    memory: MemoryProbe | None,
) -> Iterator[OptimizationReport]:
    """`_optimized` for the VAE alone: a decode runs no denoiser, so nothing is compiled or exchanged in it for this."""
    from ..optimizations.apply import active, apply_to_vae

    pipeline = loaded.pipeline
    report = apply_to_vae(
        pipeline, settings, device=loaded.device, workload=workload, callbacks=callbacks, memory=memory
    )
    report.facts.update(loaded.facts)
    if slow := slow_precision_note(pipeline, loaded.device, vae_only=True):
        report.note(slow)
    with active(pipeline, settings, report, vae_only=True):
        yield report


def workload_of(loaded: LoadedPipeline, request: SampleRequest) -> Workload:
    """What a request amounts to, its gaps filled by the family's recommendations."""
    filled = ready(loaded.family, request)
    return Workload(
        width=filled.width or 0,
        height=filled.height or 0,
        frames=filled.num_frames or 1,
        batch=filled.batch,
        steps=filled.steps or 0,
        further_weights=bytes_to_come(loaded, filled),
        controlled=is_controlled(filled),
        streamed=loaded.family.known and loaded.family.video and not refuse_streaming(loaded.vae),
    )


def _decode(
    loaded: LoadedPipeline,
    latent: torch.Tensor,
    report: OptimizationReport,
    callbacks: Callbacks,
    memory: MemoryProbe | None,
    exactness: str = BIT_IDENTICAL,
    sharing: TileSharing | None = None,
) -> torch.Tensor:
    """Decode; when the memory does not suffice, again in tiles, and in smaller ones."""
    from ..optimizations.vae_memory import shrink_until_it_fits

    edge = max(latent.shape[-2:]) * loaded.family.latent_stride
    run = lambda: pipeline_vae.decode(
        loaded, latent, callbacks, exactness=exactness, memory=memory, report=report, sharing=sharing
    )
    try:
        return shrink_until_it_fits(loaded.pipeline.vae, run, report, edge=edge)
    finally:
        if sharing is not None:
            sharing.over()

"""Which engine decodes and encodes with what is connected to `vae`: a pipeline, this pack's video VAE, or ComfyUI's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..fallback import all_finite
from ..optimizations.vae_memory import TILING
from ..pipelines import generate
from ..pipelines.conditions.pictures import check_values
from ..pipelines.decoding.exactness import BIT_IDENTICAL
from ..pipelines.decoding.exactness import RECORD as EXACTNESS
from ..pipelines.decoding.padding import padding_of, without_padding
from ..pipelines.loading import loader
from ..pipelines.results import GIVEN_NOT_FINITE
from ..pipelines.types import PipelineHandle
from ..report import OptimizationRecord
from . import latent_input, types, video_vae
from .engine import refuse_as_vae
from .host import comfy_bridge, core_vae, memory_management
from .vae_choices import VaeChoices

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..callbacks import Callbacks
    from ..optimizations.settings import OptimizationSettings
    from ..pipelines.families import Family
    from ..pipelines.types import SampleResult
    from ..report import OptimizationReport
    from ..vae import VaeSettings, VideoVAE

NOT_FINITE = "what was decoded holds NaN or infinite values: it is black or broken. Check the latent, or use float32."
OF_VIDEO_VAE = "ignored, since it is for this pack's video VAE"
NO_EXACT = "exact strips are there for this pack's video VAE only; 'auto' was used instead"
RECOGNISED = "recognised as a causal video VAE and run through this pack's networks"
CHANGED = "another node has changed this VAE: it ran as in ComfyUI's own node, not through this pack's networks"
OWN_ARITHMETIC = "exactness is for the clips of a pipeline's VAE; the video VAE always runs this pack's own code"


def decode(
    vae: Any, latent: Mapping[str, Any], choices: VaeChoices, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Decode a LATENT.

    Args:
        vae: `comfy.sd.VAE`, `VideoVaeHandle` or `PipelineHandle`.

    Returns:
        Frames [B, H, W, C] or [B, T, H, W, C] in 0..1 on the CPU, without those that the clip was filled up with, and
        the report.

    Raises:
        InputError: a latent that this VAE cannot take, or a VAE that gives no pictures.
        torch.OutOfMemoryError: even the smallest tiles do not fit.
    """
    given = latent_input.read(latent)
    vae = _decoder(vae)
    frames, report = _decode_samples(vae, given.samples, choices, callbacks)
    for note in given.notes:
        report.note(note)
    if given.unused:
        report.facts["not needed of the latent"] = ", ".join(given.unused)
    return without_padding(frames, given.samples.shape, latent, report), report


def _decode_samples(
    vae: Any, samples: torch.Tensor, choices: VaeChoices, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    if (own := _own_networks(vae)) is not None:
        with choices.compiling():
            frames, report = video_vae.decode(own, samples, _settings(vae, choices), callbacks)
        if choices.exactness != BIT_IDENTICAL:
            report.note(OWN_ARITHMETIC)
        _say_no_tiles_of_own(report, choices)
        return frames, _say_recognised(report, vae)
    if isinstance(vae, PipelineHandle):
        settings, note = choices.for_pipeline(), ""
        family = loader.family_of_key(vae.key)
        if samples.ndim == 5 and not _takes_clips(family):
            samples, note = core_vae.first_frame(samples, f"the VAE of {family.name} decodes pictures")
        with memory_management.on_card(vae):
            frames, report = generate.decode(
                vae, samples, settings, callbacks, exactness=choices.exactness, memory=comfy_bridge.memory_state
            )
        if note:
            report.note(note)
    else:
        frames, report = core_vae.decode(vae, samples, choices, callbacks)
        _say_not_compiled(report, choices)
        _say_changed(report, vae)
        if not all_finite(samples):
            report.note(GIVEN_NOT_FINITE)
        elif not all_finite(frames):
            report.note(NOT_FINITE)
    _say_unused(report, choices, vae)
    return frames, report


def encode(
    vae: Any, pixels: torch.Tensor, choices: VaeChoices, callbacks: Callbacks
) -> tuple[dict[str, Any], OptimizationReport]:
    """Encode an IMAGE.

    Args:
        vae: `comfy.sd.VAE`, `VideoVaeHandle` or `PipelineHandle`.
        pixels: [B, H, W, C] in 0..1, for a video VAE the frames of one clip; or clips [B, T, H, W, C].

    Returns:
        A LATENT, with the clip's length where it was filled up, and the report, which tells of dropped frames.

    Raises:
        InputError: pixels that this VAE cannot take, or a VAE that takes no pictures.
        torch.OutOfMemoryError: even the smallest tiles do not fit.
    """
    if pixels.ndim not in (4, 5) or 0 in pixels.shape:
        reason = "an image is [batch, height, width, channels], clips are [batch, frames, height, width, channels]"
        raise InputError("pixels", list(pixels.shape), reason, "connect an IMAGE output")
    check_values("pixels", pixels)  # values outside 0..1 are encoded as they are, as by ComfyUI's node
    length = pixels.shape[-4]
    vae = _decoder(vae)
    if (own := _own_networks(vae)) is not None:
        with choices.compiling():
            samples, report = video_vae.encode(own, pixels, _settings(vae, choices), callbacks)
        latent = _remember_length(samples, report, length, own.config.frames(samples.shape[2]))
        _say_no_tiles_of_own(report, choices)
        return latent, _say_recognised(report, vae)
    if isinstance(vae, PipelineHandle):
        settings = choices.for_pipeline()
        family = loader.family_of_key(vae.key)
        clips = pixels if pixels.ndim == 5 else pixels[None]
        with memory_management.on_card(vae):
            samples, report = generate.encode(
                vae,
                clips if family.video else clips.flatten(0, 1),
                settings,
                callbacks,
                memory=comfy_bridge.memory_state,
            )
        made = family.clip_frames(samples.shape[2]) if family.video else 0
        if pixels.shape[-1] > (taken := 4 if family.alpha else 3):
            report.note(core_vae.alpha_left_out(pixels.shape[-1], taken))
        if pixels.ndim == 5 and not family.video:
            report.note(core_vae.ONE_BY_ONE)
    else:
        samples, report = core_vae.encode(vae, pixels, choices, callbacks)
        _say_not_compiled(report, choices)
        _say_changed(report, vae)
        made = core_vae.frames_of(vae, samples)
    _say_unused(report, choices, vae)
    return _remember_length(samples, report, length, made, drops_last=core_vae.drops_last(vae)), report


def decode_result(vae: Any, result: SampleResult, settings: OptimizationSettings, callbacks: Callbacks) -> None:
    """Decode what a sampler made with another VAE than the pipeline's, and say so in its report.

    Args:
        vae: as in `decode`.
        settings: of the sampler, which say whether it is decoded in tiles.
    """
    if result.latent is None:
        return
    tiling = settings.vae_tiling
    mode = {"on": "tiles", "off": "whole"}.get(tiling.mode, "auto")
    started = time.perf_counter()
    choices = VaeChoices(mode, tiling.tile_size, tiling.overlap)
    frames, report = decode(vae, {"samples": result.latent}, choices, callbacks)
    result.frames = frames.reshape(result.latent.shape[0], -1, *frames.shape[-3:])
    result.stage_seconds["decode"] = time.perf_counter() - started
    result.report.timed(result.report.facts["seconds"] | {"decode": round(result.stage_seconds["decode"], 4)})
    result.report.facts["decoded by"] = report.facts.get("vae", type(vae).__name__)
    for note in report.notes:
        result.report.note(f"decode: {note}")


def _decoder(vae: Any) -> Any:
    """What decodes and encodes for a pipeline: itself, or the VAE that came with it."""
    refuse_as_vae(vae)
    return vae.vae if isinstance(vae, PipelineHandle) and vae.vae is not None else vae


def _own_networks(vae: Any) -> VideoVAE | None:
    """Return this pack's networks for a video VAE handle or for a VAE of ComfyUI's with such weights, else None."""
    if isinstance(vae, types.VideoVaeHandle):
        return video_vae.load(vae)
    return None if isinstance(vae, PipelineHandle) else video_vae.borrow(vae)


def _settings(vae: Any, choices: VaeChoices) -> VaeSettings:
    return choices.for_video_vae(vae if isinstance(vae, types.VideoVaeHandle) else None)


def _say_changed(report: OptimizationReport, vae: Any) -> None:
    if video_vae.changed(vae):
        report.note(CHANGED)


def _say_recognised(report: OptimizationReport, vae: Any) -> OptimizationReport:
    if not isinstance(vae, types.VideoVaeHandle):
        report.note(RECOGNISED)
    return report


def _takes_clips(family: Family) -> bool:
    """Return whether the family's VAE has a time axis. Qwen-Image's is Wan's."""
    return family.video or family.comfy_format == "Wan21"


def _remember_length(
    samples: torch.Tensor, report: OptimizationReport, length: int, made: int, *, drops_last: bool = True
) -> dict[str, Any]:
    """Return the LATENT of pictures or of a clip, and note frames that were dropped.

    Args:
        length: frames that were given.
        made: frames that a decode will give; 0 for pictures.
        drops_last: a decode gives the first of the frames that were given.
    """
    if 0 < made < length and not drops_last:
        report.note(f"the {length} frames became {samples.shape[2]} of the latent, which a decode turns into {made}")
    elif 0 < made < length:
        report.note(f"the last {length - made} of {length} frames were dropped: this VAE encodes {made} of them")
    return {"samples": samples} | padding_of(length, made, samples.shape)


def _say_unused(report: OptimizationReport, choices: VaeChoices, vae: Any) -> None:
    """Note what was chosen that this kind of VAE, or this way of running it, does not follow."""
    pipeline = isinstance(vae, PipelineHandle)
    if choices.tiling == "exact":
        report.note(NO_EXACT)
    if choices.memory_budget_gib:
        report.note(f"memory_budget_gib = {choices.memory_budget_gib:g} {OF_VIDEO_VAE}: others go by what is free")
    if choices.temporal_slice and pipeline:
        report.note(f"temporal_slice = {choices.temporal_slice} {OF_VIDEO_VAE}: a pipeline's has slices of its own")
    elif choices.temporal_slice and getattr(vae, "latent_dim", 3) < 3:
        report.note(f"temporal_slice = {choices.temporal_slice} ignored: this VAE is one of pictures")
    applied = report[TILING].applied if TILING in report else ""
    if applied.startswith("its own ") and "tiles" not in applied:
        _say_no_tiles(report, choices, f"it ran its {applied}, as in ComfyUI's own node", ("temporal_slice",))
        if choices.exactness != BIT_IDENTICAL and EXACTNESS not in report:
            report.note(f"exactness = {choices.exactness} ignored: it ran its {applied}")
    elif choices.tiling == "whole" and (pipeline or "tiles" not in applied):
        _say_no_tiles(report, choices, "tiling is 'whole'", () if pipeline else ("temporal_slice",))


def _say_no_tiles_of_own(report: OptimizationReport, choices: VaeChoices) -> None:
    """Note the same of this pack's video VAE, which never goes over to tiles from these."""
    if choices.tiling in ("whole", "exact"):
        _say_no_tiles(report, choices, f"tiling is {choices.tiling!r}")


def _say_no_tiles(report: OptimizationReport, choices: VaeChoices, why: str, further: tuple[str, ...] = ()) -> None:
    """Note which widgets said how tiles are cut, where none were.

    Args:
        further: names of those beside the two of every VAE.
    """
    names = [name for name in ("tile_size", "overlap", *further) if getattr(choices, name)]
    said = [name for name in names if not any(note.startswith(f"{name} = ") for note in report.notes)]
    if said:
        given = ", ".join(f"{name} = {getattr(choices, name)}" for name in said)
        report.note(f"{given} ignored: {why}")


def _say_not_compiled(report: OptimizationReport, choices: VaeChoices) -> None:
    if choices.compile is not None:
        reason = "this is one of ComfyUI's own VAEs, whose object this pack does not touch"
        report.set(OptimizationRecord("torch_compile", "on", "off", reason))

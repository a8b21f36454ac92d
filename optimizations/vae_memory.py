"""Tiling and slicing of a pipeline's VAE: when they are needed, and what a run that is out of memory does.

Both are the VAE's own, switched by attribute (`vae_tiles.py`), with every value put back when they are off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..fallback import describe, is_out_of_memory
from ..memory import MemoryState, Need, gib, release_cache, shortage
from ..report import OptimizationRecord, OptimizationReport
from .components import device_and_dtype, is_cast_to_decode, vae_of
from .decode_memory import decode_cost
from .settings import TilingSettings, Workload
from .vae_tiles import (
    TILES_ONLY,
    SquareTiles,
    can_choose_tiles,
    possible_tiles,
    ratio_of,
    refuse_tiling,
    set_value,
    tile_in_use,
    turn_on,
    values_of,
    write_values,
)

logger = logging.getLogger(__name__)

TILING, SLICING = "vae_tiling", "vae_slicing"
LARGE_IMAGE = 1536 * 1536
"""Pixels above which "auto" tiles whether the decode fits or not."""
TILE_SIZES = (1024, 768, 512, 384, 256, 192, 128)
"""Tile edges in pixels, tried in turn when a decode must become smaller; the last is the floor."""

T = TypeVar("T")

_originals: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def use(pipeline: Any, settings: TilingSettings, workload: Workload, memory: MemoryState) -> list[OptimizationRecord]:
    """Put the VAE's tiling and slicing into the state that `settings` ask for, whatever it was.

    Args:
        pipeline: a diffusers pipeline; one without a VAE gets records that say so.
        settings: mode, tile size and overlap in pixels, slicing.
        workload: what will be decoded; "auto" decides by it.
        memory: of the device on which the VAE runs, as it will be when it decodes.
    """
    vae = vae_of(pipeline)
    if vae is None:
        reason = "the pipeline has no VAE"
        return [OptimizationRecord(name, choice, "off", reason) for name, choice in _choices(settings)]
    restore(pipeline)
    return [_use_tiling(vae, settings, workload, memory), _use_slicing(vae, settings.slicing, workload.batch)]


def restore(pipeline: Any) -> None:
    """The VAE has its own values again."""
    vae = vae_of(pipeline)
    if vae is not None:
        _restore(vae)


def shrink_until_it_fits(
    vae: Any, run: Callable[[], T], report: OptimizationReport | None = None, edge: int = 0, stage: str = "decode"
) -> T:
    """Run a decode or encode; out of memory, run it again with tiles, ever smaller ones, down to the floor.

    Args:
        vae: the VAE that `run` decodes or encodes with.
        run: what to run; it is called again from the start, so it must not keep what it made.
        report: its "vae_tiling" record learns about every retry.
        edge: longer edge of the picture in pixels, 0 when not known: tiles begin below it.
        stage: "decode" or "encode", for the report.

    Returns:
        What `run` returns. The VAE's tiling is as before, whatever happened.

    Raises:
        torch.OutOfMemoryError: as it was raised, when the smallest tiles do not fit either, or the VAE has none.
    """
    before = values_of(vae)
    in_use = tile_in_use(vae) if getattr(vae, "use_tiling", False) else 0
    largest = min((size for size in (in_use, edge) if size), default=TILE_SIZES[0] + 1)
    can_shrink = not refuse_tiling(vae) and can_choose_tiles(vae)
    smaller = [size for size in TILE_SIZES if size < largest] if can_shrink else []
    failure: str
    try:
        while True:
            try:
                return run()
            except Exception as error:
                if not is_out_of_memory(error) or not smaller:
                    raise
                failure = describe(error, limit=80)
            # Outside the except block: the error holds the frames of the failed decode, and they hold its tensors.
            release_cache(device_and_dtype(vae)[0])
            tiles = possible_tiles(vae, smaller.pop(0), 0)
            turn_on(vae, tiles)
            if hasattr(vae, "use_slicing"):
                set_value(vae, "use_slicing", True)
            _note_retry(report, tiles, failure, stage)
    finally:
        write_values(vae, before)


@contextmanager
def decode_that_shrinks(pipeline: Any, report: OptimizationReport) -> Iterator[None]:
    """While the block runs, the pipeline's own calls of `vae.decode` go through `shrink_until_it_fits`."""
    vae: Any = vae_of(pipeline)
    if vae is None or refuse_tiling(vae):
        yield
        return
    decode = vae.decode

    def decode_or_shrink(latent: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        edge = max(latent.shape[-2:]) * ratio_of(vae)
        return shrink_until_it_fits(vae, lambda: decode(latent, *arguments, **options), report, edge=edge)

    vae.decode = decode_or_shrink
    try:
        yield
    finally:
        del vae.decode


def estimate(vae: nn.Module, workload: Workload, slicing: bool = False) -> int | None:
    """Bytes that decoding the workload in one piece takes beside the weights; None for a VAE of which it is not known.

    0 when the size of the workload is not known.
    """
    cost = decode_cost(vae, clip=workload.frames > 1)
    if cost is None:
        return None
    return cost.bytes(workload, _decode_dtype(vae), 1 if slicing else max(1, workload.batch))


def _use_tiling(vae: Any, settings: TilingSettings, workload: Workload, memory: MemoryState) -> OptimizationRecord:
    choice, name = settings.mode, type(vae).__name__
    refusal = refuse_tiling(vae)
    if refusal:
        reason = "" if choice == "off" else refusal
        return OptimizationRecord(TILING, choice, "off", reason, failed=choice == "on")
    if name in TILES_ONLY:
        _remember(vae)
        turn_on(vae)
    if choice != "on" and vae.use_tiling:  # MiniMax H3's frames are the blended ones
        reason = f"{name} {'decodes in tiles only' if name in TILES_ONLY else 'tiles by itself'}"
        return OptimizationRecord(TILING, choice, _tiles_in_words(vae), reason)
    if choice == "off":
        return OptimizationRecord(TILING, choice, "off")
    size, reason = settings.tile_size, ""
    if choice == "auto":
        needed, reason, fitting = _auto(vae, settings, workload, memory)
        if not needed:
            return OptimizationRecord(TILING, choice, "off", reason)
        size = size or fitting
    _remember(vae)
    notes = [reason] if reason else []
    if not can_choose_tiles(vae):
        turn_on(vae)
        notes += [f"{name} tiles in its own size only"] if size or settings.overlap else []
    elif size or settings.overlap:
        tiles = possible_tiles(vae, size or tile_in_use(vae) or 512, settings.overlap)
        turn_on(vae, tiles)
        if settings.overlap and tiles.overlap != settings.overlap:
            least = f", at least {tiles.overlap}" if tiles.overlap > settings.overlap + tiles.ratio - 1 else ""
            rule = f"it is a multiple of {tiles.ratio}{least} and at most half of {tiles.size}"
            notes.append(f"overlap {settings.overlap} became {tiles.overlap}: {rule}")
        if size and tiles.size != size:
            notes.append(f"tile size {size} became {tiles.size}: a multiple of {tiles.ratio} is needed")
    else:
        turn_on(vae)
    edge = tile_in_use(vae)
    if edge and 0 < max(workload.width, workload.height) <= edge:
        notes.append("one tile holds the whole picture")
    return OptimizationRecord(TILING, choice, _tiles_in_words(vae), "; ".join(notes))


def _tiles_in_words(vae: Any) -> str:
    edge = tile_in_use(vae)
    return f"tiles of {edge} px" if edge else "the VAE's own tiles"


def _auto(vae: Any, settings: TilingSettings, workload: Workload, memory: MemoryState) -> tuple[bool, str, int]:
    """Whether to tile, why, and with which tiles; 0 for the VAE's own."""
    pixels = workload.width * workload.height
    if not pixels:
        return False, "the size of the picture is not known yet", 0
    slicing = settings.slicing == "on" or (settings.slicing == "auto" and workload.batch > 1)
    needed = estimate(vae, workload, slicing)
    short = "" if needed is None else shortage(memory, [Need("estimated for the whole decode", needed)])
    if short:
        own = tile_in_use(vae) or max(TILE_SIZES)
        fits = [s for s in TILE_SIZES if s <= own and _tile_fits(vae, s, workload, memory, slicing)]
        return True, short, fits[0] if fits else TILE_SIZES[-1]
    if pixels > LARGE_IMAGE:
        return True, "the picture is larger than 1536x1536", 0
    if needed is None:
        unknown = f"how much memory a decode by {type(vae).__name__} takes is not known"
        return False, f"{unknown}; it runs in tiles if the whole runs out of memory", 0
    return False, f"the whole decode fits (estimated {gib(needed)}, {gib(memory.free)} free)", 0


def _tile_fits(vae: Any, size: int, workload: Workload, memory: MemoryState, slicing: bool) -> bool:
    tile = replace(workload, width=min(size, workload.width), height=min(size, workload.height), streamed=False)
    return not shortage(memory, [Need("", estimate(vae, tile, slicing) or 0)])


def _use_slicing(vae: Any, choice: str, batch: int) -> OptimizationRecord:
    wanted = choice == "on" or (choice == "auto" and batch > 1)
    if not wanted:
        reason = "one picture at a time anyway" if choice == "auto" else ""
        return OptimizationRecord(SLICING, choice, "off", reason)
    if not hasattr(vae, "use_slicing"):
        reason = f"{type(vae).__name__} cannot decode a batch one by one"
        return OptimizationRecord(SLICING, choice, "off", reason, failed=choice == "on")
    _remember(vae)
    set_value(vae, "use_slicing", True)
    return OptimizationRecord(SLICING, choice, "on")


def _remember(vae: Any) -> None:
    if vae not in _originals:
        _originals[vae] = values_of(vae)


def _restore(vae: Any) -> None:
    original = _originals.pop(vae, None)
    if original is not None:
        write_values(vae, original)


def _decode_dtype(vae: nn.Module) -> torch.dtype:
    """The type that a decode computes in; float16 weights that overflow (SDXL) are decoded in float32."""
    return torch.float32 if is_cast_to_decode(vae) else device_and_dtype(vae)[1]


def _note_retry(report: OptimizationReport | None, tiles: SquareTiles, failure: str, stage: str) -> None:
    text = f"out of memory, {stage}d again in tiles of {tiles.size} px ({failure})"
    logger.warning("VAE %s: %s", stage, text)
    if report is None:
        return
    if TILING not in report:
        report.set(OptimizationRecord(TILING, "auto", "off"))
    reason = "; ".join(part for part in (report[TILING].reason, text) if part)
    report.update(TILING, applied=f"tiles of {tiles.size} px", reason=reason)


def _choices(settings: TilingSettings) -> list[tuple[str, str]]:
    return [(TILING, settings.mode), (SLICING, settings.slicing)]

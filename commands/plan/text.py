"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ...memory import GIB, gib
from ...optimizations.offload import WORKING_MEMORY
from .figures import AS_LOADED, AS_STORED, SCHEMES, Fit, Plan

NOTE = (
    "Weights of 8 and 4 bits: the matrices of linear layers in the denoisers and large text encoders; scales and what "
    "a quantization leaves out are not counted, so these are the least that it can be"
)

SEVERAL_CARDS = (
    "--cluster: each worker holds all of this on a card of its own and makes whole pictures or clips",
    "--parallel: each card holds all of this, and one picture or clip is made by all of them; tiles of a decode too",
    "text encoders on one card and the denoiser on another: not offered; where a card is short, see memory_mode above",
)
"""Which components sit on which card."""


def as_text(plan: Plan) -> str:
    """Weights, what is needed beside them, and what fits, for each way in which the weights can be stored."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    work = plan.workload
    clip = f", {work.frames} frames" if work.frames > 1 else ""
    size = f"{work.width}x{work.height}{clip}" if work.width else "its own size"
    yield f"{plan.model.name} ({plan.model.family.name}), {size}, on a card with {gib(plan.vram)}, all of it free"
    yield ""
    names = list(plan.fits[0].weights)
    rows = [("weights", *(fit.stored for fit in plan.fits))]
    rows += [(name, *(gib(fit.weights[name]) for fit in plan.fits)) for name in names]
    rows += [("together", *(gib(sum(fit.weights.values())) for fit in plan.fits))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if quantized := plan.model.quantized:
        others = [name for name in names if name not in quantized]
        said = [f"{name} {how}" for name, how in quantized.items()] + ([f"the rest {AS_LOADED}"] if others else [])
        yield f"  {AS_STORED}: {', '.join(said)}; what is quantized counts as its files do, in every column."
    if len(plan.fits) > 1:
        yield from (f"  {stored}: {', '.join(schemes)}" for stored, schemes in SCHEMES.items())
        yield f"  {NOTE}."
    yield ""
    yield "beside the weights"
    decode = "not known for this VAE" if plan.decode is None else f"{gib(plan.decode)} estimated"
    yield f"  decode of the whole: {decode}"
    assumed = " (assumed until it is measured)" if plan.working == WORKING_MEMORY else ""
    yield f"  kept free for the run: {gib(plan.working)}{assumed}"
    yield ""
    yield "what fits, at the settings 'auto'"
    for fit in plan.fits:
        yield f"  {fit.stored}"
        yield f"    memory_mode: {fit.mode}{_because(fit.why)}{_sum(plan, fit) if fit.mode == 'gpu' else ''}"
        yield f"    vae_tiling: {fit.tiling}{_because(fit.tiling_why)}"
        fits = "compiled code fits; whether it is faster, Benchmark Optimizations measures"
        yield f"    torch_compile: {f'off: {fit.compile}' if fit.compile else fits}"
    yield ""
    yield "several cards"
    yield from (f"  {line}" for line in SEVERAL_CARDS)
    yield ""
    scores = "not known for this model" if plan.scores is None else f"at least {gib(plan.scores)} in one layer"
    yield f"attention: the scores, which only 'math' holds as a whole: {scores}; the other kernels do not keep them."
    yield "Which kernels work depends on the card: doctor without --plan tries them there."


def _sum(plan: Plan, fit: Fit) -> str:
    return f" ({gib(sum(fit.weights.values()))} of weights + {gib(plan.working)} for the run)"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def as_dict(plan: Plan) -> dict[str, Any]:
    """JSON-compatible; sizes in bytes."""
    return {
        "model": plan.model.name,
        "family": plan.model.family.name,
        "vram_gib": plan.vram / GIB,
        "work": {name: getattr(plan.workload, name) for name in ("width", "height", "frames")},
        "decode": plan.decode,
        "working": plan.working,
        "attention_scores": plan.scores,
        "quantized": dict(plan.model.quantized),
        "schemes": {plan.fits[0].stored: ["none"], **{stored: list(names) for stored, names in SCHEMES.items()}},
        "several_cards": list(SEVERAL_CARDS),
        "fits": [{**asdict(fit), "in_short": fit.in_short} for fit in plan.fits],
    }

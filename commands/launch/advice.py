"""Advice on how ComfyUI is started, from facts that anybody can check: its log, the card, the allocator's settings.

Pure functions: text and figures in, sentences out. Each sentence says what was found, what to do, and why; where the
cure is a flag or a variable of the start, it comes with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .comfyui_log import OutOfMemory, SessionLog

GIB = 2**30
SLOW_IMPORT_SECONDS = 2.0
"""An extension that takes longer to load is worth a word."""
LARGE_EXPERT = 14_000_000_000
"""Parameters of one Wan 2.2 expert, the model that the memory of a card is most often short of."""
FRAGMENTED_SHARE, FRAGMENTED_BYTES = 0.1, GIB
"""Of the card, and at the least: what torch holds beyond its tensors when memory runs out, for a word about it."""
RESERVED_BY_DEFAULT = 0.6
"""GiB that ComfyUI leaves free by itself, on Windows; less elsewhere."""
EXPANDABLE = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
"""By the name that every torch 2 reads; since 2.9 it has a newer one beside it."""


@dataclass(frozen=True)
class LaunchFacts:
    """What the advice looks at.

    Attributes:
        total, free: bytes of the card; 0 without one.
        capability: compute capability of an NVIDIA card, (8, 9); None without one.
        allocator_settings: value of PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF.
        log: of ComfyUI's last session.
        flags: that this ComfyUI knows, "--reserve-vram"; empty when none was found.
        no_accelerator: whether torch sees nothing but the processor.
        windows: whether it runs there.
    """

    total: int = 0
    free: int = 0
    capability: tuple[int, int] | None = None
    allocator_settings: str = ""
    log: SessionLog = field(default_factory=SessionLog)
    flags: frozenset[str] = frozenset()
    no_accelerator: bool = False
    windows: bool = False


@dataclass(frozen=True)
class Advice:
    """One thing worth knowing or changing.

    Attributes:
        text: what was found, what to do, why.
        flags: of ComfyUI that do it, each with its value: ("--reserve-vram 4",).
        variables: of the environment that do it: (("NAME", "value"),).
    """

    text: str
    flags: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def launch_advice(facts: LaunchFacts) -> list[Advice]:
    """What to change about the start of ComfyUI, most important first; empty when nothing was found."""
    found = (
        *(_processor, _partial_loads, _memory_errors, _fragmentation),
        *(_memory_state, _card_in_use, _allocator, _fp8, _extensions, _compilers),
    )
    return [advice for look in found for advice in look(facts)]


def _processor(facts: LaunchFacts) -> Iterable[Advice]:
    if facts.no_accelerator:
        yield Advice("without an accelerator ComfyUI starts only with --cpu", ("--cpu",))


def _partial_loads(facts: LaunchFacts) -> Iterable[Advice]:
    """The case that makes steps nearly twice as long: a model that almost fits."""
    log = facts.log
    if log.partial_loads:
        worst = max(log.partial_loads, key=lambda load: load.offloaded)
        name = f"a model ({worst.model})" if worst.model else "a model"
        yield Advice(
            f"in ComfyUI's last session {name} did not fit: {worst.loaded / GIB:.1f} GiB on the card, "
            f"{worst.offloaded / GIB:.1f} GiB fetched anew in every step. Turn off what takes memory beside it "
            "(torch.compile first), use fewer frames or fp8 weights; compare settings with "
            "Benchmark Optimizations or the command bench"
        )
    name, staged = max(log.staged, key=lambda one: one[1], default=("", 0))
    if facts.total and staged > facts.total:
        yield Advice(
            f"in ComfyUI's last session a model ({name}) of {staged / GIB:.1f} GiB was paged onto a card with "
            f"{facts.total / GIB:.1f} GiB: what does not fit is fetched anew in every step. fp8 weights take half of it"
        )
    if log.unloads:
        yield Advice(
            f"in ComfyUI's last session {max(log.unloads) / GIB:.1f} GiB of a model were pushed off the card to make "
            "room. Where that happens while it is in use, a larger --reserve-vram leaves the room from the start"
        )
    elif log.partial_loads:
        yield Advice(
            "if it fits at first and is pushed off during the run, start ComfyUI with a larger --reserve-vram: that "
            "memory is left for activations; if it never fits, with a smaller one"
        )


def _memory_errors(facts: LaunchFacts) -> Iterable[Advice]:
    errors = [error for error in facts.log.memory_errors if not error.where]
    retried = [error.where for error in facts.log.memory_errors if error.where]
    if retried:
        yield Advice(
            f"in ComfyUI's last session memory ran out in {retried[0]} and it was done again in tiles: choose tiles "
            "from the start (VAE Decode (Fast) finds the size that fits), and the failed try is saved"
        )
    short = max((error for error in errors if not fragmented(error, facts.total)), key=_missing, default=None)
    if short is None:
        return
    missing = _missing(short)
    if not missing:
        yield Advice("in ComfyUI's last session memory ran out: fewer frames, a smaller picture or tiles take less")
        return
    reserve = math.ceil(missing / GIB + RESERVED_BY_DEFAULT)
    yield Advice(
        f"in ComfyUI's last session memory ran out: {short.asked / GIB:.1f} GiB were asked for with "
        f"{short.free / GIB:.1f} GiB free. --reserve-vram {reserve} keeps that much free of weights, for activations",
        (f"--reserve-vram {reserve}",),
    )


def _missing(error: OutOfMemory) -> int:
    return max(0, error.asked - error.free) if error.asked else 0


def fragmented(error: OutOfMemory, total: int) -> bool:
    """Whether memory ran out although torch held enough of it that no tensor used."""
    unused = error.reserved - error.allocated
    return unused >= max(FRAGMENTED_BYTES, FRAGMENTED_SHARE * total) and error.allocated > 0


def _fragmentation(facts: LaunchFacts) -> Iterable[Advice]:
    seen = [error for error in facts.log.memory_errors if fragmented(error, facts.total)]
    if not seen:
        return
    worst = max(seen, key=lambda error: error.reserved - error.allocated)
    found = (
        f"when memory ran out in ComfyUI's last session, torch held {worst.reserved / GIB:.1f} GiB and used "
        f"{worst.allocated / GIB:.1f} GiB of it: the rest lies in pieces (fragmentation). "
    )
    asynchronous = facts.log.allocator == "cudaMallocAsync"
    if facts.windows:
        cure = "Restart ComfyUI between sizes that differ much" if asynchronous else "--cuda-malloc avoids most of it"
        yield Advice(found + cure, () if asynchronous else ("--cuda-malloc",))
    elif "expandable_segments:True" in facts.allocator_settings and not asynchronous:
        yield Advice(found + "Expandable segments are on already: restart ComfyUI between sizes that differ much")
    else:
        name, value = EXPANDABLE.split("=")
        yield Advice(
            f"{found}{EXPANDABLE} with --disable-cuda-malloc lets its pieces grow together; restarting gives it back",
            ("--disable-cuda-malloc",),
            ((name, value),),
        )


def _memory_state(facts: LaunchFacts) -> Iterable[Advice]:
    """Nothing to add to the start: to leave a flag out is the cure. --normalvram is gone from newer ones."""
    state = facts.log.vram_state
    normal = "--normalvram" in facts.flags
    ignored = state == "LOW_VRAM" and facts.log.dynamic  # DynamicVRAM heeds no --lowvram
    if state in ("LOW_VRAM", "NO_VRAM") and facts.total >= 12 * GIB and not ignored:
        yield Advice(
            f"ComfyUI ran in {state} on a card with {facts.total / GIB:.0f} GiB: without --lowvram or --novram "
            f"{'(or with --normalvram) ' if normal else ''}models stay on the card as far as they fit",
            ("--normalvram",) if normal else (),
        )
    if state == "HIGH_VRAM" and facts.total < 40 * GIB:
        yield Advice(
            f"ComfyUI ran in HIGH_VRAM on a card with {facts.total / GIB:.0f} GiB: nothing is unloaded, so the text "
            f"encoder stands in the way of the denoiser; start it {'with --normalvram' if normal else 'without it'}",
            ("--normalvram",) if normal else (),
        )


def _card_in_use(facts: LaunchFacts) -> Iterable[Advice]:
    held = facts.total - facts.free
    if facts.total and held > 0.1 * facts.total:
        yield Advice(
            f"{held / GIB:.1f} GiB of the card's {facts.total / GIB:.1f} GiB are in use right now: close what else "
            "runs on it, or give the desktop to another card"
        )


def _allocator(facts: LaunchFacts) -> Iterable[Advice]:
    expandable = "expandable_segments:True" in facts.allocator_settings
    asynchronous = "cudaMallocAsync" in (facts.log.allocator, *re.split("[:,]", facts.allocator_settings))
    if any(fragmented(error, facts.total) for error in facts.log.memory_errors):
        return  # said, with what to do
    if expandable and asynchronous:
        yield Advice(
            "expandable_segments has no effect beside cudaMallocAsync: keep one of the two (--disable-cuda-malloc with "
            "expandable_segments, or ComfyUI's default --cuda-malloc without it)"
        )
    elif facts.log.allocator == "native" and not expandable:
        other = "" if facts.windows else f", or set {EXPANDABLE}"
        yield Advice(
            "ComfyUI ran with torch's own allocator, which fragments when sizes change: start it with --cuda-malloc"
            + other,
            ("--cuda-malloc",),
        )


def _fp8(facts: LaunchFacts) -> Iterable[Advice]:
    """Arithmetic only: weights in two bytes, and in one."""
    half, eighth = 2 * LARGE_EXPERT, LARGE_EXPERT
    if facts.capability is None or not eighth < facts.total < 1.5 * half:
        return
    speed = "and multiplies in fp8" if facts.capability >= (8, 9) else "though it cannot multiply in fp8"
    yield Advice(
        f"a 14-billion-parameter model takes {half / GIB:.0f} GiB in bfloat16 and {eighth / GIB:.0f} GiB in fp8; this "
        f"card has {facts.total / GIB:.0f} GiB {speed}: choose fp8 weights for models of that size"
    )


def _extensions(facts: LaunchFacts) -> Iterable[Advice]:
    slow = [(seconds, name) for seconds, name in facts.log.imports if seconds >= SLOW_IMPORT_SECONDS]
    if slow:
        listed = ", ".join(f"{name} {seconds:.1f} s" for seconds, name in slow[:5])
        yield Advice(f"these extensions made ComfyUI's last start longer: {listed}. Disable those that are not needed")
    if facts.log.failed_imports:
        yield Advice(f"these extensions failed to load: {', '.join(facts.log.failed_imports)}. Update or remove them")


def _compilers(facts: LaunchFacts) -> Iterable[Advice]:
    if "--disable-comfy-compiler" in facts.flags:
        yield Advice(
            "nothing to do about the Comfy Compiler: it works within the forward of ComfyUI's own models, which a "
            "diffusers pipeline is not, so that the two never compile the same thing"
        )

"""Advice on how ComfyUI is started, from facts that anybody can check: its log, the card, the allocator's settings.

Pure functions: text and figures in, sentences out. Each sentence says what was found, what to do, and why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .environment import GIB

MIB = 2**20

SLOW_IMPORT_SECONDS = 2.0
"""An extension that takes longer to load is worth a word."""
LARGE_EXPERT = 14_000_000_000
"""Parameters of one Wan 2.2 expert, the model that the memory of a card is most often short of."""


@dataclass(frozen=True)
class PartialLoad:
    """A model that did not fit: bytes on the card, and bytes that every step has to fetch."""

    loaded: int
    offloaded: int


@dataclass(frozen=True)
class SessionLog:
    """What a log of ComfyUI says about its last session.

    Attributes:
        vram_state: "NORMAL_VRAM", "LOW_VRAM", ..., "" when the log does not say.
        allocator: "cudaMallocAsync", "native", or "".
        partial_loads: each time a model did not fit.
        imports: (seconds, name) of each extension, slowest first.
        failed_imports: names of extensions that did not load.
    """

    vram_state: str = ""
    allocator: str = ""
    partial_loads: tuple[PartialLoad, ...] = ()
    imports: tuple[tuple[float, str], ...] = ()
    failed_imports: tuple[str, ...] = ()


_START = re.compile(r"^(?:\[.*?\] )?Total VRAM ", re.MULTILINE)
_STATE = re.compile(r"Set vram state to: (\w+)")
_ALLOCATOR = re.compile(r"Device: cuda\S* .* : (\w+)")
_PARTIAL = re.compile(r"loaded partially;.*?([\d.]+) MB loaded, ([\d.]+) MB offloaded")
_IMPORT = re.compile(r"^.*?([\d.]+) seconds( \(IMPORT FAILED\))?: (.+?)\s*$", re.MULTILINE)


def read_log(text: str) -> SessionLog:
    """The last session in the text of a ComfyUI log; older sessions in the same file are passed over."""
    starts = [match.start() for match in _START.finditer(text)]
    session = text[starts[-1] :] if starts else text
    state, allocator = _STATE.search(session), _ALLOCATOR.search(session)
    found = [(float(seconds), bool(failed), _name(path)) for seconds, failed, path in _IMPORT.findall(session)]
    return SessionLog(
        vram_state=state[1] if state else "",
        allocator=allocator[1] if allocator else "",
        partial_loads=tuple(
            PartialLoad(int(float(loaded) * MIB), int(float(away) * MIB)) for loaded, away in _PARTIAL.findall(session)
        ),
        imports=tuple(sorted(((seconds, name) for seconds, _, name in found), reverse=True)),
        failed_imports=tuple(name for _, failed, name in found if failed),
    )


def _name(path: str) -> str:
    return re.split(r"[\\/]", path.strip().rstrip("\\/"))[-1]


@dataclass(frozen=True)
class LaunchFacts:
    """What the advice looks at.

    Attributes:
        total, free: bytes of the card; 0 without one.
        capability: compute capability of an NVIDIA card, (8, 9); None without one.
        allocator_settings: value of PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF.
        log: of ComfyUI's last session.
        comfy_compiler: whether this ComfyUI has the Comfy Compiler (0.35 and newer).
    """

    total: int = 0
    free: int = 0
    capability: tuple[int, int] | None = None
    allocator_settings: str = ""
    log: SessionLog = SessionLog()
    comfy_compiler: bool = False


def launch_advice(facts: LaunchFacts) -> list[str]:
    """What to change about the start of ComfyUI, most important first; empty when nothing was found."""
    found = (_partial_loads, _memory_state, _allocator, _fp8, _extensions, _compilers)
    return [sentence for look in found for sentence in look(facts)]


def _partial_loads(facts: LaunchFacts) -> Iterable[str]:
    """The case that makes steps nearly twice as long: a model that almost fits."""
    if not facts.log.partial_loads:
        return
    worst = max(facts.log.partial_loads, key=lambda load: load.offloaded)
    yield (
        f"in ComfyUI's last session a model did not fit: {worst.loaded / GIB:.1f} GiB on the card, "
        f"{worst.offloaded / GIB:.1f} GiB fetched anew in every step. Turn off what takes memory beside it "
        "(torch.compile first), use fewer frames or fp8 weights; compare settings with "
        "Benchmark Optimizations or the command bench"
    )
    yield (
        "if it fits at first and is pushed off during the run, start ComfyUI with a larger --reserve-vram: that memory "
        "is left for activations; if it never fits, with a smaller one"
    )


def _memory_state(facts: LaunchFacts) -> Iterable[str]:
    state = facts.log.vram_state
    if state in ("LOW_VRAM", "NO_VRAM") and facts.total >= 12 * GIB:
        yield (
            f"ComfyUI ran in {state} on a card with {facts.total / GIB:.0f} GiB: without --lowvram or --novram "
            "(or with --normalvram) models stay on the card as far as they fit"
        )
    if state == "HIGH_VRAM" and facts.total < 40 * GIB:
        yield (
            f"ComfyUI ran in HIGH_VRAM on a card with {facts.total / GIB:.0f} GiB: nothing is unloaded, so the text "
            "encoder stands in the way of the denoiser; start it with --normalvram"
        )
    held = facts.total - facts.free
    if facts.total and held > 0.1 * facts.total:
        yield (
            f"{held / GIB:.1f} GiB of the card's {facts.total / GIB:.1f} GiB are in use right now: close what else "
            "runs on it, or give the desktop to another card"
        )


def _allocator(facts: LaunchFacts) -> Iterable[str]:
    expandable = "expandable_segments:True" in facts.allocator_settings
    asynchronous = "cudaMallocAsync" in (facts.log.allocator, *re.split("[:,]", facts.allocator_settings))
    if expandable and asynchronous:
        yield (
            "expandable_segments has no effect beside cudaMallocAsync: keep one of the two (--disable-cuda-malloc with "
            "expandable_segments, or ComfyUI's default --cuda-malloc without it)"
        )
    elif facts.log.allocator == "native" and not expandable:
        yield (
            "ComfyUI ran with torch's own allocator, which fragments when sizes change: start it with --cuda-malloc, "
            "or set PYTORCH_ALLOC_CONF=expandable_segments:True"
        )


def _fp8(facts: LaunchFacts) -> Iterable[str]:
    """Arithmetic only: weights in two bytes, and in one."""
    half, eighth = 2 * LARGE_EXPERT, LARGE_EXPERT
    if facts.capability is None or not eighth < facts.total < 1.5 * half:
        return
    speed = "and multiplies in fp8" if facts.capability >= (8, 9) else "though it cannot multiply in fp8"
    yield (
        f"a 14-billion-parameter model takes {half / GIB:.0f} GiB in bfloat16 and {eighth / GIB:.0f} GiB in fp8; this "
        f"card has {facts.total / GIB:.0f} GiB {speed}: choose fp8 weights for models of that size"
    )


def _extensions(facts: LaunchFacts) -> Iterable[str]:
    slow = [(seconds, name) for seconds, name in facts.log.imports if seconds >= SLOW_IMPORT_SECONDS]
    if slow:
        listed = ", ".join(f"{name} {seconds:.1f} s" for seconds, name in slow[:5])
        yield f"these extensions made ComfyUI's last start longer: {listed}. Disable those that are not needed"
    if facts.log.failed_imports:
        yield f"these extensions failed to load: {', '.join(facts.log.failed_imports)}. Update or remove them"


def _compilers(facts: LaunchFacts) -> Iterable[str]:
    if facts.comfy_compiler:
        yield (
            "nothing to do about the Comfy Compiler: it works within the forward of ComfyUI's own models, which a "
            "diffusers pipeline is not, so that the two never compile the same thing"
        )

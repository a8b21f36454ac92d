"""Compiled slices against plain ones of the same shape: whichever is faster runs.

The first slices are run both ways, one right after the other and on the same input, until it is clear. Runs in which
anything was compiled do not count. What was found is kept for later processes, which then neither check nor try again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

from ..cache_folder import device_name
from .kernels.saved_choices import FILE_NAME, SAVED

ENOUGH = 2
"""Pairs that end a trial when all of them differ clearly."""
AT_MOST = 5
"""Pairs after which a trial ends; they must all point the same way then, which chance does in 1 of 16 cases."""
CLEARLY = 1.1
"""Factor between the two of a pair that is a clear difference."""
EARLIER = f", in an earlier process ({FILE_NAME} in the cache folder keeps it; without that file it is tried again)"


class SpeedTrial:
    """The trial of slices of one height and width, of any number of frames: the two of a pair have the same.

    Attributes:
        plain, compiled: seconds of the pairs so far.
        verdict: "" as long as it lasts, then "faster" or "slower" of compiled code, or "noise".
        earlier: whether another process has found it.
    """

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.compiled: list[float] = []
        self.verdict = ""
        self.earlier = False

    @property
    def reverted(self) -> bool:
        """Whether plain code runs from now on: compiling has to be worth it."""
        return self.verdict in ("slower", "noise")

    def add(self, plain: float, compiled: float) -> None:
        """Take the seconds of one slice, run warm both ways."""
        if self.verdict:
            return
        self.plain.append(plain)
        self.compiled.append(compiled)
        ratios = [c / max(p, 1e-9) for p, c in zip(self.plain, self.compiled, strict=True)]
        limit = CLEARLY if len(ratios) < AT_MOST else 1.0
        if len(ratios) >= ENOUGH and min(ratios) > limit:
            self.verdict = "slower"
        elif len(ratios) >= ENOUGH and max(ratios) < 1 / limit:
            self.verdict = "faster"
        elif len(ratios) >= AT_MOST:
            self.verdict = "noise"

    def __str__(self) -> str:
        """What a report says of it; "" before the first pair. The seconds are of all pairs together."""
        if not self.plain:
            return ""
        plain, compiled, count = sum(self.plain), sum(self.compiled), len(self.plain)
        slices = "one slice" if count == 1 else f"{count} slices"
        change = compiled / max(plain, 1e-9) - 1
        figures = f"{slices} took {plain:.3g} s plain, {compiled:.3g} s compiled ({change:+.0%})"
        said = {
            "faster": "compiled slices are faster and kept",
            "slower": "compiled slices are slower, so plain ones run",
            "noise": "compiled slices differ by no more than the noise, so plain ones run",
            "": "compiled slices run, not yet judged",
        }
        return f"{said[self.verdict]}: {figures}{EARLIER if self.earlier else ''}"


class Findings:
    """What was found of one network's compiled code, kept for later processes with the same device and versions.

    Args:
        identity: of the network, its options and settings, the same in every process; None keeps nothing.
    """

    def __init__(self, identity: tuple[str, ...] | None) -> None:
        self._identity = identity

    def _key(self, what: str, of: object, device: torch.device) -> tuple[str, ...] | None:
        if self._identity is None or SAVED.path is None:
            return None
        return (f"compiled code {what}", *self._identity, repr(of), device_name(device))

    def trial(self, of: object, device: torch.device) -> SpeedTrial:
        """A trial that has ended in an earlier process, else a new one."""
        trial, key = SpeedTrial(), self._key("trial", of, device)
        saved = None if key is None else SAVED.get(key)
        if saved is not None:
            trial.verdict, trial.plain, trial.compiled = json.loads(saved)
            trial.earlier = True
        return trial

    def keep(self, trial: SpeedTrial, of: object, device: torch.device) -> None:
        """Keep a trial that has ended."""
        key = self._key("trial", of, device)
        if key is not None and trial.verdict and not trial.earlier:
            SAVED.put(key, json.dumps([trial.verdict, trial.plain, trial.compiled]))

    def sound(self, of: object, device: torch.device) -> bool:
        """Whether an earlier process has compared the values that this kind of slice gives."""
        key = self._key("sound", of, device)
        return key is not None and SAVED.get(key) is not None

    def keep_sound(self, of: object, device: torch.device) -> None:
        key = self._key("sound", of, device)
        if key is not None and SAVED.get(key) is None:
            SAVED.put(key, "compared")


def code_made() -> int:
    """How often inductor has made code in this process, rather than found it on disk as it was compared."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_bypass"])


def timed(call: Callable[[], torch.Tensor], device: torch.device) -> tuple[torch.Tensor, float]:
    """What `call` returns and the seconds it took on `device`, what it queued there included."""
    _wait(device)
    began = time.perf_counter()
    made = call()
    _wait(device)
    return made, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def recording() -> bool:
    """Whether a CUDA graph is being recorded, which nothing may wait for."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

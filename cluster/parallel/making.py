"""One batch, made by all processes of a group together. Each of them does the same, with the same seeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...cache_folder import use_folder
from ...callbacks import Callbacks, Progress
from ...optimizations.settings import OptimizationSettings
from ...optimizations.tuning.candidates import STEP_STAGE
from ...pipelines.cache import CACHE
from ...pipelines.generate import check_before_load, run_loaded
from ...pipelines.loading.loader import family_of_key
from ...pipelines.lora import check_loras
from ...pipelines.requests import ready
from ...pipelines.types import LoadedPipeline, PipelineHandle, SampleRequest, SampleResult
from ...report import OptimizationRecord
from .. import parcel
from ..batch import BATCH
from ..worker import Stopped
from .choice import AUTO, NAME, uneven, without_branches
from .gate import Gates, Verdicts
from .group import Group
from .holding import held
from .probation import Probation
from .remembered import Remembered, because, how_split, on_device
from .tiles import SharedTiles

WHOLE, SPLIT, STOP = 0.0, 1.0, 2.0
"""What the first process tells the others at each step."""
UNEVEN = "must be divisible"
"""In diffusers' error about a tensor that cannot be shared equally."""
WITHOUT = "a denoiser that is split over several processes goes without it"


class Maker:
    """Makes batches in one process of a group.

    Args:
        group: as this process sees it.
        parallel: "ulysses", "cfg" or "auto".
    """

    def __init__(self, group: Group, parallel: str) -> None:
        self._group, self._parallel = group, parallel
        self._probations: dict[object, Probation] = {}
        self._verdicts: dict[object, Verdicts] = {}

    def make(
        self, folder: Path, show: Callable[[Progress], None], cancelled: Callable[[], bool], previews: bool
    ) -> SampleResult:
        """Make the batch in a folder of a run.

        Args:
            show: told of progress.
            cancelled: whether to stop. While the model is read, each process asks its own; then the first alone is
                asked, at each step, and says it to the others.
            previews: whether `show` has a use for them.

        Returns:
            The result; frames in the first process alone.

        Raises:
            Stopped: it was cancelled; all processes have stopped at the same step.
            Exception: whatever stops the run. The others may wait for this process then: it has to end.
        """
        handle, request, settings, measurements = parcel.read(folder / BATCH)
        if measurements:
            use_folder(Path(measurements))
        handle = on_device(handle, str(self._group.device))
        family = family_of_key(handle.key)
        check_before_load(handle.key, ready(family, request), handle.loras)
        check_loras(handle.loras)
        if self._group.rank and not family.known:
            request = replace(request, decode=False)  # such a pipeline decodes by itself
        before = CACHE.peek(handle.key)
        loading = Callbacks(show, _stops(cancelled), previews=False)
        try:
            with CACHE.use(handle.key, loading) as loaded:
                if self._group.most(0.0):
                    raise Stopped
                result = self._run(loaded, handle, request, settings, show, cancelled, previews)
        except _StoppedLoading:
            self._group.most(1.0)
            raise Stopped from None
        if loaded is not before:
            result.report.timed({"load": loaded.facts.get("load_seconds", 0.0)} | result.report.facts["seconds"])
        return result

    def _run(
        self,
        loaded: LoadedPipeline,
        handle: PipelineHandle,
        request: SampleRequest,
        settings: OptimizationSettings,
        show: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        previews: bool,
    ) -> SampleResult:
        completed = ready(loaded.family, request)
        guided = not without_branches(loaded.family, completed)
        verdicts = self._verdicts.setdefault((handle, settings), {})
        gates = Gates(loaded.pipeline, self._group, verdicts, self._parallel, request.batch)
        probation = remembered = None
        if self._parallel == AUTO:
            size = (request.width, request.height, request.num_frames, request.batch)
            probation = self._probations.setdefault((handle, settings, size, guided), Probation())
            remembered = self._remembered(gates, handle, completed, settings, guided)
            if remembered is not None and not probation.verdict and (row := remembered.row()) is not None:
                probation.recall(row.verdict, because(row))
            probation.begin()
        steps = _Steps(self._group, loaded.pipeline, gates, probation, show, cancelled)
        tiles = SharedTiles(self._group)
        with gates.held():
            result = run_loaded(loaded, handle, request, without(settings), steps.callbacks(previews), sharing=tiles)
        if probation is not None and remembered is not None and probation.verdict and not probation.kept:
            remembered.keep(probation)
            probation.kept = True
        pixels = (completed.width or 0, completed.height or 0, completed.num_frames or 1)
        self._report(result, gates, probation, settings, uneven(loaded.family, *pixels, self._group.size))
        self._report_work(result, tiles, steps.holds, texts=completed.positive is None)
        return result

    def _remembered(
        self, gates: Gates, handle: PipelineHandle, request: SampleRequest, settings: OptimizationSettings, guided: bool
    ) -> Remembered | None:
        """What the store knows and is told of such runs; nothing in the others, which do as the first one says."""
        if self._group.rank or not (ways := gates.possible()):
            return None
        how = how_split(" and ".join(ways), self._group.size, self._group.device.type == "cuda", guided)
        return Remembered(handle, request, without(settings), how)

    def _report(
        self,
        result: SampleResult,
        gates: Gates,
        probation: Probation | None,
        asked: OptimizationSettings,
        uneven: str,
    ) -> None:
        report, count = result.report, self._group.size
        reasons, worst = gates.reasons(), gates.worst()
        if uneven:
            reasons = list(dict.fromkeys(uneven if UNEVEN in reason else reason for reason in reasons))
        applied = "off"
        if gates.split:
            kind = "cards" if self._group.device.type == "cuda" else "processes"
            part = "" if not gates.whole else f", {gates.split} of {gates.split + gates.whole} calls"
            applied = f"{' and '.join(gates.ways)} over {count} {kind}{part}"
        told = [] if probation is None else [probation.reason]
        if worst is not None:
            told.append(f"a split call was {worst.difference:.2g} off one process, at most {worst.bound:.2g} is taken")
        told += reasons or ([] if gates.split or probation else ["the run has called no denoiser"])
        failed = not gates.split and self._parallel != AUTO
        report.set(OptimizationRecord(NAME, self._parallel, applied, "; ".join(told), failed=failed))
        report.facts[NAME] = {"devices": self._group.names, "trials": gates.tried}
        for name in ("attention", "torch_compile", "step_cache"):
            wanted = getattr(asked, name)
            if name in report and wanted != report[name].requested:
                report.update(name, requested=wanted, reason=WITHOUT, failed=wanted != "auto")

    def _report_work(self, result: SampleResult, tiles: SharedTiles, holds: list[str], texts: bool) -> None:
        """What each process has on its card, and who has done what beside the denoiser's calls."""
        decoded = tiles.record(self._group.names, self._group.alike)
        work = ["each process encodes the texts"] if texts else []
        if decoded is not None:
            result.report.set(decoded)
        if result.frames is not None:
            shared = decoded is not None and decoded.applied != "off"
            work.append("all decode" if shared else "the first one decodes")
        result.report.facts[NAME] |= {"holds": holds, "work": work}


def without(settings: OptimizationSettings) -> OptimizationSettings:
    """The settings without what splits badly: other attention, compiled code, and step caches, whose decisions rest on
    what each process sees of the picture."""
    return replace(settings, attention="sdpa", torch_compile="off", step_cache="off")


class _StoppedLoading(BaseException):
    """Cancelled while the model was read."""


def _stops(cancelled: Callable[[], bool]) -> Callable[[], None]:
    def check() -> None:
        if cancelled():
            raise _StoppedLoading

    return check


class _Steps:
    """The steps of one run, which all processes take together.

    Attributes:
        holds: what each process had on its card at the first of them.
    """

    def __init__(
        self,
        group: Group,
        pipeline: Any,
        gates: Gates,
        probation: Probation | None,
        show: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._group, self._gates, self._probation = group, gates, probation
        self._show, self._cancelled = show, cancelled
        self._pipeline = pipeline
        self.holds: list[str] = []
        self._stop = False
        self._stage = ""
        self._tried = self._split = 0
        gates.wanted = self._tell() == SPLIT
        self._since = time.perf_counter()

    def callbacks(self, previews: bool) -> Callbacks:
        return Callbacks(self._on_progress, self._check, previews=previews)

    def _tell(self) -> float:
        """What the first process says, to all."""
        said = WHOLE
        if self._group.rank == 0:
            said = SPLIT if self._probation is None or self._probation.wants_split else WHOLE
            said = STOP if self._cancelled() else said
        told = self._group.most(said)
        self._stop = told == STOP
        return told

    def _on_progress(self, progress: Progress) -> None:
        self._stage = progress.stage
        if progress.stage == STEP_STAGE:
            # Here all are at the same place; behind the last step the first one may decode for long, or be cancelled.
            self.holds = self.holds or self._group.every(held(self._pipeline))
            if self._probation is not None:
                self._measure(self._probation)
            self._gates.wanted = self._tell() == SPLIT
        self._show(progress)
        self._since = time.perf_counter()

    def _check(self) -> None:
        # There is no step to stop at together while it decodes: each process asks, and `SharedTiles` tells the others.
        if self._stop or (self._stage.startswith("decode") and self._cancelled()):
            raise Stopped

    def _measure(self, probation: Probation) -> None:
        if self._group.device.type == "cuda":
            torch.cuda.synchronize(self._group.device)
        seconds = time.perf_counter() - self._since
        gates = self._gates
        tried, self._tried = self._tried, gates.tried
        split, self._split = self._split, gates.split
        if gates.hopeless:
            probation.failed()
        # A step that was to be split, in which no call could be, tells nothing of split ones.
        counts = tried == gates.tried and (split < gates.split or not gates.wanted)
        probation.on_step(seconds, gates.wanted, counts)

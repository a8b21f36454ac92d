"""Run a comparison: whole jobs through the same door that nodes and the command line use, measured in pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import date

import torch

from ..callbacks import SILENT, Callbacks
from ..errors import FastDiffusersError, InputError
from ..optimizations import attention
from ..optimizations.settings import OptimizationSettings, Workload
from ..optimizations.tuning.candidates import Candidate, Outcome, Plan
from ..optimizations.tuning.key import label
from ..optimizations.tuning.measure import PairedMeasurement, duration
from ..optimizations.tuning.meters import DeviceMemoryMeter, MemoryMeter, Stopwatch, stopwatch
from ..optimizations.tuning.statistics import CONFIDENCE
from ..optimizations.tuning.store import Row, Store
from ..pipelines import lora
from ..pipelines.cache import CACHE
from ..pipelines.families import Family
from ..pipelines.generate import generate, workload_of
from ..pipelines.tuning_key import tuning_key
from ..pipelines.types import LoadedPipeline, PipelineHandle, SampleRequest, SampleResult
from .choices import PLAIN, combine, settings_of
from .result import Comparison
from .row import ComparisonRow

logger = logging.getLogger(__name__)

Generate = Callable[[PipelineHandle, SampleRequest, OptimizationSettings, Callbacks], SampleResult]
Borrow = Callable[..., AbstractContextManager[LoadedPipeline]]


class FellBackError(FastDiffusersError):
    """A choice could not be had, so its run was a plain one: there is nothing to compare."""


class ComparisonRun:
    """One comparison: from names to a `Comparison`, with what was measured kept through a cancel.

    >>> comparison = ComparisonRun(handle, SampleRequest("a fox", steps=8), parse("compile,xformers"), Plan())
    >>> comparison.run(callbacks)
    >>> comparison.result().verdict
    'Use compile: 21% less time (3.2 -> 2.53 s).'

    Args:
        handle: the pipeline.
        request: the work. Where the model needs a picture and none is given, a drawn one is used.
        names: what to compare, plain first (see `choices.parse`).
        plan: how much to measure; its `steps` are filled in.
        base: plain settings with what shall hold for all: compile details, tile size.
        store: where what is learnt is kept; None keeps nothing.
        combine_winners: measure the winners of different kinds together afterwards.
        notes: what to know of the work when reading the result.
        others: further pipelines to compare with the plain one, each under the name that a compared name begins with:
            "fp8" runs on `others["fp8"]`, and so does "fp8+compile", compiled. Nothing is remembered of them.
        generate, borrow, watch, memory: how jobs are run, pipelines borrowed, time and memory read.

    Raises:
        InputError: from `run`: bad request, model that cannot be loaded, a time limit below one run.
    """

    def __init__(
        self,
        handle: PipelineHandle,
        request: SampleRequest,
        names: Sequence[str],
        plan: Plan,
        *,
        base: OptimizationSettings | None = None,
        store: Store | None = None,
        combine_winners: bool = False,
        notes: Sequence[str] = (),
        others: Mapping[str, PipelineHandle] | None = None,
        generate: Generate = generate,
        borrow: Borrow = CACHE.use,
        watch: Stopwatch | None = None,
        memory: MemoryMeter | None = None,
    ) -> None:
        self._handle, self._request, self._plan = handle, request, plan
        self._base = handle.placing(base or OptimizationSettings.plain())
        self._others = dict(others or {})
        self._settings = {name: settings_of(self._place(name)[1], self._base) for name in names}
        self._store, self._combine, self._notes = store, combine_winners, tuple(notes)
        self._generate, self._borrow = generate, borrow
        self._device = torch.device(handle.key.device)
        self._stopwatch = watch or stopwatch(self._device)
        self._memory = memory or DeviceMemoryMeter(self._device)
        self._measurements: list[PairedMeasurement] = []
        self._loaded: LoadedPipeline | None = None
        self._asked = self._made = Workload()

    @property
    def started(self) -> bool:
        """Whether a first run was completed: before that there is nothing to show."""
        return any(measurement.plain.first is not None for measurement in self._measurements)

    def run(self, callbacks: Callbacks = SILENT) -> None:
        """Load, measure, and remember. A cancel travels unchanged; `result()` then holds what was measured."""
        lora.check_loras(self._handle.loras)
        with self._borrow(self._handle.key, callbacks) as loaded:
            self._loaded = loaded
            self._request = with_picture(self._request, loaded.family)
            self._asked = workload_of(loaded, self._request)
            steps = self._asked.steps or 1
            try:
                first = self._measure(list(self._settings), replace(self._plan, steps=steps), callbacks)
                together = self._winners_together() if self._combine else None
                if together is not None and not first.stopped.startswith("the time limit"):
                    self._settings[together] = settings_of(together, self._base)
                    left = self._plan.time_limit and max(1.0, self._plan.time_limit - first.elapsed)
                    self._measure([PLAIN, together], replace(self._plan, steps=steps, time_limit=left), callbacks)
            finally:
                self._remember()

    def _place(self, name: str) -> tuple[PipelineHandle, str]:
        """The pipeline that a name runs on, and the settings that the name stands for there."""
        first, _, rest = name.partition("+")
        return (self._others[first], rest or PLAIN) if first in self._others else (self._handle, name)

    def _measure(self, names: list[str], plan: Plan, callbacks: Callbacks) -> PairedMeasurement:
        candidates = [Candidate(name, self._runner(name)) for name in names]
        measurement = PairedMeasurement(candidates, plan, self._stopwatch, self._memory)
        self._measurements.append(measurement)
        try:
            measurement.run(callbacks)
        except InputError as error:
            if error.name == "time_limit" and len(self._measurements) > 1:  # what was measured before is kept
                return measurement
            raise
        return measurement

    def _runner(self, name: str) -> Callable[[Callbacks], Outcome]:
        handle, settings = self._place(name)[0], self._settings[name]

        def run(callbacks: Callbacks) -> Outcome:
            result = self._generate(handle, self._request, settings, callbacks)
            check_active(result, settings)
            if result.frames is not None:
                batch, frames, height, width, _ = result.frames.shape
                self._made = Workload(width, height, frames, batch, len(result.step_seconds))
            facts = result.report.facts
            moved = facts.get("moved_bytes", {"on": 0, "off": 0} if self._device.type == "cpu" else None)
            return Outcome(
                result.outcome,
                result.stage_seconds,
                tuple(result.step_seconds),
                result.report,
                offloaded_bytes=facts.get("offloaded_bytes"),
                step_experts=result.step_experts,
                moved=None if moved is None else (moved["on"], moved["off"]),
            )

        return run

    def _winners_together(self) -> str | None:
        """The winners of different kinds, joined; None when there is at most one, or they were measured already."""
        rows = self.result().rows
        winners = sorted(
            (row for row in rows if row.verdict == "faster" and row.lossless),
            key=lambda row: row.run.median if row.run else 0.0,
        )
        together = combine(row.name for row in winners)
        return None if together in self._settings else together

    def result(self) -> Comparison:
        """What was measured so far."""
        rows: list[ComparisonRow] = []
        notes = list(self._notes)
        for number, measurement in enumerate(self._measurements):
            for measured in measurement.measured[min(number, 1) :]:  # plain once, from the first measurement
                rows.append(ComparisonRow.of(measured, self._settings[measured.name], measurement.plain))
            if measurement.stopped:
                notes.append(measurement.stopped)
        if not rows:
            rows = [ComparisonRow(name, settings) for name, settings in self._settings.items()]
        plain = rows[0].quality
        if plain is not None and not plain.identical:
            notes.append("the plain run does not repeat itself exactly: quality is compared with its first result")
        if plain is not None and not plain.finite:
            notes.append("the plain run gives NaN or infinity: check the model and its dtype")
        return Comparison(tuple(rows), self._facts(), tuple(notes))

    def _facts(self) -> dict[str, str]:
        key = self._handle.key
        tuned = tuning_key(self._handle, self._asked, self._base)
        work = self._made
        shape = f"{work.width}x{work.height}" if work.width else ""
        clip = f"{work.frames} frames" if work.frames > 1 else ""
        steps = f"{work.steps} steps" if work.steps else ""
        batch = f"batch {work.batch}" if work.batch > 1 else ""
        runs = max((len(m.runs) for measurement in self._measurements for m in measurement.measured), default=0)
        elapsed = sum(measurement.elapsed for measurement in self._measurements)
        facts = {
            "model": tuned.model,
            "work": ", ".join(part for part in (shape, clip, steps, batch) if part),
            "dtype": key.dtype,
            "LoRA": lora.names(self._handle.loras),
            "quantization": "" if key.quantization == "none" else key.quantization,
            "memory mode": self._handle.memory_mode,
            "device": tuned.device,
            "measured": f"{runs} runs each, interleaved, {duration(elapsed)}, {date.today().isoformat()}",
            "load": "" if self._loaded is None else f"{self._loaded.facts.get('load_seconds', 0):.3g} s",
            "software": tuned.software,
        }
        return {name: value for name, value in facts.items() if value}

    def _remember(self) -> None:
        """Keep what is certain: plain, and every row with an interval one can rely on."""
        if self._store is None or not self.started:
            return
        tuned = tuning_key(self._handle, self._asked, self._base)
        for row in self.result().rows:
            sure = row.verdict in ("plain", "failed") or (row.versus and row.versus.confidence >= CONFIDENCE)
            if not sure or self._place(row.name)[0] is not self._handle:
                continue
            self._store.add(
                Row(
                    tuned,
                    label(row.settings),
                    row.verdict,
                    gain=0.0 if row.versus is None else row.versus.gain,
                    run_seconds=row.run.median if row.run else None,
                    step_seconds=row.step.median if row.step else None,
                    compile_seconds=row.first_run_extra if row.run else None,
                    peak_bytes=row.memory.headline,
                    lossless=row.lossless,
                    runs=row.run.runs if row.run else 0,
                    reason=row.problem,
                )
            )


def check_active(result: SampleResult, settings: OptimizationSettings) -> None:
    """Raise FellBackError when something that was asked for is not what ran."""
    asked = dict(label(settings))
    for record in result.report:
        fell_back = record.failed or (record.name in asked and record.applied in ("off", "sdpa", "none"))
        if fell_back:
            raise FellBackError(f"{record.name} fell back to {record.applied}: {record.reason or 'no reason given'}")


def with_picture(request: SampleRequest, family: Family) -> SampleRequest:
    """The request with a drawn picture where the model needs one and none was given.

    Raises:
        InputError: a picture is given to a model that could only start from it, and a comparison starts from noise.
    """
    if request.images and family.images == "none":
        reason = f"{family.name} is a text-only model, and a comparison starts from noise"
        raise InputError("image", f"{len(request.images)} image(s)", reason, "leave it out")
    if family.images != "required" or request.images:
        return request
    width, height = request.width or family.width or 512, request.height or family.height or 512
    return replace(request, images=(drawn_picture(width, height),))


def drawn_picture(width: int, height: int) -> torch.Tensor:
    """A picture with gradients, edges and fine detail, [height, width, 3] in 0..1, the same every time."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    rings = 0.5 + 0.5 * torch.cos(40 * ((x - 0.5) ** 2 + (y - 0.5) ** 2).sqrt())
    checks = ((x * 16).floor() + (y * 16).floor()) % 2
    return torch.stack((x, rings, 0.7 * y + 0.3 * checks), dim=-1)


def working(names: Iterable[str], device: torch.device, dtype: torch.dtype) -> list[str]:
    """Those choices that can be had on `device`: attention kernels are tried, the others taken as they are."""
    usable = attention.available(device, dtype)
    return [name for name in names if usable.get(name, "") == "" and not _pointless(name, device)]


def _pointless(name: str, device: torch.device) -> bool:
    """Choices that change nothing on this kind of device."""
    return device.type == "cpu" and name in ("channels-last", "cudnn-benchmark", "compile-graphs")

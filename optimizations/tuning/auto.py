"""What "auto" means in one run: decided from the store before it, put to the test during it, remembered after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from ...callbacks import Callbacks
from ...fallback import describe, is_out_of_memory
from ...memory import MemoryProbe
from ...report import OptimizationRecord, OptimizationReport
from .. import compile, offload
from ..apply import switch_compile
from ..components import denoisers
from ..settings import OptimizationSettings, Workload
from .compile_trial import Controls, Probation, State, left_the_device
from .decide import AUTO_NAMES, Decision, decide, measured_overhead, settings_label
from .history import SESSION, Session
from .key import Situation
from .meters import Stopwatch, resident_bytes, stopwatch
from .store import Row, Store, default_store

logger = logging.getLogger(__name__)


class AutoRun:
    """One run of one pipeline, from the settings as the user gave them to what is remembered of it.

    >>> auto = AutoRun(pipeline, settings, situation, workload, device)
    >>> report = apply(pipeline, auto.settings, workload=auto.workload, ...)
    >>> with active(pipeline, auto.settings, report), auto.watching(report, callbacks) as callbacks:
    ...     ...  # the run, which reports its steps through `callbacks`
    >>> auto.finish(report)

    Args:
        pipeline: a diffusers pipeline.
        settings: as the user gave them.
        situation: the key of what is measured.
        workload: of this run.
        device: where it computes.
        memory: looks at the device's memory; None asks torch.
        store: of measurements; None is the process's own.
        session: what this process has seen.
        watch: times the steps; None takes the device's.

    Attributes:
        settings: what to apply: "auto" replaced where something is known.
        workload: with what was measured of it.
    """

    def __init__(
        self,
        pipeline: Any,
        settings: OptimizationSettings,
        situation: Situation,
        workload: Workload,
        device: torch.device,
        *,
        memory: MemoryProbe | None = None,
        store: Store | None = None,
        session: Session = SESSION,
        watch: Stopwatch | None = None,
    ) -> None:
        self._pipeline, self._asked, self._situation = pipeline, settings, situation
        self._device, self._memory, self._session = device, memory, session
        self._store = store or default_store()
        self._watch = watch
        self._probation: Probation | None = None
        self._was_settled = False
        rows = self._store.rows() if _anything_auto(settings) else []
        self._decision = self._decide(rows, workload.steps)
        self.settings = self._decision.settings
        self.workload = replace(workload, compile_overhead=measured_overhead(self._on(), situation, rows))

    @contextmanager
    def watching(self, report: OptimizationReport, callbacks: Callbacks) -> Iterator[Callbacks]:
        """Hold this around the run, inside `apply.active`.

        Args:
            report: of `apply`.
            callbacks: the caller's.

        Yields:
            Callbacks for the run: the caller's, which also time the steps.
        """
        compiling = self._decision.trial or (self.settings if compile.is_compiled(self._pipeline) else None)
        if compiling is None or self._asked.torch_compile != "auto":
            yield callbacks
            self._look_at_memory(report)
            return
        key = (self._situation, settings_label(self._on()))
        probation = self._probation = self._session.probation(key, self._new_probation)
        self._was_settled = probation.settled
        watch = self._watch or stopwatch(self._device)
        with ExitStack() as stack:
            controls = Controls(
                start=lambda: self._start(report, callbacks, stack),
                revert=lambda: compile.restore(self._pipeline),
                resident=self._resident_bytes,
                broken=self._broken,
            )
            stack.callback(probation.end)
            probation.begin(self.workload.steps, controls, whole=self._whole())
            try:
                yield probation.watch(callbacks, watch, self._phase)
            except Exception as error:
                if is_out_of_memory(error) and probation.state is State.TRIAL:
                    probation.failed(f"compiled code ran out of memory: {describe(error)}")
                    self._remember(probation)
                raise
        self._look_at_memory(report)

    def finish(self, report: OptimizationReport) -> None:
        """After the run: the report says what "auto" became and why, and what was learnt is remembered."""
        for name in AUTO_NAMES:
            if name in self._decision.reasons and name in report:
                record = report[name]
                reason = "; ".join(part for part in (self._decision.reasons[name], record.reason) if part)
                report.update(name, requested="auto", reason=reason)
        if self._asked.torch_compile == "auto" and compile.NAME in report:
            self._report_compile(report)
        if not compile.is_compiled(self._pipeline):
            self._session.add_plain_steps(self._situation, self.workload.steps)

    def _decide(self, rows: list[Row], steps: int) -> Decision:
        if not _anything_auto(self._asked):
            return Decision(self._asked)
        made = self._session.plain_steps(self._situation)
        return decide(self._asked, self._situation, rows, steps, made, compile.is_compiled(self._pipeline))

    def _on(self) -> OptimizationSettings:
        """The settings of this run with compile on, whether or not it is."""
        return replace(self._decision.settings, torch_compile="on")

    def _new_probation(self) -> Probation:
        expected = self._decision.expected
        assert expected is not None  # noqa: S101 - `decide` gives it with every trial and every gain
        if self._decision.trial is None:
            return Probation.proven(expected, self._decision.reasons.get(compile.NAME, ""))
        return Probation(expected)

    def _start(self, report: OptimizationReport, callbacks: Callbacks, stack: ExitStack) -> str:
        """Compile in place for the next step; why not, or "". What compiling sets in torch holds as long as `stack`."""
        if self._decision.trial is None:
            return ""  # `apply` has done it, and `apply.active` holds what it needs
        stack.enter_context(compile.environment(self._pipeline, self._decision.trial.compile))
        record = switch_compile(
            self._pipeline,
            self._decision.trial,
            report,
            device=self._device,
            workload=self.workload,
            callbacks=callbacks,
            memory=self._memory,
        )
        return record.reason or "it was declined" if record.applied == "off" else ""

    def _broken(self) -> str:
        """Why the compiled code went back to plain by itself, or ""."""
        if compile.is_compiled(self._pipeline):
            return ""
        record = OptimizationRecord(compile.NAME, "auto", "on")
        return compile.record(self._pipeline, record, self._asked.compile).reason

    def _phase(self, step: int) -> str:
        """Which expert did a step: the scheduler's timestep against the pipeline's boundary."""
        boundary = self._pipeline.config.get("boundary_ratio")
        timesteps = getattr(self._pipeline.scheduler, "timesteps", ())
        if boundary is None or not 0 < step <= len(timesteps):
            return ""
        whole = self._pipeline.scheduler.config.get("num_train_timesteps", 1000)
        return "high noise" if float(timesteps[step - 1]) >= boundary * whole else "low noise"

    def _sizes(self) -> tuple[int, int] | None:
        """(bytes on the device, bytes) of the denoisers; None where that says nothing."""
        if self._device.type == "cpu":
            return None
        return resident_bytes(denoisers(self._pipeline).values(), self._device)

    def _whole(self) -> int | None:
        sizes = self._sizes()
        return sizes[1] if sizes is not None and offload.mode_of(self._pipeline) == "gpu" else None

    def _resident_bytes(self) -> int | None:
        sizes = self._sizes()
        return sizes[0] if sizes is not None and offload.mode_of(self._pipeline) == "gpu" else None

    def _look_at_memory(self, report: OptimizationReport) -> None:
        """What of the denoisers is off the device at the end of the run, as a fact; and, if it should be on it, why."""
        sizes = self._sizes()
        if sizes is None:
            return
        report.facts["offloaded_bytes"] = sizes[1] - sizes[0]
        gone = left_the_device(self._whole(), sizes[0])
        if gone and compile.is_compiled(self._pipeline):
            report.note(f"{gone}: turn torch_compile off, or to auto")

    def _report_compile(self, report: OptimizationReport) -> None:
        probation, how = self._probation, self._asked.compile
        if probation is None:
            report.update(compile.NAME, requested="auto")
            return
        seen = compile.record(self._pipeline, OptimizationRecord(compile.NAME, "auto", "on"), how)
        self._remember(probation)
        news = probation.settled and not self._was_settled
        known = "" if news else self._decision.reasons.get(compile.NAME, "")
        report.set(replace(seen, reason=known or probation.reason, failed=False))

    def _remember(self, probation: Probation) -> None:
        """Keep a verdict that this run has brought, and what a plain step takes."""
        if not probation.settled or probation.remembered:
            return
        probation.remembered = True
        here, plain = self._situation, settings_label(replace(self._on(), torch_compile="off"))
        known = {row.settings for row in self._store.find(here)}
        if probation.plain and plain not in known:
            seconds = median(probation.plain)
            self._store.add(
                Row(here, plain, "plain", step_seconds=seconds, runs=len(probation.plain), source="probation")
            )
        self._store.add(
            Row(
                here,
                settings_label(self._on()),
                probation.verdict,
                gain=probation.gain,
                step_seconds=median(probation.compiled) if probation.compiled else None,
                compile_seconds=probation.compile_seconds,
                runs=len(probation.compiled),
                source="probation",
                reason=probation.reason,
            )
        )


def _anything_auto(settings: OptimizationSettings) -> bool:
    return "auto" in (settings.attention, settings.torch_compile, settings.vae_tiling.mode)

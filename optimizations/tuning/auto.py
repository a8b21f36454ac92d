"""What "auto" means in one run: decided from the store before it, put to the test during it, remembered after it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
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
from ..components import denoisers, resident_bytes, step_experts
from ..settings import OptimizationSettings, Workload
from .compile_trial import CompileTrial, Controls, State, left_the_device
from .decide import AUTO_NAMES, Decision, anything_auto, decide, measured_overhead, settings_label
from .key import TuningKey
from .store import Row, Store, default_store


class RunHistory:
    """What this process has seen: trials that may go on in the next run, and steps made without compiled code."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._trials: dict[object, CompileTrial] = {}
        self._eager_steps: Counter[TuningKey] = Counter()

    def trial(self, key: object, make: Callable[[], CompileTrial]) -> CompileTrial:
        """The open trial of `key`, or a new one."""
        with self._guard:
            if key not in self._trials:
                self._trials[key] = make()
            return self._trials[key]

    def eager_steps(self, key: TuningKey) -> int:
        """Steps made without compiled code."""
        return self._eager_steps[key]

    def add_eager_steps(self, key: TuningKey, steps: int) -> None:
        with self._guard:
            self._eager_steps[key] += steps

    def forget(self) -> None:
        """Begin anew."""
        with self._guard:
            self._trials.clear()
            self._eager_steps.clear()


RUN_HISTORY = RunHistory()


class AutoRun:
    """One run of one pipeline, from the settings as the user gave them to what is remembered of it.

    >>> auto = AutoRun(pipeline, settings, key, workload, device)
    >>> report = apply(pipeline, auto.settings, workload=auto.workload, ...)
    >>> with active(pipeline, auto.settings, report), auto.watching(report, callbacks) as callbacks:
    ...     ...  # the run, which reports its steps through `callbacks`
    >>> auto.finish(report)

    Args:
        pipeline: a diffusers pipeline.
        settings: as the user gave them.
        key: under which it is remembered.
        workload: of this run.
        device: where it computes.
        memory: looks at the device's memory; None asks torch.
        store: of measurements; None is the process's own.
        history: what this process has seen before; None is the process's own.

    Attributes:
        settings: what to apply: "auto" replaced where something is known.
        workload: with what was measured of it.
    """

    def __init__(
        self,
        pipeline: Any,
        settings: OptimizationSettings,
        key: TuningKey,
        workload: Workload,
        device: torch.device,
        *,
        memory: MemoryProbe | None = None,
        store: Store | None = None,
        history: RunHistory | None = None,
    ) -> None:
        if settings.torch_compile == "auto":  # a decision that is not the user's own never goes against the check
            settings = replace(settings, compile=replace(settings.compile, memory_check=True))
        self._pipeline, self._asked, self._key = pipeline, settings, key
        self._device, self._memory, self._history = device, memory, history or RUN_HISTORY
        self._store = store or default_store()
        self._trial: CompileTrial | None = None
        self._was_settled = False
        self._experts: tuple[Any, tuple[str, ...]] = (None, ())
        rows = self._store.rows() if anything_auto(settings) else []
        self._decision = self._decide(rows, workload.steps)
        self.settings = self._decision.settings
        self.workload = replace(workload, compile_overhead=measured_overhead(self._on(), key, rows))

    @contextmanager
    def watching(self, report: OptimizationReport, callbacks: Callbacks) -> Iterator[Callbacks]:
        """Hold this around the run, inside `apply.active`.

        Args:
            report: of `apply`.
            callbacks: the caller's.

        Yields:
            Callbacks for the run: the caller's, which also read how long the steps took.
        """
        compiling = self._decision.trial or (self.settings if compile.is_compiled(self._pipeline) else None)
        if compiling is None or self._asked.torch_compile != "auto":
            yield callbacks
            self._look_at_memory(report)
            return
        trial = self._trial = self._history.trial((self._key, settings_label(self._on())), self._new_trial)
        self._was_settled = trial.settled
        with ExitStack() as stack:
            controls = Controls(
                start=lambda: self._start(report, callbacks, stack),
                revert=lambda: compile.restore(self._pipeline),
                resident=self._resident_bytes,
                broken=self._broken,
            )
            stack.callback(trial.end)
            trial.begin(self.workload.steps, controls, whole=self._whole())
            try:
                yield trial.watch(callbacks, self._phase)
            except Exception as error:
                if is_out_of_memory(error) and trial.state is State.TRIAL:
                    trial.failed(f"compiled code ran out of memory: {describe(error)}")
                    self._remember(trial)
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
            self._history.add_eager_steps(self._key, self.workload.steps)

    def _decide(self, rows: list[Row], steps: int) -> Decision:
        if not anything_auto(self._asked):
            return Decision(self._asked)
        made = self._history.eager_steps(self._key)
        return decide(self._asked, self._key, rows, steps, made, compile.is_compiled(self._pipeline))

    def _on(self) -> OptimizationSettings:
        """The settings of this run with compile on, whether or not it is."""
        return replace(self._decision.settings, torch_compile="on")

    def _new_trial(self) -> CompileTrial:
        expected = self._decision.expected
        assert expected is not None  # noqa: S101 - `decide` gives it with every trial and every gain
        if self._decision.trial is None:
            return CompileTrial.proven(expected, self._decision.reasons.get(compile.NAME, ""))
        return CompileTrial(expected)

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
        """Why the compiled code was given up for eager code, or ""."""
        if compile.is_compiled(self._pipeline):
            return ""
        record = OptimizationRecord(compile.NAME, "auto", "on")
        return compile.record(self._pipeline, record, self._asked.compile).reason

    def _phase(self, step: int) -> str:
        """Which of two experts did a step; "" where there is one denoiser."""
        timesteps = getattr(getattr(self._pipeline, "scheduler", None), "timesteps", None)
        if timesteps is not self._experts[0]:  # read once per run: it waits for the device
            self._experts = (timesteps, step_experts(self._pipeline))
        return self._experts[1][step - 1] if 0 < step <= len(self._experts[1]) else ""

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
        trial, how = self._trial, self._asked.compile
        if trial is None:
            report.update(compile.NAME, requested="auto")
            return
        seen = compile.record(self._pipeline, OptimizationRecord(compile.NAME, "auto", "on"), how)
        self._remember(trial)
        news = trial.settled and not self._was_settled
        known = "" if news else self._decision.reasons.get(compile.NAME, "")
        report.set(replace(seen, reason=known or trial.reason, failed=False))

    def _remember(self, trial: CompileTrial) -> None:
        """Keep a verdict that this run has brought, and what an eager step takes."""
        if not trial.settled or trial.remembered:
            return
        trial.remembered = True
        here, eager = self._key, settings_label(replace(self._on(), torch_compile="off"))
        known = {row.settings for row in self._store.find(here)}
        if trial.eager and eager not in known:
            seconds = median(trial.eager)
            self._store.add(Row(here, eager, "plain", step_seconds=seconds, runs=len(trial.eager), source="probation"))
        self._store.add(
            Row(
                here,
                settings_label(self._on()),
                trial.verdict,
                gain=trial.gain,
                step_seconds=median(trial.compiled) if trial.compiled else None,
                compile_seconds=trial.compile_seconds,
                runs=len(trial.compiled),
                source="probation",
                reason=trial.reason,
            )
        )

"""torch.compile of the video VAE: of its repeated units, or of one slice as a whole, as one graph without state.

Compiling happens when a shape is first seen. It can fail then, or give wrong values without a word; so the first slice
of every kind is run by uncompiled code too, and compared, in its values and in the time it takes: where compiled code
is not faster, plain code goes on. Whatever is amiss is told apart from failures of the network itself, so that the job
can go on without compiled code.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..cache_folder import device_name
from ..callbacks import SILENT, Callbacks
from ..compile_clock import Compilations, counted, first_run
from ..compile_stop import stoppable
from ..fallback import Signals, describe
from .compile_trial import Findings, SpeedTrial, code_made, recording, timed
from .compiled_units import CompiledKernels
from .kernels.saved_choices import SAVED
from .network.execution import Execution, Network
from .network.model import VideoVAE
from .planner import Task
from .settings import VaeSettings

TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.25}
"""Largest difference from uncompiled code, of the standard deviation of a slice. Sums in another order stay far below;
code that is wrong is off by more than one."""
OWN_GRAPHS = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""Inductor's modes that record CUDA graphs, each with the mode that does the rest of it, None for the default."""


class CompiledCodeError(RuntimeError):
    """A slice could not be compiled, or its compiled code is wrong; the message is one line that says why."""


class CompileWatch:
    """Whom to tell while slices of one job are compiled, who may cancel it, and what it took.

    Args:
        callbacks: of the job.
        made: where compilations are counted; a new count unless given.
        last: seconds that they took last time on this machine, or None.
        trial: whether plain code runs where compiled code is not faster.

    Attributes:
        trials: those that this job's slices belong to.
    """

    def __init__(
        self,
        callbacks: Callbacks = SILENT,
        made: Compilations | None = None,
        last: float | None = None,
        *,
        trial: bool = True,
    ) -> None:
        self.signals = Signals(callbacks)
        self.trial = trial
        self.trials: list[SpeedTrial] = []
        self._last = last
        self.made = Compilations() if made is None else made

    def run(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns, counting what it compiles. A cancel is raised unchanged."""
        with counted(self.made):
            return stoppable(call, self._tick)

    def _tick(self, seconds: float) -> None:
        taken = f"{self.made.seconds + seconds:.0f} s"
        message = f"video VAE: part {self.made.count + 1}, {taken} ({first_run(self._last)})"
        self.signals.tick("compile", 0, 1, message)


class CompileTime:
    """What compiling has taken in this process for one stage and choice of settings, kept for the next process.

    Args:
        stage: of the task.
        settings: how it compiles.
        device: that it compiles for.
    """

    def __init__(self, stage: str, settings: VaeSettings, device: torch.device) -> None:
        options = sorted((settings.compile or {}).items())
        self._key = ("compile seconds", stage, settings.compile_scope, repr(options), device_name(device))
        with _lock:
            if self._key not in _last:
                _last[self._key] = SAVED.get(self._key)

    @property
    def last(self) -> float | None:
        """Seconds of the last process, or None."""
        text = _last[self._key]
        return None if text is None else float(text)

    def add(self, made: Compilations) -> None:
        if made.count:
            with _lock:
                _taken[self._key] = _taken.get(self._key, 0.0) + made.seconds
            SAVED.put(self._key, f"{_taken[self._key]:.2f}")


_last: dict[tuple[str, ...], str | None] = {}
_taken: dict[tuple[str, ...], float] = {}
_networks: weakref.WeakKeyDictionary[VideoVAE, dict[str, _Checked]] = weakref.WeakKeyDictionary()
_trials: dict[object, dict[object, SpeedTrial]] = {}
"""What was found of the speed in this process: it holds for a VAE that is loaded again too."""
_lock = threading.Lock()


def compiled_network(
    vae: VideoVAE, task: Task, options: Mapping[str, Any], watch: CompileWatch | None = None, scope: str = "slice"
) -> Network:
    """The compiled form of `task.network(vae)`; the VAE itself is left as it is.

    Args:
        options: keyword arguments of torch.compile. `fullgraph` is True unless given: nothing here breaks a graph.
        scope: one of `COMPILE_SCOPES` of the settings.
        watch: of the job that runs it.

    The network raises CompiledCodeError for whatever fails but memory; a recompilation that the caller has forbidden
    (`error_on_recompile`) passes through as it is.
    """
    key = json.dumps([task.stage, scope, sorted(options.items())], default=repr)
    with _lock:
        networks = _networks.setdefault(vae, {})
        if key not in networks:
            reference = weakref.ref(vae)  # the cache must not keep its own key alive

            def step(x: torch.Tensor, run: Execution) -> torch.Tensor:
                owner = reference()
                if owner is None:
                    raise ReferenceError("the VAE of this compiled step is gone")
                return task.network(owner)(x, run)

            trials = _trials.setdefault((key, options.get("backend"), vae.config), {})
            made = _by_units(step, options) if scope == "blocks" else _whole(step, options)
            kept = (key, repr(vae.config)) if isinstance(options.get("backend", ""), str) else None
            networks[key] = _Checked(made, step, trials, kept)
        checked, watching = networks[key], watch or CompileWatch()
    return lambda x, run: checked(x, run, watching)


Watched = Callable[[torch.Tensor, Execution, CompileWatch], torch.Tensor]
"""A network whose compiling is watched."""


def _whole(step: Network, options: Mapping[str, Any]) -> Watched:
    compiled = torch.compile(step, **{"fullgraph": True, **options})
    return lambda x, run, watch: watch.run(lambda: compiled(x, replace(run, check_cancel=None)))


def _by_units(step: Network, options: Mapping[str, Any]) -> Watched:
    return lambda x, run, watch: step(x, replace(run, kernels=CompiledKernels(run.kernels, options, watch.run)))


def with_our_graphs(settings: VaeSettings) -> VaeSettings:
    """Settings whose compiler records no CUDA graphs, but for which `cuda_graphs` does.

    What inductor's graphs return lives until the next call: frames carried to the next slice would be overwritten.
    """
    compile = settings.compile
    if compile is None:
        return settings
    if compile.get("backend") == "cudagraphs":
        return replace(settings, compile=None, cuda_graphs=True)
    if compile.get("mode") not in OWN_GRAPHS:
        return settings
    kept = {name: value for name, value in compile.items() if name != "mode"}
    mode = OWN_GRAPHS[compile["mode"]]
    return replace(settings, compile=kept if mode is None else {**kept, "mode": mode}, cuda_graphs=True)


class _Checked:
    """Compiled code that raises CompiledCodeError when it fails, or when a first slice of its kind comes out wrong.

    Plain code takes its place for shapes with which it turned out not to be faster.

    Args:
        trials: where their verdicts are kept in this process; a new place unless given.
        kept: by what `Findings` are kept for later ones; None keeps nothing.
    """

    def __init__(
        self,
        compiled: Watched,
        eager: Network,
        trials: dict[object, SpeedTrial] | None = None,
        kept: tuple[str, ...] | None = None,
    ) -> None:
        self._compiled = compiled
        self._eager = eager
        self._trusted: set[object] = set()
        self._failed: dict[object, str] = {}
        self._trials = {} if trials is None else trials
        self._findings = Findings(kept)

    def __call__(self, x: torch.Tensor, run: Execution, watch: CompileWatch) -> torch.Tensor:
        continued = {name: tuple(frames.shape) for name, frames in run.state.frames.items()}
        here = (x.shape[0], *x.shape[3:], x.dtype, x.device, run.layout, run.kernels.choice)
        kind = (here, x.shape[2], run.carry, *continued.items())
        trial = self._trials.get(here) or self._trials.setdefault(here, self._findings.trial(here, x.device))
        if watch.trial:
            if trial not in watch.trials:
                watch.trials.append(trial)
            if trial.reverted:
                return self._eager(x, run)
        if kind in self._failed:  # in a decode before: compiling again would take its time and fail again
            raise CompiledCodeError(self._failed[kind])
        trusted = kind in self._trusted
        if trusted and (not watch.trial or trial.verdict or recording()):
            return self._run(x, run, watch)
        over = bool(trial.verdict) or not watch.trial
        try:
            if over and self._findings.sound(kind, x.device):
                made = self._compared_before(x, run, watch)
            else:
                made = self._both(x, run, watch, trial, unseen=None if trusted else kind)
        except CompiledCodeError as error:
            self._failed[kind] = str(error)
            raise
        self._trusted.add(kind)
        self._findings.keep(trial, here, x.device)
        return made

    def _compared_before(self, x: torch.Tensor, run: Execution, watch: CompileWatch) -> torch.Tensor:
        """Run code that an earlier process has compared; code that is not found as it was is compared anew."""
        start, before = run.state.copy(), code_made()
        made = self._run(x, run, watch)
        if code_made() != before:
            expected, seconds = timed(lambda: self._eager(x, replace(run, state=start)), x.device)
            watch.made.checking += seconds
            _check(made, expected)
        return made

    def _both(
        self, x: torch.Tensor, run: Execution, watch: CompileWatch, trial: SpeedTrial, *, unseen: object
    ) -> torch.Tensor:
        """Run a slice by plain and by compiled code, compare them, and return what the compiled one made.

        Args:
            unseen: the slice's kind where it is the first of it, so that its values are compared, and none counts as a
                warm one: the compiler and choices of kernels take their time. The trial then gets a second run of both.
        """
        began, compiled_before, own = time.perf_counter(), watch.made.seconds, 0.0
        start = run.state.copy()

        def plainly() -> torch.Tensor:
            return self._eager(x, replace(run, state=start.copy()))

        try:
            count = watch.made.count
            expected, plain = timed(plainly, x.device)
            made, compiled = timed(lambda: self._run(x, run, watch), x.device)
            own = max(0.0, compiled - (watch.made.seconds - compiled_before))
            if unseen is not None:
                if _check(made, expected):
                    self._findings.keep_sound(unseen, x.device)
                del expected
            if unseen is not None and watch.trial and not trial.verdict:
                _, plain = timed(plainly, x.device)
                again, count = replace(run, state=start.copy()), watch.made.count
                _, compiled = timed(lambda: self._run(x, again, watch), x.device)
            if watch.trial and watch.made.count == count:
                own = compiled
                trial.add(plain, compiled)
        finally:
            compiling = watch.made.seconds - compiled_before
            watch.made.checking += max(0.0, time.perf_counter() - began - compiling - own)
        return made

    def _run(self, x: torch.Tensor, run: Execution, watch: CompileWatch) -> torch.Tensor:
        try:
            return self._compiled(x, run, watch)
        except (torch.OutOfMemoryError, torch._dynamo.exc.RecompileError):
            raise
        except Exception as error:
            if watch.signals.must_travel(error):
                raise
            raise CompiledCodeError(describe(error)) from error


def _check(made: torch.Tensor, expected: torch.Tensor) -> bool:
    """Raise CompiledCodeError where compiled code gave something else; False where plain code gave nothing finite."""
    if not bool(torch.isfinite(expected).all()):
        return False
    reference = expected.float()
    difference = float((made.float() - reference).abs().max() / reference.std().clamp_min(1e-6))
    if not difference <= TOLERANCE[expected.dtype]:
        raise CompiledCodeError(f"its result is off by {difference:.2g} of the standard deviation of plain code's")
    return True

"""torch.compile of one slice through the VAE: one graph, no state inside, compiled once per VAE and options.

Compiling happens when a shape is first seen. It can fail then, or give wrong values without a word; so the first slice
of every kind is run by uncompiled code too, and compared. Whatever is amiss is told apart from failures of the network
itself, so that the job can go on without compiled code.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..fallback import describe
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


_networks: weakref.WeakKeyDictionary[VideoVAE, dict[str, Network]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def compiled_network(vae: VideoVAE, task: Task, options: Mapping[str, Any]) -> Network:
    """The compiled form of `task.network(vae)`; the VAE itself is left as it is.

    Args:
        options: keyword arguments of torch.compile. `fullgraph` is True unless given: nothing here breaks a graph.

    The network raises CompiledCodeError for whatever fails but memory; a recompilation that the caller has forbidden
    (`error_on_recompile`) passes through as it is.
    """
    key = json.dumps([task.stage, sorted(options.items())], default=repr)
    with _lock:
        networks = _networks.setdefault(vae, {})
        if key not in networks:
            reference = weakref.ref(vae)  # the cache must not keep its own key alive

            def step(x: torch.Tensor, run: Execution) -> torch.Tensor:
                owner = reference()
                if owner is None:
                    raise ReferenceError("the VAE of this compiled step is gone")
                return task.network(owner)(x, run)

            compiled = torch.compile(step, **{"fullgraph": True, **options})
            networks[key] = _Checked(compiled, step)
        return networks[key]


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
    """Compiled code that raises CompiledCodeError when it fails, or when a first slice of its kind comes out wrong."""

    def __init__(self, compiled: Network, eager: Network) -> None:
        self._compiled = compiled
        self._eager = eager
        self._trusted: set[object] = set()
        self._failed: dict[object, str] = {}

    def __call__(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        continued = {name: tuple(frames.shape) for name, frames in run.state.frames.items()}
        here = (tuple(x.shape), x.dtype, x.device, *continued.items())
        kind = (here, run.carry, run.layout)
        if kind in self._failed:  # in a decode before: compiling again would take its time and fail again
            raise CompiledCodeError(self._failed[kind])
        try:
            if kind in self._trusted:
                return self._run(x, run)
            expected = self._eager(x, replace(run, state=run.state.copy()))
            made = self._run(x, run)
            _check(made, expected)
        except CompiledCodeError as error:
            self._failed[kind] = str(error)
            raise
        self._trusted.add(kind)
        return made

    def _run(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        try:
            return self._compiled(x, run)
        except (torch.OutOfMemoryError, torch._dynamo.exc.RecompileError):
            raise
        except Exception as error:
            raise CompiledCodeError(describe(error)) from error


def _check(made: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise CompiledCodeError where compiled code gave something else, and uncompiled code something finite."""
    reference = expected.float()
    if not bool(torch.isfinite(reference).all()):
        return
    difference = float((made.float() - reference).abs().max() / reference.std().clamp_min(1e-6))
    if not difference <= TOLERANCE[expected.dtype]:
        raise CompiledCodeError(f"its result is off by {difference:.2g} of the standard deviation of plain code's")

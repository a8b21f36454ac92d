"""torch.compile of one slice through the VAE: one graph, no state inside, compiled once per VAE and options.

Compiling happens when a shape is first seen, and can fail then. Such a failure is told apart from those of the network
itself, so that the job can go on without it.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .execution import Execution
from .model import VideoVAE
from .planner import Task

Network = Callable[[torch.Tensor, Execution], torch.Tensor]


class CompiledCodeError(RuntimeError):
    """A slice could not be compiled, or its compiled code failed; the message is one line that says why."""


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

            networks[key] = _telling_failures(torch.compile(step, **{"fullgraph": True, **options}))
        return networks[key]


def _telling_failures(compiled: Network) -> Network:
    def network(x: torch.Tensor, run: Execution) -> torch.Tensor:
        try:
            return compiled(x, run)
        except (torch.OutOfMemoryError, torch._dynamo.exc.RecompileError):
            raise
        except Exception as error:
            cause = getattr(error, "inner_exception", None) or error  # what dynamo wraps says more than the wrapping
            lines = str(cause).strip().splitlines()
            raise CompiledCodeError(f"{type(cause).__name__}: {lines[0] if lines else 'no message'}") from error

    return network

"""torch.compile of one slice through the VAE: one graph, no state inside, compiled once per VAE and options."""

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

_networks: weakref.WeakKeyDictionary[VideoVAE, dict[str, Network]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def compiled_network(vae: VideoVAE, task: Task, options: Mapping[str, Any]) -> Network:
    """The compiled form of `task.network(vae)`; the VAE itself is left as it is.

    Args:
        options: keyword arguments of torch.compile. `fullgraph` is True unless given: nothing here breaks a graph.
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

            networks[key] = torch.compile(step, **{"fullgraph": True, **options})
        return networks[key]

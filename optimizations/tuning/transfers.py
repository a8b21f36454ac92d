"""Bytes of weights that a run moves on and off its device: counted where accelerate and diffusers do the moving.

Model offload calls `to` on a whole component; group offload brings and takes away groups of layers. Both are watched on
the very objects, and left as they were afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..components import modules, resident_bytes


@dataclass
class Transfers:
    """Bytes of weights moved since it began. Attributes: on: to the device; off: away from it, by copying."""

    on: int = 0
    off: int = 0

    def add(self, before: int, after: int) -> None:
        """Count a move, after which `after` bytes are on the device, and before which there were `before`."""
        self.on += max(0, after - before)
        self.off += max(0, before - after)


@contextmanager
def counted(pipeline: Any, device: torch.device) -> Iterator[Transfers]:
    """Count while the block runs; the pipeline's memory mode is in force already. On the CPU nothing is moved."""
    transfers = Transfers()
    with ExitStack() as stack:
        for model in modules(pipeline).values() if device.type != "cpu" else ():
            groups = _groups(model)
            if not groups:
                stack.enter_context(_watched(model, "to", device, transfers))
            for group in groups:
                stack.enter_context(_watched(group, "onload_", device, transfers))
                if group.stream is None:  # else it goes back to the copy that main memory has kept
                    stack.enter_context(_watched(group, "offload_", device, transfers))
        yield transfers


@contextmanager
def _watched(owner: Any, name: str, device: torch.device, transfers: Transfers) -> Iterator[None]:
    """Put a counter before the method `name` of this one model or group."""
    method = getattr(owner, name)
    own = owner.__dict__.get(name)
    seen = _bytes_on(owner, device)

    @torch.compiler.disable
    def counter(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        before = _bytes_on(owner, device)
        result = method(*args, **kwargs)
        seen = _bytes_on(owner, device)
        transfers.add(before, seen)
        return result

    owner.__dict__[name] = counter
    try:
        yield
    finally:
        if owner.__dict__.get(name) is not counter:
            # accelerate takes `to` off a model together with its hooks, which diffusers renews at the end of a run;
            # what it moved behind that is seen in where the weights are now.
            transfers.add(seen, _bytes_on(owner, device))
        elif own is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = own


def _bytes_on(owner: Any, device: torch.device) -> int:
    """Bytes on the device of a model, or of one of diffusers' groups of layers."""
    group = not isinstance(owner, torch.nn.Module)
    own = (*owner.parameters, *owner.buffers) if group else ()
    return resident_bytes(owner.modules if group else [owner], device)[0] + sum(
        tensor.numel() * tensor.element_size() for tensor in own if tensor.device.type == device.type
    )


def _groups(model: torch.nn.Module) -> list[Any]:
    """diffusers' groups of layers that come and go together, each once."""
    found = {}
    for module in model.modules():
        registry = module.__dict__.get("_diffusers_hook")
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None:
            found[id(hook.group)] = hook.group
    return list(found.values())

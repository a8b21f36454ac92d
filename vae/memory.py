"""How much memory tensors take: measured while a computation runs, and as much as the device has free."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the `with` block while they are alive, on any device ("meta" too).

    It sees what PyTorch operations allocate, not what libraries use inside one operation.

    Attributes:
        now: bytes alive. peak: most bytes alive at once.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """Count on this device only; None counts on all."""
        super().__init__()
        self.device = device
        self.now = 0
        self.peak = 0
        self.largest = 0
        """Bytes of the largest single tensor."""
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _counts(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _counts(leaf) and (self.device is None or leaf.device == self.device):
                self._watch(leaf.untyped_storage(), given)
        return result

    def _watch(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        """Count a storage that an operation made; a view of what it was given is none."""
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, size)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _counts(leaf: Any) -> bool:
    """Whether it is a tensor with memory of its own kind (sparse ones have none)."""
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided


def free_bytes(device: torch.device) -> int | None:
    """Memory that new tensors may take on the device, torch's own cached blocks included; None when unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return _available_ram()
    return None


def _available_ram() -> int | None:
    """What the operating system can hand out without swapping, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return available if limit == "max" else min(available, max(int(limit) - used, 0))
    except (OSError, ValueError):
        return available

"""How much memory is free on a device, whether something still fits, and what tensors take while a computation runs."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where Linux tells the memory limit of a container and what is used of it: control groups version 2, then 1."""


@dataclass(frozen=True)
class MemoryState:
    """Memory of one device in bytes.

    Attributes:
        free: what an allocation could have, including what torch holds without using it.
        total: what the device has.
    """

    free: int
    total: int


MemoryProbe = Callable[[torch.device], MemoryState]
"""Looks at a device. Whoever manages the memory (ComfyUI) hands in its own; `device_memory` is torch's view."""


@dataclass(frozen=True)
class Need:
    """A part of a sum: what takes memory, and how much.

    Attributes: what: a short noun ("weights not on the device yet"); size: bytes, may be 0.
    """

    what: str
    size: int


def device_memory(device: torch.device) -> MemoryState:
    """Return the memory of `device` as torch and the system see it.

    Blocks that torch has reserved and does not use count as free. Devices that share main memory, and devices that
    cannot tell, answer with main memory.
    """
    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type)
        free, total = module.mem_get_info(device)
        unused = module.memory_reserved(device) - module.memory_allocated(device)
        return MemoryState(int(free) + max(0, int(unused)), int(total))
    if device.type == "mps":
        total = int(torch.mps.recommended_max_memory())
        return MemoryState(max(0, total - int(torch.mps.driver_allocated_memory())), total)
    return _main_memory()


def release_cache(device: torch.device) -> None:
    """Give what torch has reserved on `device` and does not use back to it."""
    if device.type in ("cuda", "xpu", "mps"):
        getattr(torch, device.type).empty_cache()


def _main_memory() -> MemoryState:
    """Main memory within the limit of the container, if this process runs in one."""
    state, container = _system_memory(), _container_memory()
    if container is None:
        return state
    return MemoryState(min(state.free, container.free), min(state.total, container.total))


def _system_memory() -> MemoryState:
    """Linux tells by itself; elsewhere psutil does, and without it half of what the system has is taken as free."""
    information = Path("/proc/meminfo")
    if information.is_file():
        lines = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
        sizes = {name: int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal")}
        return MemoryState(sizes["MemAvailable"], sizes["MemTotal"])
    try:
        import psutil
    except ImportError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * GIB
        return MemoryState(total // 2, total)
    memory = psutil.virtual_memory()
    return MemoryState(int(memory.available), int(memory.total))


def _container_memory() -> MemoryState | None:
    """Memory of this process's control group, None without one. Cached files count as free: they go when asked to."""
    for folder, limit_name, used_name in CONTROL_GROUPS:
        try:
            limit = int((folder / limit_name).read_text())
            used = int((folder / used_name).read_text())
            lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
            sizes = {name: int(size) for name, size in lines}
        except (OSError, ValueError):  # no such group, or no limit: "max"
            continue
        cached = sum(sizes.get(f"total_{name}", sizes.get(name, 0)) for name in ("inactive_file", "active_file"))
        return MemoryState(max(0, limit - max(0, used - cached)), limit)
    return None


def shortage(state: MemoryState, needs: list[Need], keep: int = 0) -> str:
    """Return why the needs do not fit into what is free, with every figure in GiB; "" when they do.

    Args:
        state: of the device.
        needs: what would be taken.
        keep: bytes that must stay free afterwards.
    """
    wanted = sum(need.size for need in needs)
    if wanted + keep <= state.free:
        return ""
    parts = [f"{gib(need.size)} {need.what}" for need in needs if need.size > 0]
    parts += [f"{gib(keep)} to stay free"] if keep else []
    return f"it needs {' + '.join(parts)}, and {gib(state.free)} of {gib(state.total)} are free"


def is_shortage(text: str) -> bool:
    """Whether an error or a reason says that memory does not suffice: in the words of `shortage`, or of torch."""
    return bool(re.search(r"it needs .* are free", text)) or "out of memory" in text.lower()


def gib(size: float) -> str:
    """Bytes as text: "1.50 GiB"; small sizes keep their digits."""
    value = size / GIB
    return f"{value:.2f} GiB" if value >= 0.1 or value == 0 else f"{value:.2g} GiB"


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


def conv3d_memory_defect() -> bool:
    """Return whether conv3d in half precision takes about three times the memory it should on this cuDNN and torch."""
    if torch.version.hip is not None or not torch.backends.cudnn.is_available():
        return False
    return _has_defect(torch.__version__, torch.backends.cudnn.version() or 0)


@lru_cache(maxsize=8)
def _has_defect(torch_version: str, cudnn_version: int) -> bool:
    """torch 2.9 and later stopped asking cuDNN 9.10.2 to 9.14 for its lean algorithms; cuDNN 9.15 is asked again.

    Args:
        cudnn_version: as `torch.backends.cudnn.version()` gives it: 91002 for 9.10.2.
    """
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    return (major, minor) >= (2, 9) and 91002 <= cudnn_version < 91500

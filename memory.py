"""How much memory is free, and whether something still fits: the one check that compile, tiling and offloading ask."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


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
    """Memory of `device` as torch and the system see it.

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


def shortage(state: MemoryState, needs: list[Need], keep: int = 0) -> str:
    """Why the needs do not fit into what is free, with every figure in GiB; "" when they do.

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


def gib(size: float) -> str:
    """Bytes as text: "1.50 GiB"; small sizes keep their digits."""
    value = size / GIB
    return f"{value:.2f} GiB" if value >= 0.1 or value == 0 else f"{value:.2g} GiB"

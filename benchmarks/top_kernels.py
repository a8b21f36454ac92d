"""The kernels of a run that take the most time, as a table: what a trace of many megabytes would be opened for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SHOWN = 25
NAME_LENGTH = 160


def kernel_times(run: Callable[[], object], device: torch.device) -> list[tuple[str, int, float]]:
    """(name, calls, seconds) of every kernel of one run on a card, of every operation on a processor."""
    on_card = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as profiled:
        run()
        if on_card:
            torch.cuda.synchronize(device)
    return [
        (event.key, event.count, (event.self_device_time_total if on_card else event.self_cpu_time_total) / 1e6)
        for event in profiled.key_averages()
    ]


def top_kernels(run: Callable[[], object], device: torch.device, shown: int = SHOWN) -> list[dict[str, Any]]:
    """The slowest kernels of one run on a card, operations on a processor: name, calls, seconds, share of all of them.

    Args:
        shown: how many; the last row sums up the others.
    """
    spent = [(name[:NAME_LENGTH], calls, seconds) for name, calls, seconds in kernel_times(run, device)]
    spent.sort(key=lambda kernel: -kernel[2])
    total = sum(seconds for *_, seconds in spent) or 1.0
    rest = spent[shown:]
    if rest:
        others = (f"{len(rest)} others", sum(calls for _, calls, _ in rest), sum(time for *_, time in rest))
        spent = [*spent[:shown], others]
    return [
        {"kernel": name, "calls": calls, "seconds": seconds, "share": round(seconds / total, 4)}
        for name, calls, seconds in spent
    ]

"""The kernels of a run that take the most time, as a table: what a trace of many megabytes would be opened for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

SHOWN = 25
NAME_LENGTH = 160
CLASSES = {
    "attention": ("attention", "flash", "fmha", "softmax"),
    "convolution": ("conv", "mkldnn", "cudnn", "cutlass", "implicit_gemm", "xmma"),
    "norm and activation": (
        *("group_norm", "silu", "addcmul", "sum", "square", "pow", "rsqrt", "var_mean", "sub", "mul"),
        *("normalise", "merge_parts"),
    ),
    "copies": ("copy", "cat", "pad", "clone", "fill", "zero", "memcpy", "memset", "shuffle", "add", "_put"),
    "matrix products": ("addmm", "bmm", "mm", "gemm"),
}
"""Parts of an operation's or a kernel's name, by what it is for; the first class that matches counts."""


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


def seconds_by_class(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds by class of operation of one run, of kernels on a card."""
    shares = dict.fromkeys([*CLASSES, "other"], 0.0)
    for key, _, spent in kernel_times(run, device):
        name = key.lower()
        kind = next((kind for kind, parts in CLASSES.items() if any(part in name for part in parts)), "other")
        shares[kind] += spent
    return {kind: round(spent, 3) for kind, spent in shares.items()}

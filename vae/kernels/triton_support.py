"""Whether Triton's kernels can run in this process, and why not."""

from __future__ import annotations

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads the variable when it is imported: kernels then run on the CPU, number by number. For tests."""


def unavailable(device: torch.device | str) -> str:
    """Why no Triton kernel can run on tensors of `device`, or ""."""
    kind = torch.device(device).type
    if INTERPRETED:
        return "" if kind == "cpu" else "Triton's interpreter works on the CPU"
    if kind != "cuda":
        return f"Triton has no kernels for {kind} tensors"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs compute capability 7.0 or higher"
    return ""

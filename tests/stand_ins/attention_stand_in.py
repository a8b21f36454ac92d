"""What the stand-ins for attention packages share: exact attention on the CPU, and faults on demand.

Put this folder in front of `PYTHONPATH` and diffusers imports the stand-ins through the very statements that import
the real packages. A fault comes at a call of a kernel, counted from 1: `FAULT = ("raise", 7)`, or in a process that
only takes an environment, `ATTENTION_STAND_IN_FAULT=raise@7`. Kinds: "raise", "nan", "memory". Probes, which call with
128 tokens in 2 heads, are not counted.
"""

from __future__ import annotations

import os

import torch

PROBE = (2, 128, 2)
calls: list[tuple[str, tuple[int, ...]]] = []
"""The package and the shape [B, S, H, D] of each call but the probes."""


def parse(text: str) -> tuple[str, int] | None:
    """("raise", 7) for "raise@7"; None for ""."""
    kind, _, number = text.partition("@")
    return (kind, int(number or 1)) if kind else None


FAULT = parse(os.environ.get("ATTENTION_STAND_IN_FAULT", ""))


def attend(
    package: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """[B, S, H, D] of one call. Not through SDPA: a redirected call would come back here."""
    if torch.compiler.is_compiling():  # a list that grows would have dynamo compile anew
        return _exact(query, key, value, bias, scale, causal)
    if tuple(query.shape[:3]) != PROBE:
        calls.append((package, tuple(query.shape)))
        if FAULT is not None and len(calls) == FAULT[1]:
            if FAULT[0] == "raise":
                raise RuntimeError(f"{package}: no kernel image is available for execution on the device")
            if FAULT[0] == "memory":
                raise torch.OutOfMemoryError(f"{package}: out of memory")
            return torch.full_like(query, float("nan"))
    return _exact(query, key, value, bias, scale, causal)


def _exact(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float | None,
    causal: bool,
) -> torch.Tensor:
    """In the order of SDPA's own unfused kernel, so that rounding differs as little as it can."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    root = (scale or q.shape[-1] ** -0.5) ** 0.5
    scores = (q * root) @ (k * root).transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)

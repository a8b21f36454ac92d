"""A stand-in for flash-attn: no masks, and any dtype so that the CPU's float32 can be compared."""

from __future__ import annotations

from typing import Any

import torch
from attention_stand_in import attend

__version__ = "2.8.3"


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """[B, S, H, D]."""
    return attend("flash_attn", q, k, v, None, softmax_scale, causal)


def flash_attn_varlen_func(*arguments: Any, **options: Any) -> Any:
    raise NotImplementedError("the stand-in has no packed form")

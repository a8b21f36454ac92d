"""`memory_efficient_attention` with xFormers' arguments and manners."""

from __future__ import annotations

import torch
from attention_stand_in import attend


class LowerTriangularMask:
    """A causal bias."""


def memory_efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor | LowerTriangularMask | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: object = None,
) -> torch.Tensor:
    """[B, S, H, D]. Adds the bias it is given, whatever its meaning; its rows begin at multiples of 16 bytes."""
    if isinstance(attn_bias, LowerTriangularMask):
        return attend("xformers", query, key, value, None, scale, causal=True)
    if attn_bias is not None:
        multiple = 16 // attn_bias.element_size()
        if attn_bias.dtype != query.dtype:
            raise ValueError(f"attn_bias has dtype {attn_bias.dtype}, and query {query.dtype}")
        if any(stride % multiple for stride in attn_bias.stride()[:-1]):
            raise ValueError("attn_bias is not correctly aligned (strides)")
    return attend("xformers", query, key, value, attn_bias, scale)

"""A stand-in for SageAttention: exact where the real one computes in eight bits."""

from __future__ import annotations

from typing import Any

import torch
from attention_stand_in import attend


def sageattn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    return_lse: bool = False,
    **options: Any,
) -> torch.Tensor:
    """[B, S, H, D] for the layout "NHD", [B, H, S, D] for "HND"."""
    if tensor_layout == "NHD":
        return attend("sageattention", q, k, v, None, sm_scale, is_causal)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attend("sageattention", q, k, v, None, sm_scale, is_causal).transpose(1, 2)


def _absent(*arguments: Any, **options: Any) -> Any:
    raise NotImplementedError("the stand-in has `sageattn` alone")


sageattn_varlen = _absent
sageattn_qk_int8_pv_fp8_cuda = _absent
sageattn_qk_int8_pv_fp8_cuda_sm90 = _absent
sageattn_qk_int8_pv_fp16_cuda = _absent
sageattn_qk_int8_pv_fp16_triton = _absent

"""Attention kernels and slicing, on one layer of diffusers: SDXL's self-attention over a picture of 512 x 512."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .interleave import Way, measure

HEADS, HEAD_SIZE, TOKENS = 10, 64, 1024


def run(rounds: int, small: bool) -> dict[str, Any]:
    """Rows for torch's own attention, its math kernel, scores written out, and sliced scores."""
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    tokens = 64 if small else TOKENS
    layer = Attention(query_dim=HEADS * HEAD_SIZE, heads=HEADS, dim_head=HEAD_SIZE).eval()
    x = torch.randn(2, tokens, HEADS * HEAD_SIZE)

    def attend(processor: Any) -> torch.Tensor:
        layer.set_processor(processor)
        made: torch.Tensor = layer(x)
        return made

    def by_math() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return attend(AttnProcessor2_0())

    ways: dict[str, Way] = {
        "sdpa": partial(attend, AttnProcessor2_0()),
        "sdpa, math kernel": by_math,
        "scores written out": partial(attend, AttnProcessor()),
        "attention slicing": partial(attend, SlicedAttnProcessor(slice_size=1)),
    }
    size = f"2 x {tokens} tokens, {HEADS} heads of {HEAD_SIZE}"
    return {"size": size, "rows": measure(ways, rounds), "slicing": [sliced_on("flux"), sliced_on("sdxl")]}


def sliced_on(family: str) -> dict[str, Any]:
    """What `enable_attention_slicing` changes on a pipeline: attention processors that are others afterwards."""
    from ...pipelines import tiny

    pipeline: Any = tiny.build(family)
    model = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    before = {name: type(processor) for name, processor in model.attn_processors.items()}
    pipeline.enable_attention_slicing()
    after = {name: type(processor) for name, processor in model.attn_processors.items()}
    changed = sum(before[name] is not after[name] for name in before)
    return {"row": f"slicing on {family}", "processors": len(before), "changed": changed}

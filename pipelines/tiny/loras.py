"""LoRAs for the embedded tiny Wan, made on the spot: one for each noise expert, as its 4-step LoRAs come in pairs.

Their factors are random, and depend on the name alone, so that two processes make the same ones.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TINY_LORAS = ("tiny:wan-high-noise", "tiny:wan-low-noise")
"""What stands for a file's path."""
_BLOCKS, _WIDTH, _RANK = 2, 24, 4
_LAYERS = tuple(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v"))
_SIZE = 0.15
"""Standard deviation of a factor: enough for the picture to change, and not to fall apart."""


def lora_tensors(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a tiny LoRA, named as diffusers writes them.

    Args:
        name: one of `TINY_LORAS`.
    """
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensors = {}
    for block in range(_BLOCKS):
        for layer in _LAYERS:
            stem = f"transformer.blocks.{block}.{layer}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(_RANK, _WIDTH, generator=generator) * _SIZE
            tensors[f"{stem}.lora_B.weight"] = torch.randn(_WIDTH, _RANK, generator=generator) * _SIZE
    return tensors

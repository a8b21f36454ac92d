"""Whether the weights of one of ComfyUI's networks are still those that were copied."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def fingerprint(network: nn.Module) -> str:
    """Return a text that changes when a weight does, wherever it lies; it reads them once.

    Of each tensor the bytes are added up by rows and by columns of a square, as whole numbers. Version counters do
    not do: tensors that nodes load have none, and changes through `data` are not counted.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_sums(tensor))
    return digest.hexdigest()


def _sums(tensor: torch.Tensor) -> bytes:
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    whole = raw.numel() // 8 * 8
    words = raw[:whole].view(torch.int64)
    side = math.isqrt(words.numel())
    square = words[: side * side].view(side, side)
    sums = torch.cat([square.sum(0), square.sum(1), words[side * side :], raw[whole:].to(torch.int64)])
    return sums.cpu().numpy().tobytes()

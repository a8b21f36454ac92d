"""Self-attention over the positions of each frame: one head as wide as the channels, memory bounded by query chunks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .execution import Execution

SCORE_BYTES = 256 << 20
"""Size of the score matrix of one chunk of queries, should a kernel materialise it."""


class FrameAttention(nn.Module):
    """GroupNorm, q, k, v, attention, output projection, residual; [B, C, T, H, W] in place of itself.

    With one head of 512 no flash kernel applies on CUDA; taking queries in chunks bounds the memory of any other.
    """

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        """Attend; the result is added to `x` in place."""
        if torch.compiler.is_compiling():
            x.add_(self._attend(x, run))
            return x
        for item in range(x.shape[0]):
            for frame in range(x.shape[2]):
                one = x[item : item + 1, :, frame : frame + 1]
                one.add_(self._attend(one, run))
        return x

    def _attend(self, x: torch.Tensor, run: Execution) -> torch.Tensor:
        """Return what attention adds to `x` [B, C, T, H, W]."""
        batch, channels, frames, height, width = x.shape
        norm = self.group_norm
        normalised = run.kernels.group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps, activation=False)
        tokens = normalised.permute(0, 2, 3, 4, 1).reshape(batch * frames, height * width, channels)
        del normalised
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        del tokens
        y = self.to_out[0](attend(q, k, v))
        return y.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of q, k, v, each [N, positions, C]. Queries are independent, so chunks of them change nothing."""
    positions = q.shape[1]
    q, k, v = q[:, None], k[:, None], v[:, None]
    chunk = max(1, SCORE_BYTES // (4 * q.shape[0] * positions))
    if chunk >= positions or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v)[:, 0]
    out = torch.empty_like(q)
    for start in range(0, positions, chunk):
        part = slice(start, start + chunk)
        out[:, :, part] = F.scaled_dot_product_attention(q[:, :, part], k, v)
    return out[:, 0]

"""Single rewrites of the video VAE's operations against the textbook's, for one latent frame of 512 x 512."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from ...vae.kernels import eager, plain
from .interleave import Way, measure

GROUPS = 32


def run(rounds: int, small: bool) -> dict[str, Any]:
    """Groups of rows, each against the textbook's way."""
    torch.manual_seed(0)
    side = 16 if small else 64
    packed = torch.randn(1, 8 * 256, 2, side, side)
    x, carried = (torch.randn(1, 256, frames, side, side) for frames in (4, 2))
    weight, bias = torch.randn(256), torch.randn(256)
    last = x.contiguous(memory_format=torch.channels_last_3d)

    def einops() -> torch.Tensor:
        return rearrange(packed, "b (x y z c) t h w -> b c (t z) (h x) (w y)", x=2, y=2, z=2)

    def permuted() -> torch.Tensor:
        y = packed.view(1, 2, 2, 2, 256, 2, side, side).permute(0, 4, 5, 3, 6, 1, 7, 2).contiguous()
        return y.view(1, 256, 4, 2 * side, 2 * side)

    def einops_without_head() -> torch.Tensor:
        y = einops()
        return torch.cat([y[:, :, :1], y[:, :, 2:]], dim=2)

    def preallocated() -> torch.Tensor:
        y = torch.empty(1, 256, 6, side + 2, side + 2)
        y[..., 0, :] = y[..., -1, :] = y[..., 0] = y[..., -1] = 0
        y[:, :, :2, 1:-1, 1:-1], y[:, :, 2:, 1:-1, 1:-1] = carried, x
        return y

    groups: dict[str, dict[str, Way]] = {
        "shuffle": {"shuffle by einops": einops, "shuffle by view and permute": permuted},
        "shuffle_head": {
            "shuffle and drop a frame": einops_without_head,
            "head dropped while copying": lambda: eager.pixel_shuffle_3d(packed, 2, drop_head=True),
        },
        "concat": {
            "cat, then pad": lambda: F.pad(torch.cat([carried, x], dim=2), (1, 1, 1, 1)),
            "one padded buffer": preallocated,
        },
        "norm": {
            "GroupNorm, then SiLU": lambda: plain.group_norm_silu(x, weight, bias, GROUPS, 1e-6),
            "GroupNorm with SiLU": lambda: eager.group_norm_silu(x, weight, bias, GROUPS, 1e-6),
        },
        "norm_last": {
            "GroupNorm, then SiLU, channels-last": lambda: plain.group_norm_silu(last, weight, bias, GROUPS, 1e-6),
            "GroupNorm with SiLU, channels-last": lambda: eager.group_norm_silu(last, weight, bias, GROUPS, 1e-6),
        },
    }
    return {name: measure(ways, 2 * rounds) for name, ways in groups.items()} | {"size": f"{side} x {side} cells"}

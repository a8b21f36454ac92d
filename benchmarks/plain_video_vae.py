"""The video VAE's decoder and encoder as its specification reads, line by line, with no optimization at all.

The yardstick of `vae_decode.py`: einops, GroupNorm, SiLU, F.pad, torch.cat, one call for the whole clip. It shares
nothing with the pack but the tensors of the checkpoint.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

Tensors = Mapping[str, torch.Tensor]


def formula_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights that keep activations of order one, a function of key and shape: those of the golden cases."""
    weights = {}
    for key, shape in shapes.items():
        generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
        values = generator.standard_normal(size=shape, dtype=np.float32)
        if key.endswith(".bias"):
            values *= 0.05
        elif "norm" in key:
            values = 1 + 0.1 * values
        else:
            values *= 1 / np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(values.astype(np.float32))
    return weights


class PlainVideoVae:
    """Runs straight from a state dict.

    Args:
        tensors: the checkpoint.
        groups: groups of every GroupNorm.
    """

    def __init__(self, tensors: Tensors, groups: int = 32, eps: float = 1e-6) -> None:
        self.tensors = tensors
        self.groups = groups
        self.eps = eps

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Unscaled latents [B, 16, T', H', W'] to pixels [B, 3, T, H, W]."""
        if self.has("post_quant_conv"):
            z = self.conv("post_quant_conv", z, padding=0)
        x = self.conv("decoder.conv_in", z)
        x = self.mid("decoder.mid_block", x)
        level = 0
        while self.has(block := f"decoder.up_blocks.{level}", ".resnets.0.conv1"):
            x = self.resnets(block, x)
            if self.has(upsampler := f"{block}.upsamplers.0", ".conv"):
                x = self.upsample(upsampler, x)
            level += 1
        x = self.norm("decoder.conv_norm_out", x)
        x = F.silu(x)
        return self.conv("decoder.conv_out", x)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, 4n + 1, H, W] to moments [B, 32, n + 1, H // 8, W // 8]."""
        x = self.conv("encoder.conv_in", x)
        level = 0
        while self.has(block := f"encoder.down_blocks.{level}", ".resnets.0.conv1"):
            x = self.resnets(block, x)
            if self.has(downsampler := f"{block}.downsamplers.0.conv"):
                stride = (2 if self.tensors[f"{downsampler}.weight"].shape[2] == 3 else 1, 2, 2)
                x = self.conv(downsampler, F.pad(x, (0, 1, 0, 1)), padding=0, stride=stride)
            level += 1
        x = self.mid("encoder.mid_block", x)
        x = self.norm("encoder.conv_norm_out", x)
        x = F.silu(x)
        x = self.conv("encoder.conv_out", x)
        return self.conv("quant_conv", x, padding=0) if self.has("quant_conv") else x

    def has(self, name: str, part: str = "") -> bool:
        return f"{name}{part}.weight" in self.tensors

    def parameters(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def conv(
        self, name: str, x: torch.Tensor, padding: int = 1, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> torch.Tensor:
        """Causal: copies of the first frame in front, zeros around the plane."""
        weight, bias = self.parameters(name)
        if weight.shape[2] == 3:
            x = torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)
        if padding:
            x = F.pad(x, (padding, padding, padding, padding))
        return F.conv3d(x, weight, bias, stride)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """GroupNorm of each frame by itself."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        y = F.group_norm(frames, self.groups, *self.parameters(name), self.eps)
        return rearrange(y, "(b t) c h w -> b c t h w", b=x.shape[0])

    def resnets(self, block: str, x: torch.Tensor) -> torch.Tensor:
        index = 0
        while self.has(name := f"{block}.resnets.{index}", ".conv1"):
            h = self.norm(f"{name}.norm1", x)
            h = F.silu(h)
            h = self.conv(f"{name}.conv1", h)
            h = self.norm(f"{name}.norm2", h)
            h = F.silu(h)
            h = self.conv(f"{name}.conv2", h)
            shortcut = f"{name}.conv_shortcut"
            x = (self.conv(shortcut, x, padding=0) if self.has(shortcut) else x) + h
            index += 1
            if block.endswith("mid_block") and index == 1:
                x = self.attention(f"{block}.attentions.0", x)
        return x

    def mid(self, block: str, x: torch.Tensor) -> torch.Tensor:
        return self.resnets(block, x)

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """One head over the positions of each frame."""
        batch, _, _, height, width = x.shape
        tokens = rearrange(self.norm(f"{name}.group_norm", x), "b c t h w -> (b t) (h w) c")
        q, k, v = (F.linear(tokens, *self.parameters(f"{name}.to_{part}")) for part in "qkv")
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        y = F.linear(y, *self.parameters(f"{name}.to_out.0"))
        return x + rearrange(y, "(b t) (h w) c -> b c t h w", b=batch, h=height, w=width)

    def upsample(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.parameters(f"{name}.upscale_conv")
        z = weight.shape[0] // weight.shape[1] // 4
        y = F.conv3d(x, weight, bias)
        y = rearrange(y, "b (x y z c) t h w -> b c (t z) (h x) (w y)", x=2, y=2, z=z)
        if z == 2:
            y = torch.cat([y[:, :, :1], y[:, :, 2:]], dim=2)
        return self.conv(f"{name}.conv", y)

"""The shape of a causal video VAE, and how to read it off a checkpoint's tensor shapes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a state dict, by key."""


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of one video VAE. The defaults are those of `ema_vae_fp16.safetensors` of SeedVR2.

    Attributes:
        block_out_channels: channels of the levels, from full resolution to the coarsest.
        layers_per_block: residual blocks per encoder level; decoder levels have one more.
        latent_channels: channels of a latent; the encoder emits twice as many (mean, then log variance).
        norm_num_groups: groups of every GroupNorm. No tensor shape tells it.
        norm_eps: epsilon of every GroupNorm.
        temporal_scale_num: how many of the spatial halvings also halve time.
        use_quant_conv, use_post_quant_conv: whether the optional 1x1x1 convolutions around the latent exist.
        scaling_factor, shifting_factor: `latent = (mean - shift) * scale`, applied outside the networks.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    temporal_scale_num: int = 2
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    scaling_factor: float = 0.9152
    shifting_factor: float = 0.0

    def __post_init__(self) -> None:
        for channels in self.block_out_channels:
            if self.norm_num_groups < 1 or channels % self.norm_num_groups:
                reason = f"it must divide every entry of block_out_channels {self.block_out_channels}"
                raise InputError("norm_num_groups", self.norm_num_groups, reason, "use the checkpoint's own value")
        if not 0 <= self.temporal_scale_num < len(self.block_out_channels):
            reason = f"time is halved at most {len(self.block_out_channels) - 1} times"
            raise InputError("temporal_scale_num", self.temporal_scale_num, reason)

    @property
    def levels(self) -> int:
        return len(self.block_out_channels)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along height and width."""
        return 2 ** (self.levels - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, after the first."""
        return 2**self.temporal_scale_num

    def halves_time(self, down_block: int) -> bool:
        """Return whether encoder level `down_block` halves time as well as space."""
        return self.levels - 1 - self.temporal_scale_num <= down_block < self.levels - 1

    def doubles_time(self, up_block: int) -> bool:
        """Return whether decoder level `up_block` doubles time as well as space."""
        return up_block < min(self.temporal_scale_num, self.levels - 1)

    def frames(self, latent_frames: int) -> int:
        """Return the number of frames that latent frames decode to: 4 (T' - 1) + 1 with the shipped checkpoint."""
        return self.temporal_factor * (latent_frames - 1) + 1

    def decoded_shape(self, latents: tuple[int, ...]) -> tuple[int, int, int, int, int]:
        """Return (B, 3, T, H, W) of what latents of shape (B, 16, T', H', W') decode to."""
        batch, _, frames, height, width = latents
        factor = self.spatial_factor
        return batch, self.out_channels, self.frames(frames), height * factor, width * factor

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames that frames encode to."""
        return (frames - 1) // self.temporal_factor + 1


def infer_config(shapes: Shapes, *, norm_num_groups: int | None = None) -> VaeConfig:
    """Read the configuration off the tensor shapes.

    Args:
        norm_num_groups: the one setting no shape tells; None stands for 32, the architecture's own value.

    Raises:
        KeyError: a tensor that every VAE of this kind has is missing.
        InputError: the channels cannot be split into that many groups.
    """
    levels = count(shapes, "decoder.up_blocks.{}.resnets.0.conv1.weight")
    channels = tuple(shapes[f"decoder.up_blocks.{i}.resnets.0.conv1.weight"][0] for i in reversed(range(levels)))
    doubling = 0
    for level in range(levels - 1):
        out_channels, in_channels = shapes[f"decoder.up_blocks.{level}.upsamplers.0.upscale_conv.weight"][:2]
        doubling += out_channels == 8 * in_channels
    return VaeConfig(
        in_channels=shapes["encoder.conv_in.weight"][1],
        out_channels=shapes["decoder.conv_out.weight"][0],
        block_out_channels=channels,
        layers_per_block=count(shapes, "decoder.up_blocks.0.resnets.{}.conv1.weight") - 1,
        latent_channels=shapes["decoder.conv_in.weight"][1],
        norm_num_groups=32 if norm_num_groups is None else norm_num_groups,
        temporal_scale_num=doubling,
        use_quant_conv="quant_conv.weight" in shapes,
        use_post_quant_conv="post_quant_conv.weight" in shapes,
    )


def count(shapes: Shapes, pattern: str) -> int:
    """Return how many of `pattern.format(0)`, `pattern.format(1)`, ... exist. Raises KeyError where none does."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    if not number:
        raise KeyError(pattern.format(0))
    return number

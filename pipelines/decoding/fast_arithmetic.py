"""Arithmetic that is faster than diffusers' and rounds differently: fused norm and activation, channels-last layout,
convolutions over time by blocks of frames on a processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ...vae.kernels import Kernels
    from ...vae.network.temporal import Temporal


@dataclass(frozen=True)
class FastArithmetic:
    """The operations that stand in for diffusers' own where a decode may round differently.

    Attributes:
        kernels: RMS norm and SiLU in one operation, by the implementation that works best on the input.
        channels_last: activations lie channels-last in memory.
        block_frames: frames that a convolution over time may make at once from sums of frames; 0 = conv3d alone.
    """

    kernels: Kernels
    channels_last: bool = False
    block_frames: int = 0

    def lay_out(self, x: torch.Tensor) -> torch.Tensor:
        """`x` in the memory layout of the activations."""
        import torch

        return x.contiguous(memory_format=torch.channels_last_3d if self.channels_last else torch.contiguous_format)

    def norm(self, norm: Any, x: torch.Tensor, *, activation: bool = True, out: Any = None) -> torch.Tensor:
        """RMS norm over channels with the weights of diffusers' module (`gamma`, and a `bias` that may be 0.0)."""
        import torch

        bias = norm.bias if isinstance(norm.bias, torch.Tensor) else None
        return self.kernels.rms_norm_silu(x, norm.gamma, bias, activation=activation, out=out)


def over_time(conv: Any, buffer: torch.Tensor, temporal: Temporal) -> torch.Tensor:
    """The convolution of a padded buffer, several frames at once where that is measured to be faster.

    Args:
        conv: of diffusers, with stride 1; its own padding is left out.
        buffer: [B, C, T, H, W].
    """
    import torch

    from ...vae.network.convolution import conv3d

    weight = conv.weight
    outputs, _, taps, rows, columns = weight.shape
    batch, _, frames, height, width = buffer.shape
    made = (frames - taps + 1, height - rows + 1, width - columns + 1)
    cells = made[1] * made[2]
    if temporal.may(buffer, weight, conv.stride, frames, cells, head=False):
        last = torch.channels_last_3d
        out = torch.empty((batch, outputs, *made), dtype=buffer.dtype, device=buffer.device, memory_format=last)
        if temporal.convolve(str(id(conv)), buffer, weight, conv.bias, out, head=False, cells=cells):
            return out
    return conv3d(buffer, weight, conv.bias)


def most_frames(latents: torch.Tensor, *, channels_last: bool) -> int:
    """Frames of the largest block for latents of this device and dtype."""
    from ...vae.network.temporal import LARGEST_BLOCK

    return LARGEST_BLOCK.get(latents.dtype, 0) if latents.device.type == "cpu" and channels_last else 0


def refuse(vae: Any) -> str:
    """Why this decoder's weights must not be read past its layers' own calls, or ""."""
    from torch import nn

    decoder = vae.decoder
    if decoder._compiled_call_impl is not None:
        return "the decoder is compiled, and compiled code runs as it is"
    if decoder.training:
        return "the decoder is in training mode"
    for module in decoder.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if getattr(module, "_hf_hook", None) is not None or (registry is not None and registry.hooks):
            return "its layers are moved or cast one by one when they are called (offload, layerwise casting)"
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv3d) and (weight is None or not weight.is_floating_point()):
            return "its convolutions are quantized"
    return ""

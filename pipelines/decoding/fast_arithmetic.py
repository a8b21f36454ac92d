"""What the walks through diffusers' video decoders share: padded buffers, memory layout, and who may be walked.

A walk calls a decoder's layers itself, with the modules' own weights and the state of the clip in its own hands. The
modules are only read: an exception in the middle leaves nothing behind, and two walks cannot disturb each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ...vae.kernels import Kernels


@dataclass(frozen=True)
class FastArithmetic:
    """How a walk computes where it need not repeat diffusers' own operations.

    Attributes:
        kernels: RMS norm and SiLU in one operation, by the implementation that works best on the input.
        channels_last: activations lie channels-last in memory.
    """

    kernels: Kernels
    channels_last: bool = False

    def lay_out(self, x: torch.Tensor) -> torch.Tensor:
        """`x` in the memory layout of the walk."""
        import torch

        return x.contiguous(memory_format=torch.channels_last_3d if self.channels_last else torch.contiguous_format)

    def norm(self, norm: Any, x: torch.Tensor, *, activation: bool = True, out: Any = None) -> torch.Tensor:
        """RMS norm over channels with the weights of diffusers' module (`gamma`, and a `bias` that may be 0.0)."""
        import torch

        bias = norm.bias if isinstance(norm.bias, torch.Tensor) else None
        return self.kernels.rms_norm_silu(x, norm.gamma, bias, activation=activation, out=out)


def padded(like: torch.Tensor, pad: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """An uninitialised buffer around a tensor like `like`, in its memory layout, and the view of its planes' inside.

    Args:
        like: [B, C, T, H, W].
        pad: (left, right, top, bottom, frames in front), as diffusers' causal convolutions keep it.

    Returns:
        (buffer [B, C, front + T, top + H + bottom, left + W + right], view [B, C, front + T, H, W]).
    """
    from ...vae.network.execution import empty

    left, right, top, bottom, front = pad[:5]
    batch, channels, frames, height, width = like.shape
    buffer = empty((batch, channels, front + frames, top + height + bottom, left + width + right), like)
    return buffer, buffer[..., top : top + height, left : left + width]


def replicate_border(buffer: torch.Tensor, pad: tuple[int, ...]) -> None:
    """Copies of its outermost rows and columns around every plane."""
    left, right, top, bottom = pad[:4]
    for axis, before, after in ((3, top, bottom), (4, left, right)):
        size = buffer.shape[axis]
        if before:
            buffer.narrow(axis, 0, before).copy_(
                buffer.narrow(axis, before, 1).expand_as(buffer.narrow(axis, 0, before))
            )
        if after:
            edge = buffer.narrow(axis, size - after - 1, 1)
            target = buffer.narrow(axis, size - after, after)
            target.copy_(edge.expand_as(target))


def moved_in_parts(decoder: Any) -> str:
    """Why the layers of a decoder cannot be called one by one: something acts when a whole block is called, or ""."""
    from ...optimizations.components import is_group_offloaded

    return "group offload is active on it" if any(map(is_group_offloaded, decoder.modules())) else ""


def refuse_fast(vae: Any) -> str:
    """Why a walk must not read this decoder's weights past its layers' own calls, or ""."""
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

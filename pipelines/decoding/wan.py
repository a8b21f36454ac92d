"""The decoders of Wan and Qwen-Image, walked in time with fewer passes over memory.

diffusers normalises, activates, joins the carried frames, pads and convolves one after the other, each step a tensor of
its own. Here norm and activation are one operation that writes straight into the padded buffer of the convolution,
behind the carried frames; doubled frames are interleaved and enlarged in one copy. Weights are diffusers' own modules',
which are only read. The result is diffusers' within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .fast_arithmetic import FastArithmetic, padded, refuse_fast

if TYPE_CHECKING:
    import torch


@dataclass
class WalkState:
    """One decode.

    Attributes:
        fast: how it computes.
        tails: per causal convolution, its last two input frames.
        first: True while the very first frame is in flight: it is not doubled in time.
    """

    fast: FastArithmetic
    tails: dict[int, torch.Tensor] = field(default_factory=dict)
    first: bool = True


def refuse(vae: Any) -> str:
    """Why this object's decoder cannot be walked, or ""."""
    from torch import nn

    if not isinstance(vae.decoder.nonlinearity, nn.SiLU):
        return f"its activation is {type(vae.decoder.nonlinearity).__name__}, not SiLU"
    return refuse_fast(vae)


def stream(vae: Any, latents: torch.Tensor, step: int, fast: FastArithmetic) -> Iterator[torch.Tensor]:
    """The decoder's raw output in runs [B, C, t, H, W]: the first latent frame alone, then `step` at a time."""
    hidden = fast.lay_out(vae.post_quant_conv(latents))
    state = WalkState(fast)
    for start in [0, *range(1, hidden.shape[2], step)]:
        stop = 1 if start == 0 else min(start + step, hidden.shape[2])
        yield _decoder_step(vae.decoder, fast.lay_out(hidden[:, :, start:stop]), state)
        state.first = False


def _decoder_step(decoder: Any, hidden: torch.Tensor, state: WalkState) -> torch.Tensor:
    hidden = _convolved(decoder.conv_in, hidden, state)
    mid = decoder.mid_block
    hidden = _resnet(mid.resnets[0], hidden, state)
    for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        if attention is not None:
            hidden = state.fast.lay_out(attention(hidden))
        hidden = _resnet(resnet, hidden, state)
    for block in decoder.up_blocks:
        hidden = _up_block(block, hidden, state)
    return _convolved(decoder.conv_out, hidden, state, norm=decoder.norm_out)


def _up_block(block: Any, hidden: torch.Tensor, state: WalkState) -> torch.Tensor:
    shortcut = getattr(block, "avg_shortcut", None)  # Wan 2.2 adds its input, repeated, around the whole block
    entered = hidden if shortcut is not None else None
    for resnet in block.resnets:
        hidden = _resnet(resnet, hidden, state)
    upsampler = block.upsampler if hasattr(block, "upsampler") else (block.upsamplers or [None])[0]
    if upsampler is not None:
        hidden = _upsampled(upsampler, hidden, state)
    return hidden if shortcut is None else hidden.add_(shortcut(entered, first_chunk=state.first))


def _resnet(block: Any, hidden: torch.Tensor, state: WalkState) -> torch.Tensor:
    branch = _convolved(block.conv1, hidden, state, norm=block.norm1)
    branch = _convolved(block.conv2, branch, state, norm=block.norm2)
    channels_change = hasattr(block.conv_shortcut, "weight")
    return branch.add_(_convolved(block.conv_shortcut, hidden, state) if channels_change else hidden)


def _convolved(conv: Any, x: torch.Tensor, state: WalkState, norm: Any = None) -> torch.Tensor:
    """A causal convolution, of `silu(norm(x))` where a norm is given. Zeros stand before the clip and around it."""
    from ...vae.kernels import Border, Padded
    from ...vae.network.convolution import conv3d

    pad = conv._padding
    front = pad[4]
    if norm is None and not any(pad):
        return conv3d(x, conv.weight, conv.bias)
    buffer, inside = padded(x, pad)
    border = Border(*pad[:4])
    own = Padded(buffer[:, :, front:], border)
    if norm is None:
        own.inside.copy_(x)
        own.surround()
    else:
        state.fast.norm(norm, x, out=own)
    if front:
        carried, tail = Padded(buffer[:, :, :front], border), state.tails.get(id(conv))
        carried.inside.zero_() if tail is None else carried.inside.copy_(tail)
        carried.surround()
        # A clone: a view would keep the whole buffer alive until the next run.
        state.tails[id(conv)] = inside[:, :, -front:].clone()
    return conv3d(buffer, conv.weight, conv.bias)


def _upsampled(module: Any, x: torch.Tensor, state: WalkState) -> torch.Tensor:
    """Twice the frames (but for the clip's first) by a convolution in time, twice the size, a convolution per frame."""
    import torch
    import torch.nn.functional as F

    batch, channels, frames, height, width = x.shape
    doubled = 1
    if module.mode == "upsample3d" and not state.first:
        x, doubled = _convolved(module.time_conv, x, state), 2
    # [B, k, C, t, h, w] -> [B, t, k, C, h, 1, w, 1], spread over two rows and two columns while it is copied.
    source = x.unflatten(1, (doubled, channels)).permute(0, 3, 1, 2, 4, 5)[..., None, :, None]
    last = torch.channels_last if state.fast.channels_last else torch.contiguous_format
    shape = (batch * frames * doubled, channels, 2 * height, 2 * width)
    large = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
    large.view(batch, frames, doubled, channels, height, 2, width, 2).copy_(source)
    conv = module.resample[1]
    result = F.conv2d(large, conv.weight, conv.bias, padding=conv.padding)
    return result.unflatten(0, (batch, frames * doubled)).transpose(1, 2)

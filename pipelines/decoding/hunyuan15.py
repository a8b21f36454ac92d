"""HunyuanVideo 1.5's decoder, walked in time: the same modules and weights, with the causal state held by the caller.

diffusers runs this decoder over the whole clip at once and builds a causal attention mask of (frames * h * w) squared.
Causality makes both unnecessary: a convolution needs the two frames before it, and the attention of one frame needs the
keys and values of that frame and of the ones before, without any mask. The result is the same within rounding.
With `FastArithmetic`, norm and activation are one operation that writes into the padded buffer of the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .fast_arithmetic import FastArithmetic, moved_in_parts, padded, refuse_fast, replicate_border

if TYPE_CHECKING:
    import torch


@dataclass
class StreamState:
    """What the frames so far leave for the next ones.

    Attributes:
        tails: per causal convolution, its last two input frames (spatially padded).
        keys, values: per attention block, [B, 1, positions so far, C]; they grow with the clip, at latent resolution.
        first: True while the very first frame is in flight: it is not doubled in time.
        fast: None repeats diffusers' operations.
    """

    tails: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    first: bool = True
    fast: FastArithmetic | None = None


def refuse(vae: Any) -> str:
    """Block-level group offload moves weights when a whole block is called; this walk calls the layers inside it."""
    return moved_in_parts(vae.decoder)


def refuse_fast_walk(vae: Any) -> str:
    """Why `FastArithmetic` does not suit this object, or ""."""
    from torch import nn

    decoder = vae.decoder
    if not isinstance(decoder.conv_act, nn.SiLU):
        return f"its activation is {type(decoder.conv_act).__name__}, not SiLU"
    if any(getattr(module, "pad_mode", "replicate") != "replicate" for module in decoder.modules()):
        return "its convolutions are not padded with copies of the edge"
    return refuse_fast(vae)


def stream(vae: Any, latents: torch.Tensor, step: int, fast: FastArithmetic | None = None) -> Iterator[torch.Tensor]:
    """Runs of pixel frames [B, 3, t, H, W]: the first latent frame alone, then `step` at a time."""
    state = StreamState(fast=fast)
    for start in [0, *range(1, latents.shape[2], step)]:
        stop = 1 if start == 0 else min(start + step, latents.shape[2])
        hidden = latents[:, :, start:stop]
        yield _decoder_step(vae.decoder, hidden if fast is None else fast.lay_out(hidden), state)
        state.first = False


def _decoder_step(decoder: Any, latents: torch.Tensor, state: StreamState) -> torch.Tensor:
    hidden = _conv(decoder.conv_in, latents, state) + latents.repeat_interleave(decoder.repeat, dim=1)
    mid = decoder.mid_block
    hidden = _resnet(mid.resnets[0], hidden, state)
    for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        if attention is not None:
            hidden = _attention(attention, hidden, state)
            hidden = hidden if state.fast is None else state.fast.lay_out(hidden)
        hidden = _resnet(resnet, hidden, state)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            hidden = _resnet(resnet, hidden, state)
        for upsampler in block.upsamplers or ():
            hidden = _upsample(upsampler, hidden, state)
            hidden = hidden if state.fast is None else state.fast.lay_out(hidden)
    return _activated_conv(decoder.norm_out, decoder.conv_act, decoder.conv_out, hidden, state)


def _activated_conv(norm: Any, activation: Any, conv: Any, hidden: torch.Tensor, state: StreamState) -> torch.Tensor:
    if state.fast is None:
        return _conv(conv, activation(norm(hidden)), state)
    return _fast_conv(conv, hidden, state, state.fast, norm)


def _conv(module: Any, hidden: torch.Tensor, state: StreamState) -> torch.Tensor:
    """One causal convolution: in front of the first run stand copies of its first frame, later the carried tail."""
    import torch
    import torch.nn.functional as F

    if state.fast is not None:
        return _fast_conv(module, hidden, state, state.fast)
    left, right, top, bottom, front, _ = module.time_causal_padding
    tail = state.tails.get(id(module))
    if tail is None:
        around = F.pad(hidden, (left, right, top, bottom, front, 0), mode=module.pad_mode)
    else:
        around = F.pad(hidden, (left, right, top, bottom, 0, 0), mode=module.pad_mode)
        around = torch.cat((tail, around), dim=2)
    if front:
        # A clone: a view would keep the whole padded input alive until the next run.
        state.tails[id(module)] = around[:, :, -front:].clone()
    return module.conv(around)


def _fast_conv(
    module: Any, hidden: torch.Tensor, state: StreamState, fast: FastArithmetic, norm: Any = None
) -> torch.Tensor:
    """`_conv` of the tensor, or of `silu(norm(tensor))`, that is written once: where the convolution reads it."""
    from ...vae.network.convolution import conv3d

    pad = module.time_causal_padding
    front = pad[4]
    buffer, inside = padded(hidden, pad)
    if norm is None:
        inside[:, :, front:].copy_(hidden)
    else:
        fast.norm(norm, hidden, out=inside[:, :, front:])
    if front:
        tail = state.tails.get(id(module))
        inside[:, :, :front].copy_(
            inside[:, :, front : front + 1].expand(-1, -1, front, -1, -1) if tail is None else tail
        )
        state.tails[id(module)] = inside[:, :, -front:].clone()
    replicate_border(buffer, pad)
    return conv3d(buffer, module.conv.weight, module.conv.bias)


def _resnet(block: Any, hidden: torch.Tensor, state: StreamState) -> torch.Tensor:
    residual = hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)
    hidden = _activated_conv(block.norm1, block.nonlinearity, block.conv1, hidden, state)
    hidden = _activated_conv(block.norm2, block.nonlinearity, block.conv2, hidden, state)
    return hidden.add_(residual)


def _attention(block: Any, hidden: torch.Tensor, state: StreamState) -> torch.Tensor:
    """Frame-causal attention: each frame sees itself and the frames before it."""
    import torch
    import torch.nn.functional as F

    normed = block.norm(hidden)
    outputs = []
    for index in range(hidden.shape[2]):
        frame = normed[:, :, index : index + 1]
        query, key, value = (_positions(layer(frame)) for layer in (block.to_q, block.to_k, block.to_v))
        if id(block) in state.keys:
            key = torch.cat((state.keys[id(block)], key), dim=2)
            value = torch.cat((state.values[id(block)], value), dim=2)
        state.keys[id(block)], state.values[id(block)] = key, value
        attended = F.scaled_dot_product_attention(query, key, value)
        outputs.append(attended.squeeze(1).transpose(1, 2).reshape(frame.shape))
    return block.proj_out(torch.cat(outputs, dim=2)) + hidden


def _positions(tensor: torch.Tensor) -> torch.Tensor:
    """[B, C, 1, h, w] -> [B, 1, h * w, C]."""
    return tensor.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


def _upsample(module: Any, hidden: torch.Tensor, state: StreamState) -> torch.Tensor:
    """Pixel shuffle of the convolution plus the channel-repeated shortcut; the first frame is not doubled in time."""
    doubled = module.add_temporal_upsample
    shuffled = _conv(module.conv, hidden, state)
    rearrange = module._dcae_upsample_rearrange
    if doubled and state.first:
        shuffled = rearrange(shuffled, r1=1, r2=2, r3=2)
        shuffled = shuffled[:, : shuffled.shape[1] // 2]
        shortcut = rearrange(hidden, r1=1, r2=2, r3=2).repeat_interleave(module.repeats // 2, dim=1)
        return shuffled + shortcut
    factor = 2 if doubled else 1
    shuffled = rearrange(shuffled, r1=factor, r2=2, r3=2)
    if doubled:
        shortcut = rearrange(hidden, r1=2, r2=2, r3=2).repeat_interleave(module.repeats, dim=1)
    else:
        shortcut = rearrange(hidden.repeat_interleave(module.repeats, dim=1), r1=1, r2=2, r3=2)
    return shuffled.add_(shortcut)

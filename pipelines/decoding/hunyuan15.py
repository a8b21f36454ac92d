"""HunyuanVideo 1.5's decoder in runs of frames: the same modules and weights, with a cache of the frames before.

diffusers runs this decoder over the whole clip at once and builds a causal attention mask of (frames * h * w) squared.
Causality makes both unnecessary: a convolution needs the two frames before it, and the attention of one frame needs the
keys and values of that frame and of the ones before, without any mask. The result is the same within rounding.
With `FastArithmetic`, norm and activation are one operation that writes into the padded buffer of the convolution, and
on a processor convolutions over time make several frames at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import fast_arithmetic
from .fast_arithmetic import FastArithmetic, over_time
from .layers import latent_chunks, moved_in_parts, padded, replicate_border

if TYPE_CHECKING:
    import torch

    from ...vae.network.temporal import Temporal


@dataclass
class CausalCache:
    """What one decode keeps from run to run.

    Attributes:
        fast: how it computes; None repeats diffusers' operations.
        temporal: how it convolves over time.
        frames: per causal convolution, its last two input frames (padded to the sides unless `fast`).
        keys, values: per attention block, [B, 1, positions so far, C]; they grow with the clip, at latent resolution.
        first_chunk: True for the first latent frame, which is not doubled in time.
    """

    fast: FastArithmetic | None
    temporal: Temporal
    frames: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    first_chunk: bool = True


def refuse(vae: Any) -> str:
    """Why this object cannot be streamed, or "": group offload moves weights when a block is called, not its layers."""
    return moved_in_parts(vae.decoder)


def refuse_fast(vae: Any) -> str:
    """Why `FastArithmetic` does not suit this object, or ""."""
    from torch import nn

    decoder = vae.decoder
    if not isinstance(decoder.conv_act, nn.SiLU):
        return f"its activation is {type(decoder.conv_act).__name__}, not SiLU"
    if any(getattr(module, "pad_mode", "replicate") != "replicate" for module in decoder.modules()):
        return "its convolutions are not padded with copies of the edge"
    return fast_arithmetic.refuse(vae)


def stream(vae: Any, latents: torch.Tensor, step: int, fast: FastArithmetic | None = None) -> Iterator[torch.Tensor]:
    """Runs of pixel frames [B, 3, t, H, W]: the first latent frame alone, then `step` at a time."""
    from ...vae.network.temporal import Temporal

    cache = CausalCache(fast, Temporal(0 if fast is None else fast.block_frames))
    for cache.first_chunk, chunk in latent_chunks(latents, step):
        yield _decoder_step(vae.decoder, chunk if fast is None else fast.lay_out(chunk), cache)


def _decoder_step(decoder: Any, latents: torch.Tensor, cache: CausalCache) -> torch.Tensor:
    hidden = _conv(decoder.conv_in, latents, cache) + latents.repeat_interleave(decoder.repeat, dim=1)
    mid = decoder.mid_block
    hidden = _resnet(mid.resnets[0], hidden, cache)
    for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        if attention is not None:
            hidden = _attention(attention, hidden, cache)
            hidden = hidden if cache.fast is None else cache.fast.lay_out(hidden)
        hidden = _resnet(resnet, hidden, cache)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            hidden = _resnet(resnet, hidden, cache)
        for upsampler in block.upsamplers or ():
            hidden = _upsample(upsampler, hidden, cache)
            hidden = hidden if cache.fast is None else cache.fast.lay_out(hidden)
    return _activated_conv(decoder.norm_out, decoder.conv_act, decoder.conv_out, hidden, cache)


def _activated_conv(norm: Any, activation: Any, conv: Any, hidden: torch.Tensor, cache: CausalCache) -> torch.Tensor:
    if cache.fast is None:
        return _conv(conv, activation(norm(hidden)), cache)
    return _fast_conv(conv, hidden, cache, cache.fast, norm)


def _conv(module: Any, hidden: torch.Tensor, cache: CausalCache) -> torch.Tensor:
    """One causal convolution: in front of the first run stand copies of its first frame, later the carried tail."""
    import torch
    import torch.nn.functional as F

    if cache.fast is not None:
        return _fast_conv(module, hidden, cache, cache.fast)
    left, right, top, bottom, front, _ = module.time_causal_padding
    tail = cache.frames.get(id(module))
    if tail is None:
        around = F.pad(hidden, (left, right, top, bottom, front, 0), mode=module.pad_mode)
    else:
        around = F.pad(hidden, (left, right, top, bottom, 0, 0), mode=module.pad_mode)
        around = torch.cat((tail, around), dim=2)
    if front:
        # A clone: a view would keep the whole padded input alive until the next run.
        cache.frames[id(module)] = around[:, :, -front:].clone()
    return module.conv(around)


def _fast_conv(
    module: Any, hidden: torch.Tensor, cache: CausalCache, fast: FastArithmetic, norm: Any = None
) -> torch.Tensor:
    """`_conv` of the tensor, or of `silu(norm(tensor))`, that is written once: where the convolution reads it."""
    pad = module.time_causal_padding
    front = pad[4]
    buffer, inside = padded(hidden, pad)
    if norm is None:
        inside[:, :, front:].copy_(hidden)
    else:
        fast.norm(norm, hidden, out=inside[:, :, front:])
    if front:
        tail = cache.frames.get(id(module))
        inside[:, :, :front].copy_(
            inside[:, :, front : front + 1].expand(-1, -1, front, -1, -1) if tail is None else tail
        )
        cache.frames[id(module)] = inside[:, :, -front:].clone()
    replicate_border(buffer, pad)
    return over_time(module.conv, buffer, cache.temporal)


def _resnet(block: Any, hidden: torch.Tensor, cache: CausalCache) -> torch.Tensor:
    residual = hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)
    hidden = _activated_conv(block.norm1, block.nonlinearity, block.conv1, hidden, cache)
    hidden = _activated_conv(block.norm2, block.nonlinearity, block.conv2, hidden, cache)
    return hidden.add_(residual)


def _attention(block: Any, hidden: torch.Tensor, cache: CausalCache) -> torch.Tensor:
    """Frame-causal attention: each frame sees itself and the frames before it."""
    import torch
    import torch.nn.functional as F

    normed = block.norm(hidden)
    outputs = []
    for index in range(hidden.shape[2]):
        frame = normed[:, :, index : index + 1]
        query, key, value = (_positions(layer(frame)) for layer in (block.to_q, block.to_k, block.to_v))
        if id(block) in cache.keys:
            key = torch.cat((cache.keys[id(block)], key), dim=2)
            value = torch.cat((cache.values[id(block)], value), dim=2)
        cache.keys[id(block)], cache.values[id(block)] = key, value
        attended = F.scaled_dot_product_attention(query, key, value)
        outputs.append(attended.squeeze(1).transpose(1, 2).reshape(frame.shape))
    return block.proj_out(torch.cat(outputs, dim=2)) + hidden


def _positions(tensor: torch.Tensor) -> torch.Tensor:
    """[B, C, 1, h, w] -> [B, 1, h * w, C]."""
    return tensor.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


def _upsample(module: Any, hidden: torch.Tensor, cache: CausalCache) -> torch.Tensor:
    """Pixel shuffle of the convolution plus the channel-repeated shortcut; the first frame is not doubled in time."""
    doubled = module.add_temporal_upsample
    shuffled = _conv(module.conv, hidden, cache)
    rearrange = module._dcae_upsample_rearrange
    if doubled and cache.first_chunk:
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

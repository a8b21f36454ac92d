"""The decoders of Wan and Qwen-Image in runs of frames: diffusers' own, or its layers in fewer passes over memory.

diffusers' decoder takes its cache as an argument: runs of one latent frame give the bits of `vae.decode`. It
normalises, activates, joins the cached frames, pads and convolves one after the other, each step a tensor of its own.
With `FastArithmetic`, norm and activation are one operation that writes straight into the padded buffer of the
convolution, behind the cached frames; doubled frames are interleaved and enlarged in one copy. That is diffusers'
result within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import fast_arithmetic
from .fast_arithmetic import FastArithmetic
from .layers import latent_chunks, padded, unpatchify

if TYPE_CHECKING:
    import torch


@dataclass
class FeatureCache:
    """What one fast decode keeps from run to run; diffusers' `feat_cache`.

    Attributes:
        fast: how it computes.
        frames: per causal convolution, its last two input frames.
        first_chunk: True for the first latent frame, which is not doubled in time.
    """

    fast: FastArithmetic
    frames: dict[int, torch.Tensor] = field(default_factory=dict)
    first_chunk: bool = True


def refuse_fast(vae: Any) -> str:
    """Why `FastArithmetic` does not suit this object, or ""."""
    from torch import nn

    if not isinstance(vae.decoder.nonlinearity, nn.SiLU):
        return f"its activation is {type(vae.decoder.nonlinearity).__name__}, not SiLU"
    return fast_arithmetic.refuse(vae)


def stream(vae: Any, latents: torch.Tensor, step: int, fast: FastArithmetic | None = None) -> Iterator[torch.Tensor]:
    """Runs of pixel frames [B, 3, t, H, W]: the first latent frame alone, then `step` at a time."""
    hidden = vae.post_quant_conv(latents)
    runs = decoder_runs(vae, hidden, step) if fast is None else _fast_runs(vae, hidden, step, fast)
    for pixels in runs:
        yield finish_pixels(vae, pixels).clamp_(-1.0, 1.0)


def decoder_runs(vae: Any, hidden: torch.Tensor, step: int) -> Iterator[torch.Tensor]:
    """What diffusers' decoder gives, run by run.

    Args:
        hidden: [B, C, T, h, w] after `post_quant_conv`.
        step: latent frames per run after the first.
    """
    import inspect

    decoder = vae.decoder
    slots = sum(1 for module in decoder.modules() if type(module).__name__.endswith("CausalConv3d"))
    marks_first_chunk = "first_chunk" in inspect.signature(decoder.forward).parameters
    cache: list[Any] = [None] * slots
    for first, chunk in latent_chunks(hidden, step):
        extra = {"first_chunk": first} if marks_first_chunk else {}
        yield decoder(chunk, feat_cache=cache, feat_idx=[0], **extra)


def finish_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Unpack the patches of VAEs that decode to patches (Wan 2.2 5B); others pass through."""
    return unpatchify(pixels, getattr(vae.config, "patch_size", None) or 1)


def _fast_runs(vae: Any, hidden: torch.Tensor, step: int, fast: FastArithmetic) -> Iterator[torch.Tensor]:
    hidden = fast.lay_out(hidden)
    cache = FeatureCache(fast)
    for cache.first_chunk, chunk in latent_chunks(hidden, step):
        yield _decoder_step(vae.decoder, fast.lay_out(chunk), cache)


def _decoder_step(decoder: Any, hidden: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
    hidden = _convolved(decoder.conv_in, hidden, cache)
    mid = decoder.mid_block
    hidden = _resnet(mid.resnets[0], hidden, cache)
    for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        if attention is not None:
            hidden = cache.fast.lay_out(attention(hidden))
        hidden = _resnet(resnet, hidden, cache)
    for block in decoder.up_blocks:
        hidden = _up_block(block, hidden, cache)
    return _convolved(decoder.conv_out, hidden, cache, norm=decoder.norm_out)


def _up_block(block: Any, hidden: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
    shortcut = getattr(block, "avg_shortcut", None)  # Wan 2.2 adds its input, repeated, around the whole block
    entered = hidden if shortcut is not None else None
    for resnet in block.resnets:
        hidden = _resnet(resnet, hidden, cache)
    upsampler = block.upsampler if hasattr(block, "upsampler") else (block.upsamplers or [None])[0]
    if upsampler is not None:
        hidden = _upsampled(upsampler, hidden, cache)
    return hidden if shortcut is None else hidden.add_(shortcut(entered, first_chunk=cache.first_chunk))


def _resnet(block: Any, hidden: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
    branch = _convolved(block.conv1, hidden, cache, norm=block.norm1)
    branch = _convolved(block.conv2, branch, cache, norm=block.norm2)
    channels_change = hasattr(block.conv_shortcut, "weight")
    return branch.add_(_convolved(block.conv_shortcut, hidden, cache) if channels_change else hidden)


def _convolved(conv: Any, x: torch.Tensor, cache: FeatureCache, norm: Any = None) -> torch.Tensor:
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
        cache.fast.norm(norm, x, out=own)
    if front:
        carried, tail = Padded(buffer[:, :, :front], border), cache.frames.get(id(conv))
        carried.inside.zero_() if tail is None else carried.inside.copy_(tail)
        carried.surround()
        # A clone: a view would keep the whole buffer alive until the next run.
        cache.frames[id(conv)] = inside[:, :, -front:].clone()
    return conv3d(buffer, conv.weight, conv.bias)


def _upsampled(module: Any, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
    """Twice the frames (but for the clip's first) by a convolution in time, twice the size, a convolution per frame."""
    import torch
    import torch.nn.functional as F

    batch, channels, frames, height, width = x.shape
    doubled = 1
    if module.mode == "upsample3d" and not cache.first_chunk:
        x, doubled = _convolved(module.time_conv, x, cache), 2
    # [B, k, C, t, h, w] -> [B, t, k, C, h, 1, w, 1], spread over two rows and two columns while it is copied.
    source = x.unflatten(1, (doubled, channels)).permute(0, 3, 1, 2, 4, 5)[..., None, :, None]
    last = torch.channels_last if cache.fast.channels_last else torch.contiguous_format
    shape = (batch * frames * doubled, channels, 2 * height, 2 * width)
    large = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
    large.view(batch, frames, doubled, channels, height, 2, width, 2).copy_(source)
    conv = module.resample[1]
    result = F.conv2d(large, conv.weight, conv.bias, padding=conv.padding)
    return result.unflatten(0, (batch, frames * doubled)).transpose(1, 2)

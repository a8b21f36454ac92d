"""The decoders of Wan and Qwen-Image in runs of frames: diffusers' own, or its layers in fewer passes over memory.

diffusers' decoder takes its cache as an argument: runs of one latent frame give the bits of `vae.decode`. It
normalises, activates, joins the cached frames, pads and convolves one after the other, each step a tensor of its own.
With `FastArithmetic`, norm and activation are one operation that writes straight into the padded buffer of the
convolution, behind the cached frames; doubled frames are interleaved while they are copied, and the convolution of an
enlarged plane is four smaller ones of the plane itself; on a processor convolutions over time make several frames at
once. That is diffusers' result within rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from . import fast_arithmetic
from .fast_arithmetic import FastArithmetic, over_time
from .layers import latent_chunks, padded, unpatchify

if TYPE_CHECKING:
    import torch

    from ...vae.network.temporal import Temporal


@dataclass
class FeatureCache:
    """What one fast decode keeps from run to run; diffusers' `feat_cache`.

    Attributes:
        fast: how it computes.
        temporal: how it convolves over time.
        frames: per causal convolution, its last two input frames.
        phases: per convolution of an enlarged plane, those of its four phases.
        first_chunk: True for the first latent frame, which is not doubled in time.
    """

    fast: FastArithmetic
    temporal: Temporal
    frames: dict[int, torch.Tensor] = field(default_factory=dict)
    phases: dict[int, list[torch.Tensor]] = field(default_factory=dict)
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
    from ...vae.network.temporal import Temporal

    hidden = fast.lay_out(hidden)
    cache = FeatureCache(fast, Temporal(fast.block_frames))
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
    return over_time(conv, buffer, cache.temporal)


def _upsampled(module: Any, x: torch.Tensor, cache: FeatureCache) -> torch.Tensor:
    """Twice the frames (but for the clip's first) by a convolution in time, twice the size, a convolution per frame."""
    import torch
    import torch.nn.functional as F

    batch, channels, frames, height, width = x.shape
    doubled = 1
    if module.mode == "upsample3d" and not cache.first_chunk:
        x, doubled = _convolved(module.time_conv, x, cache), 2
    # [B, k, C, t, h, w] -> [B, t, k, C, h, w], with zeros around each plane.
    source = x.unflatten(1, (doubled, channels)).permute(0, 3, 1, 2, 4, 5)
    last = torch.channels_last if cache.fast.channels_last else torch.contiguous_format
    planes = batch * frames * doubled
    new = partial(torch.empty, dtype=x.dtype, device=x.device, memory_format=last)
    buffer = new((planes, channels, height + 2, width + 2))
    for axis, size in ((2, height), (3, width)):
        buffer.narrow(axis, 0, 1).zero_()
        buffer.narrow(axis, size + 1, 1).zero_()
    inside = buffer[:, :, 1:-1, 1:-1]
    inside.view(batch, frames, doubled, channels, height, width).copy_(source)
    conv = module.resample[1]
    if id(conv) not in cache.phases:
        cache.phases[id(conv)] = phases(conv.weight)
    large = new((planes, conv.out_channels, 2 * height, 2 * width))
    for phase, weight in enumerate(cache.phases[id(conv)]):
        a, b = divmod(phase, 2)
        window = buffer[:, :, a : a + height + 1, b : b + width + 1]
        large[:, :, a::2, b::2].copy_(F.conv2d(window, weight, conv.bias))
    return large.unflatten(0, (batch, frames * doubled)).transpose(1, 2)


def phases(weight: torch.Tensor) -> list[torch.Tensor]:
    """A 3x3 convolution [O, I, 3, 3] of a plane that was doubled by repeating its cells, as four of the plane itself.

    Seen from an even output row, the three rows of the kernel fall on two rows of the plane: the upper one, and twice
    its own; from an odd one twice its own, and the lower one. Taps that fall on the same cell are summed (in float32).

    Returns:
        kernels [O, I, 2, 2] of the output cells in even rows and columns, even and odd, odd and even, odd and odd.
    """
    import torch

    taps = weight.float()

    def halves(x: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        one, two, three = x.unbind(axis)
        return torch.stack((one, two + three), axis), torch.stack((one + two, three), axis)

    made = [phase for rows in halves(taps, 2) for phase in halves(rows, 3)]
    last = torch.channels_last if weight.stride(1) == 1 else torch.contiguous_format
    return [phase.to(weight.dtype).contiguous(memory_format=last) for phase in made]

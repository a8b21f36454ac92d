"""The video VAE with single optimizations taken away: each step as it is usually written, put in its place for a while.

For `vae_decode.py`, which measures what each of them is worth, and for the tests that hold each against the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from ..vae import VideoVAE, dry_run
from ..vae.kernels import Kernels, Padded
from ..vae.network import attention, causal_conv, model
from ..vae.network.attention import FrameAttention
from ..vae.network.blocks import ResnetBlock
from ..vae.network.causal_conv import CausalConv3d
from ..vae.network.execution import Execution, empty
from ..vae.network.sources import Activated, Source, gather
from ..vae.network.strips import Block
from ..vae.network.temporal import Temporal
from ..vae.network.upsampling import Upsampler

Change = tuple[Any, str, Any]
"""An object, the name of its attribute, and what takes its place."""


@contextmanager
def only(*optimizations: str) -> Iterator[None]:
    """Inside the `with` block, run the video VAE with these of `OPTIMIZATIONS` and no others, in all threads."""
    away = frozenset(OPTIMIZATIONS) - frozenset(optimizations)
    with ExitStack() as stack:
        if away:
            stack.enter_context(patch.object(dry_run, "_count", _count_without(away)))
        for name, changes in OPTIMIZATIONS.items():
            for place, attribute, replacement in changes if name in away else ():
                stack.enter_context(patch.object(place, attribute, replacement))
        yield


@cache
def _count_without(away: frozenset[str]) -> Callable[..., tuple[int, int]]:
    """The planner's dry run with a memory of its own: others have other peaks."""
    return lru_cache(maxsize=256)(dry_run._count.__wrapped__)


def contiguous_weights(vae: VideoVAE) -> VideoVAE:
    """The VAE itself, its convolutions' weights no longer in channels_last_3d."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous()
    for module in vae.modules():
        if isinstance(module, Upsampler):
            module.prepare()
    return vae


def _step_by_step(self: Upsampler, x: torch.Tensor, run: Execution) -> torch.Tensor:
    return self._shuffle(x, run, beginning=run.state.get(self.conv.name) is None)


def _copies_in_front(self: CausalConv3d, memory: torch.Tensor | None) -> int:
    return self.kernel_size[0] - 1 if memory is None else self.carried


def _concatenated(
    source: Source, memory: torch.Tensor | None, front: int, block: Block, kernels: Kernels
) -> torch.Tensor:
    """A whole plane's buffer by way of two more full copies; strips are cut from the padded buffer all the same."""
    rows, columns = block
    if (rows.read_stop - rows.read_start, columns.read_stop - columns.read_start) != tuple(source.shape[3:]):
        return gather(source, memory, front, block, kernels)
    x = empty(source.shape, source.x)
    source.write(rows, columns, Padded(x))
    if front:
        head = x[:, :, :1].expand(-1, -1, front, -1, -1) if memory is None else memory.to(x.device)
        x = torch.cat([head, x], dim=2)
    return F.pad(x, (columns.before, columns.after, rows.before, rows.after))


def _summed(self: ResnetBlock, x: torch.Tensor, run: Execution) -> torch.Tensor:
    h = self.conv1(Activated(x, self.norm1, run), run)
    if self.conv_shortcut is not None:
        x = self.conv_shortcut(x, run)
    return x + self.conv2(Activated(h, self.norm2, run), run)


def _attended_to_a_copy(
    self: FrameAttention, x: torch.Tensor, run: Execution, attend: Any = FrameAttention.forward
) -> torch.Tensor:
    made: torch.Tensor = attend(self, x.clone(), run)
    return made


def _rearranged(self: FrameAttention, x: torch.Tensor, run: Execution) -> torch.Tensor:
    """Time is folded into the batch and back by copies."""
    batch, channels, frames, height, width = x.shape
    folded = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, 1, height, width).contiguous()
    folded = folded + self._attend(folded, run)
    return folded.view(batch, frames, channels, height, width).permute(0, 2, 1, 3, 4).contiguous()


def _never(self: Temporal, *arguments: Any, **options: Any) -> bool:
    return False


def _textbook(operation: str) -> Callable[..., torch.Tensor]:
    def run(self: Kernels, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return Kernels("plain")._run(operation, x, *arguments, **options)

    return run


OPTIMIZATIONS: Mapping[str, tuple[Change, ...]] = {
    # Carried frames, input and zero border are written once into the buffer that is convolved.
    "padded_buffer": ((causal_conv, "gather", _concatenated),),
    # GroupNorm and SiLU in one operation, written straight into the padded buffer.
    "fused_norm_activation": ((Kernels, "group_norm_silu", _textbook("group_norm_silu")),),
    # The residual sum is added in place.
    "in_place_residual": ((ResnetBlock, "forward", _summed), (FrameAttention, "forward", _attended_to_a_copy)),
    # The pixel shuffle drops the head frame while it copies.
    "native_pixel_shuffle": ((Kernels, "pixel_shuffle_3d", _textbook("pixel_shuffle_3d")),),
    # Attention works on views of the 5-D tensor, without rearranging copies.
    "direct_mid_block": ((FrameAttention, "forward", _rearranged),),
    # Queries are taken in chunks, so that no kernel needs the whole score matrix.
    "chunked_attention": ((attention, "SCORE_BYTES", 1 << 62),),
    # Activations in channels_last_3d; for the weights see `contiguous_weights`.
    "channels_last": ((model, "in_layout", torch.Tensor.contiguous),),
    # The copies of the first frame in front of a clip are never made; kernels summed over time do their work.
    "folded_head": ((CausalConv3d, "_front", _copies_in_front),),
    # 1x1x1 convolution, pixel shuffle and 3x3x3 convolution of an upsampler as one convolution per output phase.
    "polyphase_upsampling": ((Upsampler, "forward", _step_by_step),),
    # Convolutions over time make several frames at once from sums of frames.
    "temporal_winograd": ((Temporal, "may", _never),),
    # The upscaled tensor exists only strip by strip: a matter of the settings, which cut the planes.
    "chunked_upsampling": (),
}
"""What each optimization's absence changes, in the order in which `vae_decode.py` adds them."""

"""What the files of the VAE families share: chunks of latents, padded buffers, patches.

Each of those files calls the layers of a diffusers decoder itself, with the modules' own weights, and holds the state
of the clip in its own objects. The modules are only read: an exception in the middle leaves nothing behind, and two
decodes cannot disturb each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def latent_chunks(latents: torch.Tensor, step: int) -> Iterator[tuple[bool, torch.Tensor]]:
    """(whether it is the first, [B, C, t, h, w]): the first latent frame alone, then `step` frames at a time.

    The first latent frame of a causal VAE gives one pixel frame, every other one several.
    """
    yield True, latents[:, :, :1]
    for start in range(1, latents.shape[2], step):
        yield False, latents[:, :, start : start + step]


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


def unpatchify(pixels: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, C * p * p, T, H, W] -> [B, C, T, H * p, W * p]; channels are packed as (channel, column, row)."""
    if patch == 1:
        return pixels
    split = pixels.unflatten(1, (-1, patch, patch)).permute(0, 1, 4, 5, 3, 6, 2)
    return split.flatten(5, 6).flatten(3, 4)


def moved_in_parts(decoder: Any) -> str:
    """Why the layers of a decoder cannot be called one by one: something acts when a whole block is called, or ""."""
    from ...optimizations.components import is_group_offloaded

    return "group offload is active on it" if any(map(is_group_offloaded, decoder.modules())) else ""

"""IMAGE as the sampler and its conditions read it: pictures of three colours, or of four with transparency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import torch

MOST_CHANNELS = 4


def pictures(name: str, images: torch.Tensor) -> torch.Tensor:
    """Return pictures [B, H, W, C] or clips [B, T, H, W, C] as [B, H, W, 3 or 4], grey as equal channels.

    Args:
        name: of the input, for errors.

    Raises:
        InputError: it holds no picture, or one of more channels than colours and transparency.
    """
    import torch

    shape = list(images.shape)
    if len(shape) not in (4, 5) or 0 in shape:
        reason = "no picture is in it: an image is [batch, height, width, channels]"
        raise InputError(name, f"shape {shape}", reason, "connect an IMAGE output that holds a picture")
    if shape[-1] > MOST_CHANNELS:
        reason = f"its pictures have {shape[-1]} channels, and only grey, colours and transparency are read"
        raise InputError(name, f"shape {shape}", reason, "connect pictures of 1 to 4 channels")
    flat = images.flatten(0, 1) if images.ndim == 5 else images
    if shape[-1] > 2:
        return flat
    return torch.cat([flat[..., :1].expand(*flat.shape[:-1], 3), flat[..., 1:]], dim=-1)


def clip(name: str, images: torch.Tensor) -> torch.Tensor:
    """Return the frames [T, H, W, 3 or 4] of one clip, [T, H, W, C] or [1, T, H, W, C]. Raises as `pictures`, and for
    several clips."""
    if images.ndim == 5 and images.shape[0] > 1:
        reason = f"{images.shape[0]} clips are in it, and a run takes one of each kind"
        raise InputError(name, f"shape {list(images.shape)}", reason, "connect a single clip")
    return pictures(name, images)

"""How much memory a VAE's decode takes, found by decoding once with tensors that have no data.

A twin of the decoder is built on torch's meta device and decodes a small latent; what is alive at each moment is
counted. That costs a fraction of a second and no memory, holds for every class of VAE, and scales: what a decode holds
grows with the pixels, and beyond the first frames with the frames.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..memory import LiveBytes
from .settings import Workload

WORKSPACE = 1.3
"""Factor for what convolutions take beside live tensors, an assumption; cuDNN takes what it finds."""
_STREAMED_FRAMES = 5
"""Frames that are on the device at once where they leave it as they are made: those of two latent frames."""
_EDGE = 16
"""Latent rows and columns of the trial."""


@dataclass(frozen=True)
class DecodeCost:
    """Peak of live tensors of one decode, in elements per pixel of one frame.

    Attributes:
        single: for one frame.
        start, each: `start + each * frames` holds for more than one.
    """

    single: float
    start: float = 0.0
    each: float = 0.0

    def bytes(self, workload: Workload, dtype: torch.dtype, batch: int = 1) -> int:
        """What decoding the workload in one piece takes; 0 when its size is not known.

        Frames that leave the device as they are made (`workload.streamed`) do not add up.
        """
        elements = self.single
        if workload.frames > 1:
            frames = min(workload.frames, _STREAMED_FRAMES) if workload.streamed else workload.frames
            elements = max(self.single, self.start + self.each * frames)
        return int(workload.width * workload.height * elements * dtype.itemsize * batch * WORKSPACE)


_known: dict[tuple[str, str, bool], DecodeCost | None] = {}
_guard = threading.Lock()


def decode_cost(vae: Any, clip: bool = False) -> DecodeCost | None:
    """The cost for this class and configuration of VAE, remembered; None for one that cannot be decoded on trial.

    Args:
        vae: a diffusers VAE.
        clip: more than one frame will be decoded; without, only `single` is found out.
    """
    config = getattr(vae, "config", None)
    if config is None:
        return None
    key = (type(vae).__name__, json.dumps(dict(config), sort_keys=True, default=str), clip)
    with _guard:
        if key not in _known:
            _known[key] = _measure(vae, clip)
        return _known[key]


def _measure(vae: Any, clip: bool) -> DecodeCost | None:
    try:
        with torch.device("meta"):
            twin = type(vae).from_config(vae.config).eval()
        channels = _latent_channels(vae)
        if not _is_video(twin):
            return DecodeCost(_decode(twin, (1, channels, _EDGE, _EDGE)).per_pixel)
        # From the third latent frame on, causal decoders carry all the state that they will ever carry.
        lengths = (1, 3, 4) if clip else (1,)
        one, *longer = (_decode(twin, (1, channels, frames, _EDGE, _EDGE)) for frames in lengths)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError):
        return None  # a class that is built or called in another way: nothing is known about it
    if not longer:
        return DecodeCost(one.per_pixel)
    three, four = longer
    each = max(0.0, four.per_pixel - three.per_pixel) / (four.frames - three.frames)
    return DecodeCost(one.per_pixel, start=four.per_pixel - each * four.frames, each=each)


def _latent_channels(vae: Any) -> int:
    names = ("latent_channels", "z_dim")
    return next(int(vae.config[name]) for name in names if vae.config.get(name) is not None)


def _is_video(vae: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv3d) for module in vae.modules())


@dataclass(frozen=True)
class _Trial:
    """A decode on trial. Attributes: frames; per_pixel, the elements alive at once for each pixel of one frame."""

    frames: int
    per_pixel: float


def _decode(vae: Any, shape: tuple[int, ...]) -> _Trial:
    latent = torch.empty(shape, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        result = vae.decode(latent, return_dict=False)[0]
    frames = result.shape[2] if result.ndim == 5 else 1
    return _Trial(frames, live.peak / latent.element_size() / (result.shape[-1] * result.shape[-2]))

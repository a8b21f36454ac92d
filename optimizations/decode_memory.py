"""How much memory a VAE's decode takes, found by decoding once with tensors that have no data.

A twin of the VAE is built on torch's meta device and decodes a small latent; what is alive at each moment is counted.
That costs a fraction of a second and no memory, and scales: what a decode holds grows with the pixels, and beyond the
first frames with the frames. A class that is built or called in another way than most has no known cost.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..fallback import describe, is_out_of_memory
from ..memory import LiveBytes
from .settings import Workload

logger = logging.getLogger(__name__)

WORKSPACE = 1.6
"""Factor for what convolutions take beside live tensors. With cuDNN 9.19 on an H200 FLUX's VAE in bfloat16 takes 1.58
times its live tensors; `tests/gpu` holds the estimate against the card."""
_STREAMED_FRAMES = 5
"""Frames that are on the device at once where they leave it as they are made: those of two latent frames."""
_CHANNELS = ("latent_channels", "z_dim", "z_channels")
"""How configurations call the number of latent channels."""
_EDGE = 16
"""Latent rows and columns of what the twin decodes."""


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
    """The cost for this class and configuration of VAE, remembered; None where it is not known.

    Args:
        vae: a diffusers VAE.
        clip: more than one frame will be decoded; otherwise only `single` is measured.
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
        if not _is_video(twin):
            return DecodeCost(_decode(twin).per_pixel)
        # From the third latent frame on, causal decoders carry all the state that they will ever carry.
        one, *longer = (_decode(twin, frames) for frames in ((1, 3, 4) if clip else (1,)))
    except Exception as error:  # of any type: a class that is built or called in another way
        if is_out_of_memory(error):
            raise
        logger.info("The memory of a decode by %s is not known: %s", type(vae).__name__, describe(error))
        return None
    if not longer:
        return DecodeCost(one.per_pixel)
    three, four = longer
    each = max(0.0, four.per_pixel - three.per_pixel) / (four.frames - three.frames)
    return DecodeCost(one.per_pixel, start=four.per_pixel - each * four.frames, each=each)


def _is_video(vae: Any) -> bool:
    """Whether latents have a time axis; Qwen-Image 2.1 has one without any convolution over it."""
    return vae.config.get("z_dim") is not None or any(isinstance(module, nn.Conv3d) for module in vae.modules())


@dataclass(frozen=True)
class _Peak:
    """One decode. Attributes: frames that it made; per_pixel, the elements alive at once for each pixel of a frame."""

    frames: int
    per_pixel: float


def _decode(vae: Any, frames: int | None = None) -> _Peak:
    """Decode a latent of so many frames, or a picture, on the meta device."""
    channels = next(vae.config[name] for name in _CHANNELS if vae.config.get(name) is not None)
    time = () if frames is None else (frames,)
    latent = torch.empty((1, channels, *time, _EDGE, _EDGE), device="meta")
    timestep = (latent.new_zeros(1),) if vae.config.get("timestep_conditioning") else ()
    with torch.no_grad(), LiveBytes() as live:
        result = vae.decode(latent, *timestep, return_dict=False)[0]
    made = result.shape[2] if result.ndim == 5 else 1
    return _Peak(made, live.peak / latent.element_size() / (result.shape[-1] * result.shape[-2]))

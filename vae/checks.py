"""Bad input, found before anything is computed: one clear line each."""

from __future__ import annotations

import torch

from ..errors import InputError
from .config import VaeConfig


def check_latents(latents: torch.Tensor, config: VaeConfig) -> None:
    """Raise InputError unless `latents` is a floating [B, 16, T, H, W] without NaN or Inf."""
    _check_dimensions("latents", latents, "[batch, channels, frames, height, width]", "latents[:, :, None]")
    if latents.shape[1] != config.latent_channels:
        reason = f"this VAE decodes latents of {config.latent_channels} channels, not {latents.shape[1]}"
        raise InputError("latents", list(latents.shape), reason, "use the VAE that belongs to the model")
    _check_values("latents", latents)


def check_frames(frames: torch.Tensor, config: VaeConfig) -> None:
    """Raise InputError unless `frames` is a floating [B, T, H, W, 3] without NaN or Inf, at least 8 x 8 pixels."""
    _check_dimensions("frames", frames, "[batch, frames, height, width, channels]", "frames[None] for one clip")
    if frames.shape[-1] != config.in_channels:
        reason = f"the last axis holds the {config.in_channels} colour channels, not {frames.shape[-1]}"
        raise InputError("frames", list(frames.shape), reason, "drop the alpha channel: frames[..., :3]")
    smallest = config.spatial_factor
    if min(frames.shape[2:4]) < smallest:
        reason = f"a frame is at least {smallest} x {smallest} pixels"
        raise InputError("frames", list(frames.shape), reason, "scale the frames up")
    _check_values("frames", frames)


def _check_dimensions(name: str, tensor: torch.Tensor, meaning: str, cure: str) -> None:
    if tensor.ndim != 5:
        reason = f"it has {tensor.ndim} axes and needs the 5 of {meaning}"
        raise InputError(name, list(tensor.shape), reason, f"add the missing axis, e.g. {cure}")
    if not tensor.numel():
        raise InputError(name, list(tensor.shape), "it is empty", "check what produced it")
    if not tensor.is_floating_point():
        raise InputError(name, str(tensor.dtype), "it must hold floating-point numbers", f"convert it: {name}.float()")


def _check_values(name: str, tensor: torch.Tensor) -> None:
    """NaN and Inf would come out as black frames; say so instead, and where."""
    for item in range(tensor.shape[0]):
        finite = torch.isfinite(tensor[item])
        if not bool(finite.all()):
            bad = int((~finite).sum())
            kind = "NaN" if bool(torch.isnan(tensor[item]).any()) else "Inf"
            place = [int(i) for i in (~finite).nonzero()[0]]
            reason = f"{bad} of its {tensor[item].numel()} values are not finite ({kind}, first at {[item, *place]})"
            cure = "the fault lies before the VAE: run the model in bfloat16 or float32, or check its attention"
            raise InputError(name, list(tensor.shape), reason, cure)

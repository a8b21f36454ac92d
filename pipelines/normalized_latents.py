"""The latents that ComfyUI keeps normalised, as the denoiser has them: Flux.2's patches and LTX-2's tokens.

Their VAEs hold the statistics among their weights, and ComfyUI's VAEs apply them in the decode. The arithmetic is that
of the diffusers pipelines, in the dtype of the decode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .families import Family

LAYOUTS = ("patches", "tokens")
"""`Family.layout` of those families."""


def denormalize(latent: torch.Tensor, family: Family, vae: Any) -> torch.Tensor:
    """ComfyUI's latent as `vae.decode` takes it.

    Args:
        latent: [B, 128, h, w] patches, which become [B, 32, 2h, 2w]; or [B, C, T, h, w].
    """
    if family.layout == "tokens":
        mean, std = _channel_statistics(vae, latent)
        return latent * std / vae.config.scaling_factor + mean
    mean, std = _patch_statistics(vae, latent)
    latent = latent * std + mean
    batch, channels, height, width = latent.shape
    latent = latent.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return latent.reshape(batch, channels // 4, height * 2, width * 2)


def normalize(latent: torch.Tensor, family: Family, vae: Any) -> torch.Tensor:
    """The inverse of `denormalize`: what `vae.encode` gives as ComfyUI's latent."""
    if family.layout == "tokens":
        mean, std = _channel_statistics(vae, latent)
        return (latent - mean) * vae.config.scaling_factor / std
    batch, channels, height, width = latent.shape
    latent = latent.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    latent = latent.reshape(batch, channels * 4, height // 2, width // 2)
    mean, std = _patch_statistics(vae, latent)
    return (latent - mean) / std


def _channel_statistics(vae: Any, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (statistic.view(1, -1, 1, 1, 1) for statistic in (vae.latents_mean, vae.latents_std))
    return mean.to(latent.device, latent.dtype), std.to(latent.device, latent.dtype)


def _patch_statistics(vae: Any, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latent.device, latent.dtype)
    variance = vae.bn.running_var.view(1, -1, 1, 1)
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps).to(latent.device, latent.dtype)

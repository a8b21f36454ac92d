"""What has to be asked of a module before it runs: its precision, its device, its kind of input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..optimizations.group_hooks import is_group_offloaded

if TYPE_CHECKING:
    import torch


def decode_dtype(vae: Any) -> torch.dtype:
    """The dtype in which diffusers decodes: the VAE's own, float32 for float16 weights that overflow (SDXL)."""
    import torch

    own = weights_dtype(vae)
    return torch.float32 if own == torch.float16 and vae.config.get("force_upcast", False) else own


def weights_dtype(module: Any) -> torch.dtype:
    """What `module.dtype` says, without its walk over all submodules: that takes a millisecond, and this every step."""
    dtype: torch.dtype = next(parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return dtype


def execution_device(module: Any, target: torch.device) -> torch.device:
    """Where a module computes: its weights may be elsewhere until an offload hook brings them."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None and getattr(hook, "execution_device", None) is not None:
        import torch

        return torch.device(hook.execution_device)
    if is_group_offloaded(module):
        return target
    device: torch.device = next(module.parameters()).device
    return device


def has_time_axis(vae: Any) -> bool:
    """Whether a VAE takes [B, C, T, h, w], pictures as T = 1."""
    return vae.config.get("z_dim") is not None or hasattr(vae, "temporal_compression_ratio")

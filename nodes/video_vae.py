"""Video VAEs behind the VIDEO_VAE socket: loaded once, run through `vae/`, in ComfyUI's memory management."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import comfy.model_management as mm

from .. import vae as engine
from ..errors import ModelFileError
from ..optimizations.tuning import cache_folder
from .residency import Tenant, make_room
from .types import VideoVaeHandle

if TYPE_CHECKING:
    import torch

    from ..callbacks import Callbacks
    from ..report import OptimizationReport
    from ..vae import VaeSettings, VideoVAE

_loaded: WeakKeyDictionary[VideoVaeHandle, tuple[VideoVAE, Tenant]] = WeakKeyDictionary()
"""The weights live as long as the handle that brought them: as long as ComfyUI keeps the loader node's output."""
_lock = threading.Lock()


def check_file(path: str) -> None:
    """Raise ModelFileError when a file is no video VAE of the kind this pack runs. Reads its header only."""
    if not engine.is_video_vae(path):
        reason = "it is not a causal video VAE of SeedVR2's kind, or the file is damaged"
        cure = (
            "choose ema_vae_fp16.safetensors; for any other VAE use ComfyUI's Load VAE, which the fast nodes take too"
        )
        raise ModelFileError("vae_name", path, reason, cure)


def identity(path: Path) -> str:
    """What changes when the file does."""
    state = path.stat()
    return f"{path}:{state.st_size}:{state.st_mtime_ns}"


def decode(
    handle: VideoVaeHandle,
    latent: torch.Tensor,
    settings: VaeSettings,
    callbacks: Callbacks,
    num_frames: int | None = None,
) -> tuple[torch.Tensor, OptimizationReport]:
    """[B, 16, T', h, w] to frames [B, T, H, W, 3] in 0..1 on the CPU. `num_frames` cuts the encoder's padding off."""
    return engine.decode(_on_card(handle), latent, settings, callbacks, num_frames=num_frames)


def encode(
    handle: VideoVaeHandle, pixels: torch.Tensor, settings: VaeSettings, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """The frames [T, H, W, 3] of one clip to a latent [1, 16, T', h, w] on the CPU."""
    return engine.encode(_on_card(handle), pixels[None, ..., :3], settings, callbacks)


def _on_card(handle: VideoVaeHandle) -> VideoVAE:
    """The weights on ComfyUI's device, with ComfyUI's other models gone as far as need be."""
    device = mm.get_torch_device()
    with _lock:
        if handle not in _loaded:
            tenant = Tenant(device, Path(handle.path).stat().st_size)
            make_room(tenant)
            engine.remember_in(cache_folder())
            vae = engine.load_video_vae(handle.path, handle.dtype, str(device))
            tenant.follow([vae])
            _loaded[handle] = vae, tenant
        vae, tenant = _loaded[handle]
    make_room(tenant)
    return vae.to(device)

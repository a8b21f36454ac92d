"""Video VAEs run through `vae/`, in ComfyUI's memory management: those behind a VIDEO_VAE socket, loaded once, and
those that ComfyUI itself has loaded as an ordinary VAE, recognised by their weights and read, never written to.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import comfy.model_management as mm

from .. import vae as engine
from ..cache_folder import cache_folder
from ..errors import ModelFileError
from ..vae.checkpoint import read_shapes
from .host import core_changes
from .host.core_vae import alpha_left_out, as_clip, check_channels
from .host.core_weights import fingerprint
from .host.memory_management import ExternalModelPatcher, make_room
from .types import VideoVaeFile, VideoVaeHandle

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..callbacks import Callbacks
    from ..report import OptimizationReport
    from ..vae import VaeSettings, VideoVAE

log = logging.getLogger(__name__)

_loaded: WeakKeyDictionary[VideoVaeFile, tuple[VideoVAE, ExternalModelPatcher]] = WeakKeyDictionary()
"""The weights live as long as handles name their file: as long as ComfyUI keeps a loader node's output."""
_borrowed: WeakKeyDictionary[nn.Module, tuple[VideoVAE, ExternalModelPatcher, tuple[str, torch.dtype]]]
_borrowed = WeakKeyDictionary()
"""The same for ComfyUI's own VAEs: this pack's networks with a copy of their weights, as long as ComfyUI keeps them;
and in which state those weights were, since other nodes change them in place."""
_lock = threading.Lock()


def check_file(path: str) -> None:
    """Raise ModelFileError when a file is no video VAE of the kind this pack runs. Reads its header only."""
    if not engine.is_video_vae(read_shapes(Path(path), "vae_name")):
        reason = "it is not a causal video VAE of SeedVR2's kind"
        cure = (
            "choose ema_vae_fp16.safetensors; for any other VAE use ComfyUI's Load VAE, which the fast nodes take too"
        )
        raise ModelFileError("vae_name", path, reason, cure)


def identity(path: Path) -> str:
    """Return a text that changes when the file does."""
    state = path.stat()
    return f"{path}:{state.st_size}:{state.st_mtime_ns}"


def borrow(vae: Any) -> VideoVAE | None:
    """Return this pack's networks with the weights of one of ComfyUI's VAE objects, on its device.

    None for another kind of VAE, and for one in which another node has changed more than the weights.

    ComfyUI scales this VAE's latents as `decode` and `encode` here do, so a LATENT means the same to both.

    Args:
        vae: `comfy.sd.VAE`. It and its network are only read.
    """
    network = getattr(vae, "first_stage_model", None)
    if network is None or not engine.is_video_vae(network.state_dict().keys()) or not _unchanged(vae):
        return None
    with _lock:
        state = fingerprint(network), vae.vae_dtype
        if network not in _borrowed or _borrowed[network][2] != state:
            _borrowed.pop(network, None)
            weights = network.state_dict()
            patcher = ExternalModelPatcher(vae.device, sum(tensor.nbytes for tensor in weights.values()))
            make_room(patcher)
            engine.remember_in(cache_folder())
            try:
                own = engine.from_state_dict(weights, dtype=vae.vae_dtype, device=vae.device, name="ComfyUI's VAE")
            except ModelFileError as error:
                log.info("ComfyUI's own networks decode this VAE: %s", error)
                return None
            patcher.follow([own])
            _borrowed[network] = own, patcher, state
        own, patcher, _ = _borrowed[network]
    make_room(patcher)
    return own.to(vae.device)


def changed(vae: Any) -> bool:
    """Return whether this is a VAE that `borrow` leaves to ComfyUI because another node has changed it."""
    network = getattr(vae, "first_stage_model", None)
    return network is not None and engine.is_video_vae(network.state_dict().keys()) and not _unchanged(vae)


def _unchanged(vae: Any) -> bool:
    return core_changes.as_loaded(vae, engine.VaeConfig.scaling_factor, engine.VaeConfig.shifting_factor)


def decode(
    vae: VideoVAE, latent: torch.Tensor, settings: VaeSettings, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Decode a latent [B, 16, T', h, w] or [B, 16, h, w] to frames [B, T, H, W, 3] in 0..1 on the CPU."""
    if latent.ndim == 4:
        latent = as_clip(latent, vae.config.latent_channels)
    return engine.decode(vae, latent, settings, callbacks)


def encode(
    vae: VideoVAE, pixels: torch.Tensor, settings: VaeSettings, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Encode the frames [T, H, W, C] of one clip, or clips [B, T, H, W, C], to a latent [B, 16, T', h, w] on the CPU.

    Raises:
        InputError: fewer than three channels.
    """
    channels, taken = pixels.shape[-1], vae.config.in_channels
    check_channels(pixels, taken)
    clips = pixels if pixels.ndim == 5 else pixels[None]
    latent, report = engine.encode(vae, clips[..., :taken], settings, callbacks)
    if channels > taken:
        report.note(alpha_left_out(channels, taken))
    return latent, report


def load(handle: VideoVaeHandle) -> VideoVAE:
    """Return the loaded networks of a handle on ComfyUI's device, after ComfyUI has made room for them."""
    device = mm.get_torch_device()
    with _lock:
        file = handle.file
        if file not in _loaded:
            patcher = ExternalModelPatcher(device, Path(file.path).stat().st_size)
            make_room(patcher)
            engine.remember_in(cache_folder())
            vae = engine.load_video_vae(file.path, file.dtype, str(device))
            patcher.follow([vae])
            _loaded[file] = vae, patcher
        vae, patcher = _loaded[file]
    make_room(patcher)
    return vae.to(device)

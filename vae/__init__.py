"""An exact, streaming, low-memory causal 3D video VAE (pixel-shuffle decoder). Pure torch; optionally Triton.

    vae = load_video_vae("ema_vae_fp16.safetensors")
    frames, report = decode(vae, latents, VaeSettings(mode="exact"))

Importing this package imports no torch; the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import decode, decode_raw, encode, encode_raw
    from .checkpoint import from_state_dict, is_video_vae, load_video_vae
    from .config import VaeConfig
    from .embedded import embedded_video_vae
    from .kernels.saved_choices import remember_in
    from .network.model import VideoVAE
    from .settings import VaeSettings

__all__ = [
    "VaeConfig",
    "VaeSettings",
    "VideoVAE",
    "decode",
    "decode_raw",
    "embedded_video_vae",
    "encode",
    "encode_raw",
    "from_state_dict",
    "is_video_vae",
    "load_video_vae",
    "remember_in",
]

_HOMES = {
    "VaeConfig": "config",
    "VaeSettings": "settings",
    "VideoVAE": "network.model",
    "decode": "api",
    "decode_raw": "api",
    "embedded_video_vae": "embedded",
    "encode": "api",
    "encode_raw": "api",
    "from_state_dict": "checkpoint",
    "is_video_vae": "checkpoint",
    "load_video_vae": "checkpoint",
    "remember_in": "kernels.saved_choices",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)

"""ComfyUI's small video VAEs (TAEHV, of Wan, HunyuanVideo, LTX-2, MiniMax H3): what ComfyUI's VAE object says of them
wrongly, or cannot say."""

from __future__ import annotations

from typing import Any


def frames_of(network: Any, latent_frames: int) -> int:
    """Frames that a TAEHV decodes a clip's latent to; 0 for any other network, and where ComfyUI's object knows it."""
    if not is_tae(network) or _in_groups(network):
        return 0
    return latent_frames * int(network.t_upscale) - int(network.frames_to_trim)


def is_tae(network: Any) -> bool:
    """Whether this is a TAEHV."""
    return all(hasattr(network, name) for name in ("t_upscale", "frames_to_trim", "patch_size", "latent_channels"))


def not_cut(vae: Any) -> str:
    """Why such a VAE cannot be cut into tiles; "" for every other one.

    Of LTX-2's, ComfyUI's object has other sizes than it gives, and its own tiled nodes put the tiles together wrongly.
    """
    network = vae.first_stage_model
    if not is_tae(network):
        return ""
    given = int(network.t_upscale), 8 * int(network.patch_size)
    held = vae.temporal_compression_decode() or 1, vae.spacial_compression_decode()
    if given == held or _in_groups(network):
        return ""
    sizes = (
        f"a latent's cell is {given[0]} frames of {given[1]} px, and ComfyUI's tiles are for {held[0]} of {held[1]} px"
    )
    return f"{sizes}; for less memory load the full VAE"


def not_cut_in_time(vae: Any) -> bool:
    """Whether the frames of such a VAE come in groups, so that a slice of them is not what it is in the whole."""
    return is_tae(vae.first_stage_model) and _in_groups(vae.first_stage_model)


def _in_groups(network: Any) -> bool:
    """MiniMax H3's, whose groups of 17 frames ComfyUI's object counts rightly."""
    return bool(getattr(network, "is_h3", False))

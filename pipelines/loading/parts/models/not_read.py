"""Diffusion models that are known and not read in parts, each with the reason."""

from __future__ import annotations

from collections.abc import Callable

from ..component import Shapes


def _has(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


_MODULAR = "whose pipeline in diffusers is a modular one, made from a folder"
NOT_READ: tuple[tuple[str, Callable[[Shapes], bool], str], ...] = (
    (
        "LTX-2",
        _has("audio_adaln_single.linear.weight", "adaln_single.linear.weight"),
        "of which diffusers reads no single file with its connectors and its vocoder",
    ),
    ("FLUX.3", lambda shapes: any(name.startswith("content_mode_blocks.") for name in shapes), _MODULAR),
    ("MiniMax-H3", _has("video_patch_proj.weight", "audio_patch_proj.weight"), _MODULAR),
    (
        "Qwen-Image-2.1",
        lambda shapes: any(name.startswith("transformer_blocks.0.img_mlp.gate_") for name in shapes),
        "of which diffusers reads no single file with its VAE",
    ),
)
"""What people call it, whether a file's tensors are its, and why it is not read."""


def why_not_read(shapes: Shapes) -> str:
    """Whose diffusion model a file is and why it is not read in parts; "" for any other file."""
    return next((f"it is {title}'s, {reason}" for title, told, reason in NOT_READ if told(shapes)), "")

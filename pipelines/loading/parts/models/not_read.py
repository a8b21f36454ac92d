"""Diffusion models that are known and not read in parts, each with the reason."""

from __future__ import annotations

from collections.abc import Callable

from ..component import Shapes
from . import ltx2, minimax_h3, qwenimage21

NOT_READ: tuple[tuple[str, Callable[[Shapes], bool], str], ...] = (
    (
        "LTX-2.5",
        ltx2.is_later,
        "whose text encoder, Gemma 4, and whose decoder diffusers reads from a folder alone",
    ),
    (
        "Qwen-Image-2.1 turbo",
        qwenimage21.is_qwenimage21,
        "whose noise levels are in the index of its folder alone",
    ),
    (
        "MiniMax-H3",
        minimax_h3.is_pruned,
        "with a table in place of what embeds the time (adaln_t_table), which diffusers does not read",
    ),
)
"""What people call it, whether a file's tensors are its, and why it is not read."""


def why_not_read(shapes: Shapes) -> str:
    """Whose diffusion model a file is and why it is not read in parts; "" for any other file."""
    return next((f"it is {title}'s, {reason}" for title, told, reason in NOT_READ if told(shapes)), "")

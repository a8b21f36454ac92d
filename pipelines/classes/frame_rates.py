"""Frames per second that video classes make, where their call has no argument that says so.

What a model was trained on, as its authors' own scripts or the example of its class write it.
"""

from __future__ import annotations

ASSUMED = 16.0
"""Of a class that nothing is known of; the report says that it is an assumption."""

FRAME_RATES = {
    "Allegro": 15.0,
    "AnimateDiff": 8.0,
    "AnyFlow": 16.0,
    "ChronoEdit": 16.0,
    "CogVideoX": 8.0,
    "ConsisID": 8.0,
    "Cosmos2_5_Predict": 16.0,
    "Cosmos2_5_Transfer": 30.0,
    "EasyAnimate": 8.0,
    "Helios": 24.0,
    "HunyuanSkyreels": 24.0,
    "HunyuanVideo": 24.0,
    "HunyuanVideoFramepack": 30.0,
    "Kandinsky5": 24.0,
    "Latte": 8.0,
    "LucyEdit": 24.0,
    "Mochi": 30.0,
    "MotifVideo": 24.0,
    "PIA": 8.0,
    "SanaImageToVideo": 16.0,
    "SanaVideo": 16.0,
    "SkyReelsV2": 24.0,
    "TextToVideoSD": 8.0,
    "TextToVideoZero": 4.0,
    "VideoToVideoSD": 8.0,
    "Wan": 16.0,
}
"""Beginning of the class names -> frames per second; the longest that fits counts.

Sources: the `export_to_video(..., fps=...)` of the class's example in diffusers or of its documentation page, but for
AnimateDiff and PIA (clips of 16 frames in two seconds, as their papers train them), HunyuanVideo and SkyReels (24 in
their authors' sampling scripts; the examples in diffusers say 15 for some and 24 for others), Latte and ModelScope's
TextToVideoSD (8 in their authors' scripts)."""


def frame_rate_of(class_name: str) -> float | None:
    """The rate of a class by its name, None where it is not known."""
    fitting = [beginning for beginning in FRAME_RATES if class_name.startswith(beginning)]
    return FRAME_RATES[max(fitting, key=len)] if fitting else None

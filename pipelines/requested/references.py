"""Reference pictures that are too small, too narrow or too many for the class that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

VACE_ARGUMENT = "reference_images"
_LEAST = {
    "Flux2": (64, 8),  # Flux2ImageProcessor.check_image_input
    "ZImageOmni": (64, 8),  # the same
    "FluxKontext": (16, 0),  # two latent cells, to which it brings a picture down
    "QwenImageEdit": (1, 199),  # smart_resize of Qwen2-VL
}
"""How a class's name begins -> (pixels of a side at least, longer to shorter side at most, 0 for any)."""


def check_references(family: Family, request: SampleRequest) -> None:
    """Raise InputError for a picture beside the prompt that the call of the family's class refuses, or fails with.

    Args:
        request: whose pictures are references, each [H, W, 3 or 4].
    """
    names = [start for start in _LEAST for each in family.classes if each.startswith(start)]
    for index, image in enumerate(request.images if names else ()):
        rows, columns = (int(edge) for edge in image.shape[:2])
        (least, most), size = _LEAST[names[0]], f"{columns}x{rows}"
        if min(rows, columns) < least:
            reason = f"{family.name} reads pictures of {least} pixels a side or more"
            raise InputError(f"images[{index}]", size, reason, "scale it up")
        if most and max(rows, columns) > most * min(rows, columns):
            reason = f"{family.name} reads pictures from 1:{most} to {most}:1"
            raise InputError(f"images[{index}]", size, reason, "cut a part out")


def check_references_of_clip(family: Family, request: SampleRequest) -> None:
    """Raise InputError for more pictures beside a clip than Wan VACE's classes read.

    They put one latent frame of zeros before the clip's mask for each, and take them from its own latent frames.

    Args:
        request: with the number of frames that is made.
    """
    count, frames = len(request.images), request.num_frames or family.num_frames
    if not family.video or family.image_argument != VACE_ARGUMENT or not frames:
        return
    most = 1 + (frames - family.frame_rest) // family.frame_step
    if count > most:
        needed = (count - 1) * family.frame_step + family.frame_rest
        reason = f"{family.name} reads one for each latent frame of the clip at most, and {frames} frames have {most}"
        cure = f"leave the others out, or make {needed} frames or more"
        raise InputError("images", f"{count} images", reason, cure)

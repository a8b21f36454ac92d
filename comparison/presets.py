"""Benchmarks with a name: the work and the choices of a case that people ask about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..pipelines.types import SampleRequest


@dataclass(frozen=True)
class Preset:
    """Work and choices.

    Attributes:
        name: as written on the command line.
        help: what it is, in one line.
        families: the pipeline families it is meant for.
        compare: the choices, as `choices.parse` reads them.
        request: the work: fields of `SampleRequest`.
    """

    name: str
    help: str
    families: tuple[str, ...]
    compare: str
    request: tuple[tuple[str, Any], ...]

    def apply(self, request: SampleRequest) -> SampleRequest:
        """`request` with the preset's work wherever it leaves the choice open (None)."""
        return replace(request, **{name: value for name, value in self.request if getattr(request, name) is None})


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "wan22-4step",
            "Wan 2.2 image to video with a 4-step LoRA: two experts of 2 steps, guidance 1, 81 frames of 832x1216",
            families=("wan-i2v", "wan-t2v"),
            compare="compile,flash,compile+flash",
            request=(
                ("steps", 4),
                ("guidance", 1.0),
                ("guidance_2", 1.0),
                ("width", 832),
                ("height", 1216),
                ("num_frames", 81),
            ),
        ),
        Preset(
            "flux-1024",
            "Flux.1-dev, 28 steps, one picture of 1024x1024",
            families=("flux",),
            compare="compile,flash,cudnn,compile+cudnn",
            request=(("steps", 28), ("guidance", 3.5), ("width", 1024), ("height", 1024)),
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises InputError for another."""
    if name not in PRESETS:
        raise InputError("preset", name, "there is no such preset", f"choose from: {', '.join(PRESETS)}")
    return PRESETS[name]

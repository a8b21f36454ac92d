"""Benchmarks with a name: the work and the choices of a case that people ask about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..pipelines.types import LoraSpec, SampleRequest


@dataclass(frozen=True)
class Preset:
    """Work and choices.

    Attributes:
        name: as written on the command line.
        help: what it is, in one line.
        families: the pipeline families it is meant for.
        compare: the choices, as `choices.parse` reads them.
        request: the work: fields of `SampleRequest`.
        lora_experts: which experts are meant to have a LoRA of the user's.
    """

    name: str
    help: str
    families: tuple[str, ...]
    compare: str
    request: tuple[tuple[str, Any], ...]
    lora_experts: tuple[str, ...] = ()

    def apply(self, request: SampleRequest) -> SampleRequest:
        """`request` with the preset's work wherever it leaves the choice open (None)."""
        return replace(request, **{name: value for name, value in self.request if getattr(request, name) is None})

    def check(self, family: str) -> None:
        """Raise InputError where the preset is for other families."""
        if family not in self.families:
            reason = f"it is for {', '.join(self.families)}, and this model is {family}"
            raise InputError("preset", self.name, reason, "choose another preset, or none")

    def notes(self, loras: Sequence[LoraSpec]) -> list[str]:
        """What to say of the LoRAs that are there."""
        given = {spec.expert for spec in loras}
        missing = [expert for expert in self.lora_experts if not given & {expert, "both"}]
        if not missing:
            return []
        which = " and the ".join(f"{expert}-noise expert" for expert in missing)
        return [f"{self.name} is meant with a LoRA for few steps, and the {which} had none: the pictures are no guide"]

    def small(self, request: SampleRequest) -> SampleRequest:
        """The same kind of work in a size for trying it out: at most 4 steps and 5 frames of 64x64."""
        full = self.apply(request)
        frames = None if full.num_frames is None else min(5, full.num_frames)
        return replace(full, steps=min(4, full.steps or 4), width=64, height=64, num_frames=frames)


def _work(**fields: float) -> tuple[tuple[str, Any], ...]:
    return tuple(fields.items())


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "wan22-4step",
            "Wan 2.2 image to video, a 4-step LoRA: experts of 2 steps, guidance 1, shift 5, 81 frames of 832x1216",
            families=("wan-i2v", "wan-t2v"),
            compare="compile,flash,compile+flash",
            request=_work(steps=4, guidance=1.0, guidance_2=1.0, flow_shift=5.0, width=832, height=1216, num_frames=81),
            lora_experts=("high", "low"),
        ),
        Preset(
            "flux-1024",
            "Flux.1-dev, 28 steps, one picture of 1024x1024",
            families=("flux",),
            compare="compile,flash,cudnn,compile+cudnn",
            request=_work(steps=28, guidance=3.5, width=1024, height=1024),
        ),
    )
}

MODEL_BENCHMARKS = {
    preset.name: preset
    for preset in (
        Preset(
            "flux_dev_1024",
            "FLUX.1-dev: the work of the preset flux-1024",
            families=("flux",),
            compare="compile,cudnn,compile+cudnn,compile-graphs,fused,fused+compile,cache-balanced,cache-fast,"
            "fp8,fp8+compile,fp8+compile+cudnn",
            request=PRESETS["flux-1024"].request,
        ),
        Preset(
            "z_image_1024",
            "Z-Image-Turbo, 9 steps without guidance, 1024x1024; step caches are for models with many steps",
            families=("zimage",),
            compare="compile,cudnn,compile+cudnn,compile-graphs,fp8,fp8+compile,fp8+compile+cudnn,int8,int8+compile,"
            "uint4,uint4+compile",
            request=_work(steps=9, guidance=0.0, width=1024, height=1024),
        ),
        Preset(
            "qwen_image_1024",
            "Qwen-Image, 50 steps, true guidance 4, so that every step runs the model twice, 1024x1024",
            families=("qwenimage",),
            compare="compile,compile+cudnn,cache-balanced,cache-fast,fp8,fp8+compile,fp8+compile+cudnn",
            request=_work(steps=50, guidance=4.0, width=1024, height=1024),
        ),
        Preset(
            # Others publish seconds per step for this size; one step of each expert is enough to time them.
            "wan22_i2v_480p",
            "Wan 2.2 image to video, 81 frames of 832x480 with guidance, 2 steps",
            families=("wan-i2v",),
            compare="compile,cudnn,compile+cudnn,fused,fused+compile,fp8+compile+cudnn",
            request=_work(steps=2, guidance=3.5, guidance_2=3.5, width=832, height=480, num_frames=81),
        ),
        Preset(
            # Plain was the fastest here on a card with 32 GiB: compiled code took the memory that the weights needed.
            "wan22_i2v",
            "Wan 2.2 image to video: the work of the preset wan22-4step",
            families=("wan-i2v",),
            compare="cudnn,compile+cudnn",  # a run takes long
            request=PRESETS["wan22-4step"].request,
        ),
    )
}
"""What `benchmarks/compare_settings.py` measures in full size; a quantization may stand in front of a choice."""


def preset(name: str) -> Preset:
    """The preset of that name. Raises InputError for another."""
    if name not in PRESETS:
        raise InputError("preset", name, "there is no such preset", f"choose from: {', '.join(PRESETS)}")
    return PRESETS[name]

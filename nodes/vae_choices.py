"""The widgets that VAE Decode (Fast) and VAE Encode (Fast) share, and the settings of each kind of VAE from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from comfy_api.latest import io

from ..optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings
from ..pipelines.decoding.exactness import BIT_IDENTICAL, EXACTNESS_CHOICES
from ..vae.settings import VaeSettings, tile_choices
from . import types
from .host.compat import ADVANCED

TILINGS = ("auto", "whole", "tiles", "exact")
TEMPORAL_FACTOR = 4
"""Frames per latent frame of the video VAE."""


@dataclass(frozen=True)
class VaeChoices:
    """How a decode or an encode is run, as the widgets say it; 0 stands for "choose it".

    Attributes:
        tiling: one of `TILINGS`.
        tile_size: tile edge in pixels.
        overlap: pixels that neighbouring tiles share.
        temporal_slice: frames of a video that are worked on at a time.
        memory_budget_gib: memory in GiB that a video VAE may use above its weights.
        compile: how to compile; None runs plain code.
        exactness: one of `EXACTNESS_CHOICES`; how exactly a clip is decoded.
    """

    tiling: str = "auto"
    tile_size: int = 0
    overlap: int = 0
    temporal_slice: int = 0
    memory_budget_gib: float = 0.0
    compile: CompileSettings | None = None
    exactness: str = BIT_IDENTICAL

    def for_pipeline(self) -> OptimizationSettings:
        """Return the settings for the VAE of a diffusers pipeline, which has no exact strips."""
        mode = {"whole": "off", "tiles": "on"}.get(self.tiling, "auto")
        tiling = TilingSettings(mode, self.tile_size, self.overlap)
        settings = OptimizationSettings(vae_tiling=tiling)
        if self.compile is None:
            return settings
        return replace(settings, torch_compile="on", compile=replace(self.compile, compile_vae=True))

    def for_video_vae(self, handle: types.VideoVaeHandle | None = None) -> VaeSettings:
        """Return the settings for this pack's video VAE, whose time is counted in latent frames.

        Args:
            handle: says how the VAE runs; None for one of ComfyUI's own VAEs, which runs by the defaults.
        """
        return VaeSettings(
            self.tiling,
            **tile_choices(self.tile_size, self.overlap),
            temporal_slice=-(-self.temporal_slice // TEMPORAL_FACTOR),
            memory_budget_gib=self.memory_budget_gib,
            **({} if handle is None else handle.settings()),
            **self._compiled_video_vae(),
        )

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Set torch's global compiler options for the run of a video VAE inside."""
        if self.compile is None:
            yield
            return
        from ..optimizations.compile import switches

        with switches(self.compile):
            yield

    def _compiled_video_vae(self) -> dict[str, Any]:
        """What repeats, or with scope "model" a slice as one graph."""
        return {} if self.compile is None else self.compile.for_video_vae()


def shared_inputs(verb: str) -> list[Any]:
    """Return the inputs that decoding and encoding share."""
    return [
        io.MultiType.Input("vae", types=[io.Vae, types.VideoVae, types.Pipeline]),
        io.Combo.Input(
            "tiling",
            options=list(TILINGS),
            default="auto",
            tooltip=f"'whole' {verb}s at once: what ComfyUI's own node gives. 'tiles' needs less memory and more "
            "time, and changes the result. 'exact' (video VAE) works in strips that share their statistics: little "
            "memory, no seams, the result of the whole. 'auto' takes the whole where it fits, else the best that does.",
        ),
        io.Int.Input("tile_size", default=0, min=0, max=8192, step=16, optional=True, **ADVANCED),
        io.Int.Input("overlap", default=0, min=0, max=4096, step=8, optional=True, **ADVANCED),
        io.Int.Input("temporal_slice", default=0, min=0, max=100000, optional=True, **ADVANCED),
        io.Float.Input(
            "memory_budget_gib", default=0.0, min=0.0, max=1024.0, step=0.25, round=0.01, optional=True, **ADVANCED
        ),
        types.CompileSettings.Input("compile_settings", optional=True),
    ]


def exactness_input() -> Any:
    """Return the input that only decoding has."""
    return io.Combo.Input(
        "exactness", options=list(EXACTNESS_CHOICES), default=BIT_IDENTICAL, optional=True, **ADVANCED
    )

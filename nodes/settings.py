"""Torch Compile Settings, and Optimization Settings: the rarer choices, kept off the sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..optimizations.settings import (
    COMPILE_BACKENDS,
    COMPILE_MODES,
    COMPILE_SCOPES,
    TRISTATE,
    CompileSettings,
    OptimizationSettings,
    PrecisionSettings,
    TilingSettings,
)
from . import types
from .host.compat import ADVANCED, schema

DEFAULT = CompileSettings()
FOLLOW = "auto"
"""What a sampler's widget says when the `settings` socket is to decide."""


class TorchCompileSettings(io.ComfyNode):
    """Widgets -> `CompileSettings`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersTorchCompileSettings",
            display_name="Torch Compile Settings",
            category=types.CATEGORY,
            search_aliases=["compile", "inductor", "torch.compile", "cudagraphs", "max-autotune"],
            inputs=[
                io.Combo.Input("mode", options=list(COMPILE_MODES), default=DEFAULT.mode),
                io.Combo.Input("scope", options=list(COMPILE_SCOPES), default=DEFAULT.scope),
                io.Combo.Input("dynamic", options=list(TRISTATE), default=DEFAULT.dynamic),
                io.Boolean.Input("compile_vae", default=DEFAULT.compile_vae),
                io.Float.Input(
                    "headroom_gib", default=DEFAULT.headroom_gib, min=0.0, max=1023.0, step=0.25, round=0.01
                ),
                io.Combo.Input("backend", options=list(COMPILE_BACKENDS), default=DEFAULT.backend, **ADVANCED),
                io.Combo.Input("fullgraph", options=list(TRISTATE), default=DEFAULT.fullgraph, **ADVANCED),
                io.Int.Input("recompile_limit", default=DEFAULT.recompile_limit, min=1, max=4096, **ADVANCED),
                io.Boolean.Input("keep_artifacts", default=DEFAULT.keep_artifacts, **ADVANCED),
                io.Boolean.Input("memory_check", default=DEFAULT.memory_check, optional=True, **ADVANCED),
            ],
            outputs=[types.CompileSettings.Output(display_name="compile_settings")],
        )

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(CompileSettings(**widgets))


class OptimizationSettingsNode(io.ComfyNode):
    """Widgets -> `OptimizationSettings`, of which the sampler overrides what it has widgets for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersOptimizationSettings",
            display_name="Optimization Settings",
            category=types.CATEGORY,
            search_aliases=[
                "tf32",
                "channels last",
                "cudnn",
                "tile size",
                "vae slicing",
                "sdnq",
                "quantized matmul",
                "fuse qkv",
            ],
            inputs=[
                io.Int.Input("vae_tile_size", default=0, min=0, max=8192, step=32),
                io.Int.Input("vae_tile_overlap", default=0, min=0, max=4096, step=8),
                io.Combo.Input("vae_slicing", options=list(TRISTATE), default="auto"),
                io.Combo.Input("tf32", options=list(TRISTATE), default="off"),
                io.Combo.Input("cudnn_benchmark", options=list(TRISTATE), default="off"),
                io.Combo.Input("channels_last", options=list(TRISTATE), default="off"),
                io.Combo.Input("quantized_matmul", options=list(TRISTATE), default="auto"),
                io.Combo.Input("fused_projections", options=list(TRISTATE), default="off", optional=True, **ADVANCED),
            ],
            outputs=[types.OptimizationSettings.Output(display_name="settings")],
        )

    @classmethod
    def execute(
        cls,
        vae_tile_size: int,
        vae_tile_overlap: int,
        vae_slicing: str,
        tf32: str,
        cudnn_benchmark: str,
        channels_last: str,
        quantized_matmul: str = "auto",
        fused_projections: str = "off",
    ) -> io.NodeOutput:
        return io.NodeOutput(
            OptimizationSettings(
                vae_tiling=TilingSettings("auto", vae_tile_size, vae_tile_overlap, vae_slicing),
                precision=PrecisionSettings(tf32, cudnn_benchmark, channels_last),
                quantized_matmul=quantized_matmul,
                fused_projections=fused_projections,
            )
        )


def with_widgets(
    settings: OptimizationSettings | None,
    *,
    attention: str,
    torch_compile: str,
    compile_settings: CompileSettings | None,
    vae_tiling: str,
    step_cache: str,
    memory_mode: str,
) -> OptimizationSettings:
    """Return the settings of a sampler: its widgets and sockets on top of what came in through `settings`.

    A widget that says `FOLLOW` leaves the decision to `settings`; any other value of it wins. Where nothing came in,
    `OptimizationSettings` has its own "auto" for attention, compile and tiling, and no step cache.

    Args:
        settings: from Optimization Settings or a benchmark; None where the socket is not connected.
        compile_settings: from its own socket, which goes before the one within `settings`; None where not connected.
        memory_mode: of the pipeline. It was chosen where the model was, so it is never taken from `settings`.
    """
    base = settings or OptimizationSettings()
    tiling = base.vae_tiling if vae_tiling == FOLLOW else replace(base.vae_tiling, mode=vae_tiling)
    return replace(
        base,
        attention=base.attention if attention == FOLLOW else attention,
        torch_compile=base.torch_compile if torch_compile == FOLLOW else torch_compile,
        compile=compile_settings or base.compile,
        vae_tiling=tiling,
        step_cache=base.step_cache if step_cache == FOLLOW else step_cache,
        memory_mode=memory_mode,
    )

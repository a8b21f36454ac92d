"""Torch Compile Settings, and Optimization Settings: the rarer choices, kept off the sampler."""

from __future__ import annotations

from dataclasses import replace

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
            description="How the sampler uses torch.compile. Connect it only to change something: without it the "
            "sampler uses these same defaults.",
            search_aliases=["compile", "inductor", "torch.compile", "cudagraphs", "max-autotune"],
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(COMPILE_MODES),
                    default=DEFAULT.mode,
                    tooltip="How hard inductor searches for fast kernels. 'default' compiles soonest. The "
                    "'max-autotune' modes try many kernels first, so the first run takes much longer. "
                    "'reduce-overhead' and 'max-autotune' replay CUDA graphs, which costs memory for every resolution.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(COMPILE_SCOPES),
                    default=DEFAULT.scope,
                    tooltip="'blocks' compiles the block that repeats through the model, once for all its repetitions: "
                    "a short first run. 'model' compiles the whole denoiser as one: a long first run, and the "
                    "compiler may fuse across blocks.",
                ),
                io.Combo.Input(
                    "dynamic",
                    options=list(TRISTATE),
                    default=DEFAULT.dynamic,
                    tooltip="Code that serves every resolution. 'auto' compiles for the first resolution and once "
                    "more, for all, when a second one comes. 'on' starts with code for all. 'off' compiles again for "
                    "every new resolution.",
                ),
                io.Boolean.Input(
                    "compile_vae",
                    default=DEFAULT.compile_vae,
                    tooltip="Compile the VAE decoder too. Worth it for many decodes of one size; it lengthens the "
                    "first run and needs memory.",
                ),
                io.Float.Input(
                    "headroom_gib",
                    default=DEFAULT.headroom_gib,
                    min=0.0,
                    max=1023.0,
                    step=0.25,
                    round=0.01,
                    tooltip="Memory in GiB that has to stay free beyond what compiling is expected to take. Where less "
                    "would be left, compile is declined and the report says so: a model pushed out of memory "
                    "loses more than compile gains.",
                ),
                io.Combo.Input(
                    "backend",
                    options=list(COMPILE_BACKENDS),
                    default=DEFAULT.backend,
                    tooltip="'inductor' generates code. 'cudagraphs' records the plain run and replays it. 'aot_eager' "
                    "and 'eager' only trace: they find out what breaks and gain nothing.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "fullgraph",
                    options=list(TRISTATE),
                    default=DEFAULT.fullgraph,
                    tooltip="Insist on one graph without breaks. 'auto' insists wherever nothing that is active breaks "
                    "it. 'on' makes a break fail, and the run falls back to plain.",
                    **ADVANCED,
                ),
                io.Int.Input(
                    "recompile_limit",
                    default=DEFAULT.recompile_limit,
                    min=1,
                    max=4096,
                    tooltip="Variants of one block that may be compiled before torch runs the next one plainly.",
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "keep_artifacts",
                    default=DEFAULT.keep_artifacts,
                    tooltip="Keep compiled code on disk, so that the next start of ComfyUI need not compile again.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                types.CompileSettings.Output(
                    display_name="compile_settings",
                    tooltip="For Diffusers Sampler, VAE Decode (Fast) and VAE Encode (Fast).",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        mode: str,
        scope: str,
        dynamic: str,
        compile_vae: bool,
        headroom_gib: float,
        backend: str,
        fullgraph: str,
        recompile_limit: int,
        keep_artifacts: bool,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            CompileSettings(
                backend=backend,
                mode=mode,
                scope=scope,
                fullgraph=fullgraph,
                dynamic=dynamic,
                compile_vae=compile_vae,
                recompile_limit=recompile_limit,
                headroom_gib=headroom_gib,
                keep_artifacts=keep_artifacts,
            )
        )


class OptimizationSettingsNode(io.ComfyNode):
    """Widgets -> `OptimizationSettings`, of which the sampler overrides what it has widgets for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersOptimizationSettings",
            display_name="Optimization Settings",
            category=types.CATEGORY,
            description="The rarer optimizations: how the VAE tiles, how SDNQ models multiply, and precision switches "
            "that are global in PyTorch and here hold only while a sampler runs.",
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
                io.Int.Input(
                    "vae_tile_size",
                    default=0,
                    min=0,
                    max=8192,
                    step=32,
                    tooltip="Edge of a VAE tile in pixels; 0 is the VAE's own. Smaller tiles need less memory and show "
                    "more seams.",
                ),
                io.Int.Input(
                    "vae_tile_overlap",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Pixels that neighbouring tiles share; 0 is the VAE's own. More hides seams better and "
                    "takes longer.",
                ),
                io.Combo.Input(
                    "vae_slicing",
                    options=list(TRISTATE),
                    default="auto",
                    tooltip="Decode a batch one item at a time: less memory. 'auto' does so when the batch holds more "
                    "than one.",
                ),
                io.Combo.Input(
                    "tf32",
                    options=list(TRISTATE),
                    default="off",
                    tooltip="TF32 for the float32 parts of a model on NVIDIA cards: faster and less exact.",
                ),
                io.Combo.Input(
                    "cudnn_benchmark",
                    options=list(TRISTATE),
                    default="off",
                    tooltip="Let cuDNN try its convolutions once for every size: the first run of a size is slower.",
                ),
                io.Combo.Input(
                    "channels_last",
                    options=list(TRISTATE),
                    default="off",
                    tooltip="Channels-last weights for convolutional models and VAEs. 'auto' uses them where they pay.",
                ),
                io.Combo.Input(
                    "quantized_matmul",
                    options=list(TRISTATE),
                    default="auto",
                    tooltip="Models quantized with SDNQ: 'on' multiplies in the quantized type instead of turning the "
                    "weights back first, which loses a little more. 'auto' does what the checkpoint says. Other "
                    "models are not touched.",
                ),
                io.Combo.Input(
                    "fused_projections",
                    options=list(TRISTATE),
                    default="off",
                    optional=True,
                    tooltip="Query, key and value of an attention layer as one matrix product (Flux, Flux.2, Wan). It "
                    "takes no more memory; rounding differs slightly. What is quantized, has a LoRA on it or moves by "
                    "group offloading stays separate, and the report says so. 'auto' is off until it was measured to "
                    "pay.",
                    **ADVANCED,
                ),
            ],
            outputs=[types.OptimizationSettings.Output(display_name="settings", tooltip="For Diffusers Sampler.")],
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

"""What a user can ask for. Frozen and hashable: settings are compared to decide whether anything has to change.

Pure data: no torch, so that node schemas and the command line can list the choices without importing it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import InputError, check_choice

ATTENTION_CHOICES = ("auto", "sdpa", "xformers", "flash", "flash3", "sage", "cudnn", "efficient", "math", "flex")
COMPILE_CHOICES = ("off", "on", "auto")
COMPILE_BACKENDS = ("inductor", "cudagraphs", "aot_eager", "eager")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
COMPILE_SCOPES = ("blocks", "model")
TRISTATE = ("auto", "on", "off")
MEMORY_MODES = ("auto", "gpu", "model_offload", "group_offload_block", "group_offload_leaf", "sequential")
STEP_CACHE_CHOICES = ("off", "balanced", "fast")
MOST_PIXELS = 1 << 16
"""Of the edge of a tile: no picture has a longer one."""


@dataclass(frozen=True)
class CompileSettings:
    """How torch.compile is used when it is on.

    Attributes:
        backend: dynamo backend; "inductor" makes code, "eager" and "aot_eager" only trace (for tests and diagnosis).
        mode: inductor mode. "reduce-overhead" and "max-autotune" use CUDA graphs.
        scope: "blocks" compiles the repeated transformer blocks one by one (compiles fast); "model" the whole denoiser.
        fullgraph: "auto" asks for one graph wherever nothing that is active breaks it.
        dynamic: "auto" lets the second shape turn dynamic, so that a third never recompiles.
        compile_vae: compile the VAE decoder too.
        recompile_limit: graphs per code object before torch gives up and runs eagerly.
        headroom_gib: memory in GiB that must stay free beyond the estimated cost; compile is declined otherwise.
        keep_artifacts: keep compiled code on disk, so that the next process starts warm.
        memory_check: False compiles whatever memory says where `torch_compile` is "on"; "auto" always asks.
    """

    backend: str = "inductor"
    mode: str = "default"
    scope: str = "blocks"
    fullgraph: str = "auto"
    dynamic: str = "auto"
    compile_vae: bool = False
    recompile_limit: int = 64
    headroom_gib: float = 1.0
    keep_artifacts: bool = True
    memory_check: bool = True

    def __post_init__(self) -> None:
        # backend: any name dynamo has registered is allowed (tests register their own), so it is checked on use.
        check_choice("mode", self.mode, COMPILE_MODES)
        check_choice("scope", self.scope, COMPILE_SCOPES)
        check_choice("fullgraph", self.fullgraph, TRISTATE)
        check_choice("dynamic", self.dynamic, TRISTATE)
        if self.recompile_limit < 1:
            raise InputError("recompile_limit", self.recompile_limit, "at least one graph is needed", "use 64")
        if not 0 <= self.headroom_gib < 1024:
            raise InputError("headroom_gib", self.headroom_gib, "it must be between 0 and 1024 GiB", "use 1.0")

    def arguments(self, *, fullgraph: bool) -> dict[str, Any]:
        """Keyword arguments of torch.compile. Only inductor has modes, and its "default" is not passed on.

        Args:
            fullgraph: what "auto" stands for where this is used.
        """
        chosen: dict[str, Any] = {
            "backend": self.backend,
            "dynamic": {"auto": None, "on": True, "off": False}[self.dynamic],
            "fullgraph": fullgraph if self.fullgraph == "auto" else self.fullgraph == "on",
        }
        if self.backend == "inductor" and self.mode != "default":
            chosen["mode"] = self.mode
        return chosen

    def for_video_vae(self) -> dict[str, Any]:
        """The fields of the video VAE's settings that say how it is compiled."""
        return {
            "compile": self.arguments(fullgraph=True),
            "compile_scope": "slice" if self.scope == "model" else "blocks",
            "compile_headroom_gib": self.headroom_gib,
            "compile_memory_check": self.memory_check,
        }


@dataclass(frozen=True)
class TilingSettings:
    """Memory-saving decode of the pipeline's own VAE.

    Attributes:
        mode: "auto" tiles when the decode would not fit or the image is larger than 1536x1536.
        tile_size: tile edge in pixels; 0 keeps the VAE's own default.
        overlap: overlap of neighbouring tiles in pixels; 0 keeps the VAE's own default.
        slicing: decode one batch item at a time; "auto" when the batch holds more than one.
    """

    mode: str = "auto"
    tile_size: int = 0
    overlap: int = 0
    slicing: str = "auto"

    def __post_init__(self) -> None:
        check_choice("vae_tiling", self.mode, TRISTATE)
        check_choice("slicing", self.slicing, TRISTATE)
        if self.tile_size < 0 or 0 < self.tile_size < 64:
            reason, cure = "tiles are at least 64 pixels", "use 64 or more, or 0 for the model's default"
            raise InputError("tile_size", self.tile_size, reason, cure)
        if self.tile_size > MOST_PIXELS:
            raise InputError("tile_size", self.tile_size, f"it is {MOST_PIXELS} pixels at most", "use 0 for no tiles")
        if self.overlap < 0:
            raise InputError("overlap", self.overlap, "it cannot be negative", "use 0 for the model's default")
        if self.tile_size and self.overlap >= self.tile_size:
            reason = f"it must be smaller than tile_size ({self.tile_size})"
            raise InputError("overlap", self.overlap, reason, "use a quarter of tile_size")


@dataclass(frozen=True)
class PrecisionSettings:
    """Numerical switches that are global in torch; they hold only while a run is active.

    Attributes:
        tf32: TF32 matmuls and convolutions on NVIDIA cards (float32 parts only).
        cudnn_benchmark: let cuDNN try its convolution algorithms once per shape.
        channels_last: channels-last weights where they pay (convolutional UNets and VAEs on CUDA).
    """

    tf32: str = "off"
    cudnn_benchmark: str = "off"
    channels_last: str = "off"

    def __post_init__(self) -> None:
        for item in fields(self):
            check_choice(item.name, getattr(self, item.name), TRISTATE)


@dataclass(frozen=True)
class Workload:
    """What is about to be run, as far as "auto" decisions need to know it.

    Attributes:
        width, height: in pixels.
        frames: of the result, 1 for images.
        batch: images or videos in one run.
        steps: denoising steps.
        step_seconds: what a plain step takes here, as measured.
        streamed: finished frames leave the device while later ones are decoded, where the VAE allows it.
        further_weights: bytes of models that come beside the pipeline's, of a control model say.
        controlled: a control model adds to what the denoiser's blocks give.
        compile_overhead: bytes that compiled code takes beyond plain code here, as measured; None when it was not.

    0 means "not known yet".
    """

    width: int = 0
    height: int = 0
    frames: int = 1
    batch: int = 1
    steps: int = 0
    step_seconds: float = 0.0
    streamed: bool = False
    further_weights: int = 0
    controlled: bool = False
    compile_overhead: int | None = None


@dataclass(frozen=True)
class OptimizationSettings:
    """Everything that can be switched on a loaded pipeline without reloading it.

    "auto" follows what was measured on this card for this model and size. Where nothing was, attention is torch's own,
    and compiling is put to the test within a run in which it can pay back.

    Attributes:
        quantized_matmul: whether SDNQ models multiply in their quantized type; "auto" leaves it to the checkpoint.
        fused_projections: query, key and value of an attention layer as one matrix product.
    """

    attention: str = "auto"
    torch_compile: str = "auto"
    compile: CompileSettings = field(default_factory=CompileSettings)
    vae_tiling: TilingSettings = field(default_factory=TilingSettings)
    memory_mode: str = "auto"
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    step_cache: str = "off"
    quantized_matmul: str = "auto"
    fused_projections: str = "off"

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ATTENTION_CHOICES)
        check_choice("torch_compile", self.torch_compile, COMPILE_CHOICES)
        check_choice("memory_mode", self.memory_mode, MEMORY_MODES)
        check_choice("step_cache", self.step_cache, STEP_CACHE_CHOICES)
        check_choice("quantized_matmul", self.quantized_matmul, TRISTATE)
        check_choice("fused_projections", self.fused_projections, TRISTATE)

    @classmethod
    def plain(cls, **changes: Any) -> OptimizationSettings:
        """Every optimization off: the result equals a bare diffusers call bit for bit."""
        untiled = TilingSettings(mode="off", slicing="off")
        base: dict[str, Any] = {"attention": "sdpa", "torch_compile": "off", "vae_tiling": untiled}
        return cls(**{**base, **changes})

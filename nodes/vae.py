"""VAE Decode (Fast), VAE Encode (Fast) and Load Video VAE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..errors import FastDiffusersError
from ..optimizations.settings import OptimizationSettings, TilingSettings
from ..pipelines import generate
from ..pipelines.types import PipelineHandle
from ..vae import VaeSettings
from . import comfy_bridge, core_vae, types, video_vae
from .compat import ADVANCED, schema
from .model_files import video_vae_choices, video_vae_path

if TYPE_CHECKING:
    import torch

    from ..callbacks import Callbacks
    from ..report import OptimizationReport

MODES = ("auto", "whole", "tiles", "exact")
PIPELINE_TILING = {"auto": "auto", "whole": "off", "tiles": "on", "exact": "auto"}
CORE_MODES = {"auto": "auto", "whole": "whole", "tiles": "tiles", "exact": "auto"}
NO_EXACT = "exact tiling is there for this pack's video VAE; 'auto' was used instead"


class LoadVideoVAE(io.ComfyNode):
    """A file -> `VideoVaeHandle`. Its weights are read when a decode or an encode first needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersLoadVideoVAE",
            display_name="Load Video VAE",
            category=types.CATEGORY,
            description="Chooses a causal 3D video VAE (the ema_vae_fp16.safetensors of SeedVR2) for VAE Decode (Fast) "
            "and VAE Encode (Fast). For every other VAE use ComfyUI's own Load VAE: the fast nodes take it too.",
            search_aliases=["seedvr2", "video vae", "ema_vae_fp16", "3d vae"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=video_vae_choices(),
                    tooltip="Files under the 'vae' paths and in models/SEEDVR2.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "float16", "bfloat16", "float32"],
                    default="auto",
                    tooltip="'auto' is float16 or bfloat16 on a card that has it, float32 on a CPU. bfloat16 is the "
                    "least exact, float32 takes twice the memory.",
                ),
            ],
            outputs=[types.VideoVae.Output(display_name="video_vae")],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str) -> bool | str:
        try:
            video_vae.check_file(video_vae_path(vae_name))
        except FastDiffusersError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, vae_name: str, dtype: str) -> str:
        return video_vae.identity(Path(video_vae_path(vae_name)))

    @classmethod
    def execute(cls, vae_name: str, dtype: str) -> io.NodeOutput:
        path = Path(video_vae_path(vae_name))
        return io.NodeOutput(types.VideoVaeHandle(str(path), video_vae.identity(path), dtype))


class VAEDecode(io.ComfyNode):
    """LATENT -> IMAGE, with whichever VAE is connected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersVAEDecode",
            display_name="VAE Decode (Fast)",
            category=types.CATEGORY,
            description="Decodes a latent to images or video frames: with progress, a Cancel that works between tiles "
            "and slices, smaller tiles when memory runs out, and the frames gathered off the card.",
            search_aliases=["decode", "vae decode", "tiled decode", "latent to image", "latent to video"],
            inputs=[io.Latent.Input("samples", tooltip="The latent to decode."), *_common_inputs("decode")],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Images, or the frames of all videos in a row."),
                types.Report.Output(display_name="report", tooltip="For Show Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        samples: dict[str, Any],
        vae: Any,
        tiling: str,
        tile_size: int = 0,
        overlap: int = 0,
        temporal_slice: int = 0,
        memory_budget_gib: float = 0.0,
    ) -> io.NodeOutput:
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        settings = VaeSettings(tiling, tile_size, overlap, temporal_slice, memory_budget_gib)
        latent = samples["samples"]
        if getattr(latent, "is_nested", False):
            latent = latent.unbind()[0]  # the video of a latent that holds video and sound
        frames, report = _decode(vae, latent, settings, progress.callbacks)
        progress.show_report(report)
        if frames.ndim == 5:
            frames = frames.flatten(0, 1)
        return io.NodeOutput(frames, report, ui=ui.PreviewText(report.as_table()))


class VAEEncode(io.ComfyNode):
    """IMAGE -> LATENT, with whichever VAE is connected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersVAEEncode",
            display_name="VAE Encode (Fast)",
            category=types.CATEGORY,
            description="Encodes images or the frames of a video to a latent: with progress, a Cancel that works "
            "between tiles and slices, and smaller tiles when memory runs out.",
            search_aliases=["encode", "vae encode", "tiled encode", "image to latent", "video to latent"],
            inputs=[
                io.Image.Input("pixels", tooltip="Images; a video VAE takes them as the frames of one video."),
                *_common_inputs("encode"),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                types.Report.Output(display_name="report", tooltip="For Show Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        pixels: torch.Tensor,
        vae: Any,
        tiling: str,
        tile_size: int = 0,
        overlap: int = 0,
        temporal_slice: int = 0,
        memory_budget_gib: float = 0.0,
    ) -> io.NodeOutput:
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        settings = VaeSettings(tiling, tile_size, overlap, temporal_slice, memory_budget_gib)
        latent, report = _encode(vae, pixels, settings, progress.callbacks)
        progress.show_report(report)
        return io.NodeOutput({"samples": latent}, report, ui=ui.PreviewText(report.as_table()))


def _common_inputs(verb: str) -> list[Any]:
    """The inputs that decoding and encoding share."""
    return [
        io.MultiType.Input(
            "vae",
            types=[io.Vae, types.VideoVae, types.Pipeline],
            tooltip="ComfyUI's own VAE (Load VAE, a checkpoint), this pack's Load Video VAE, or a pipeline.",
        ),
        io.Combo.Input(
            "tiling",
            options=list(MODES),
            default="auto",
            tooltip=f"'whole' {verb}s at once: what ComfyUI's own node gives. 'tiles' needs less memory and more "
            "time, and tiles can differ slightly where they meet. 'exact' (video VAE) works in strips that share their "
            "statistics: little memory, no seams. 'auto' takes the whole where it fits, else the best that does.",
        ),
        io.Int.Input(
            "tile_size",
            default=0,
            min=0,
            max=8192,
            step=16,
            optional=True,
            tooltip="Edge of a tile in pixels; 0 is the largest that fits. Smaller tiles need less memory and show "
            "more seams.",
            **ADVANCED,
        ),
        io.Int.Input(
            "overlap",
            default=0,
            min=0,
            max=4096,
            step=8,
            optional=True,
            tooltip="Pixels that neighbouring tiles share; 0 is a quarter of the tile. More hides seams better and "
            "takes longer.",
            **ADVANCED,
        ),
        io.Int.Input(
            "temporal_slice",
            default=0,
            min=0,
            max=100000,
            optional=True,
            tooltip="Frames of a video that are worked on at a time; 0 chooses. Smaller slices need less memory.",
            **ADVANCED,
        ),
        io.Float.Input(
            "memory_budget_gib",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.25,
            round=0.01,
            optional=True,
            tooltip="Memory in GiB that a video VAE may use beside its weights; 0 goes by what is free.",
            **ADVANCED,
        ),
    ]


def _decode(
    vae: Any, latent: torch.Tensor, settings: VaeSettings, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Decode with the engine that belongs to what is connected."""
    if isinstance(vae, PipelineHandle):
        frames, report = generate.decode(vae, latent, _pipeline_settings(vae, settings), callbacks)
    elif isinstance(vae, types.VideoVaeHandle):
        frames, report = video_vae.decode(vae, latent, settings, callbacks)
    else:
        frames, report = core_vae.decode(vae, latent, _core_settings(settings), callbacks)
    if settings.mode == "exact" and not isinstance(vae, types.VideoVaeHandle):
        report.note(NO_EXACT)
    return frames, report


def _encode(
    vae: Any, pixels: torch.Tensor, settings: VaeSettings, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Encode with the engine that belongs to what is connected."""
    if isinstance(vae, PipelineHandle):
        latent, report = generate.encode(vae, pixels, _pipeline_settings(vae, settings), callbacks)
    elif isinstance(vae, types.VideoVaeHandle):
        latent, report = video_vae.encode(vae, pixels, settings, callbacks)
    else:
        latent, report = core_vae.encode(vae, pixels, _core_settings(settings), callbacks)
    if settings.mode == "exact" and not isinstance(vae, types.VideoVaeHandle):
        report.note(NO_EXACT)
    return latent, report


def _pipeline_settings(pipeline: PipelineHandle, settings: VaeSettings) -> OptimizationSettings:
    tiling = TilingSettings(PIPELINE_TILING[settings.mode], settings.tile_size, settings.tile_overlap)
    return OptimizationSettings(vae_tiling=tiling, memory_mode=pipeline.memory_mode)


def _core_settings(settings: VaeSettings) -> core_vae.CoreVaeSettings:
    mode = CORE_MODES[settings.mode]
    return core_vae.CoreVaeSettings(mode, settings.tile_size, settings.tile_overlap, settings.temporal_slice)

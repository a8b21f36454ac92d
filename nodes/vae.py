"""VAE Decode (Fast), VAE Encode (Fast) and Load Video VAE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..errors import FastDiffusersError
from ..vae.settings import CONVOLUTIONS, KERNEL_CHOICES
from . import types, vae_engines, video_vae
from .host import comfy_bridge
from .host.compat import ADVANCED, schema
from .host.model_files import video_vae_choices, video_vae_path
from .vae_choices import VaeChoices, exactness_input, shared_inputs

if TYPE_CHECKING:
    import torch

    from ..optimizations.settings import CompileSettings


class LoadVideoVAE(io.ComfyNode):
    """A file -> `VideoVaeHandle`. Its weights are read when a decode or an encode first needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersLoadVideoVAE",
            display_name="Load Video VAE",
            category=types.CATEGORY,
            search_aliases=["seedvr2", "video vae", "ema_vae_fp16", "3d vae", "video upscale"],
            inputs=[
                io.Combo.Input("vae_name", options=video_vae_choices()),
                io.Combo.Input("dtype", options=["auto", "float16", "bfloat16", "float32"], default="auto"),
                io.Combo.Input("kernels", options=list(KERNEL_CHOICES), default="auto", optional=True, **ADVANCED),
                io.Boolean.Input("cuda_graphs", default=False, optional=True, **ADVANCED),
                io.Boolean.Input("overlap_tiles", default=False, optional=True, **ADVANCED),
                io.Boolean.Input("fp16_accumulation", default=False, optional=True, **ADVANCED),
                io.Combo.Input("convolution", options=list(CONVOLUTIONS), default="auto", optional=True, **ADVANCED),
            ],
            outputs=[types.VideoVae.Output(display_name="video_vae")],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str) -> bool | str:
        try:
            video_vae.check_file(video_vae_path(vae_name))
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(cls, vae_name: str, **how: Any) -> str:
        return video_vae.identity(Path(video_vae_path(vae_name)))

    @classmethod
    def execute(cls, vae_name: str, dtype: str, **how: Any) -> io.NodeOutput:
        path = Path(video_vae_path(vae_name))
        video_vae.check_file(str(path))
        file = types.video_vae_file(str(path), video_vae.identity(path), dtype)
        return io.NodeOutput(types.VideoVaeHandle(file, **how))


class VAEDecode(io.ComfyNode):
    """LATENT -> IMAGE, with whichever VAE is connected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersVAEDecode",
            display_name="VAE Decode (Fast)",
            category=types.CATEGORY,
            search_aliases=["decode", "vae decode", "tiled", "tiled decode", "latent to image", "latent to video"],
            inputs=[io.Latent.Input("samples"), *shared_inputs("decode"), exactness_input()],
            outputs=[io.Image.Output(display_name="images"), types.Report.Output(display_name="report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, samples: dict[str, Any], vae: Any, compile_settings: CompileSettings | None = None, **widgets: Any
    ) -> io.NodeOutput:
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        choices = VaeChoices(compile=compile_settings, **widgets)
        with progress.running() as callbacks:
            frames, report = vae_engines.decode(vae, samples, choices, callbacks)
        progress.show_report("VAE Decode (Fast)", report)
        if frames.ndim == 5:
            frames = frames.flatten(0, 1)
        return io.NodeOutput(frames, report, ui=ui.PreviewText(report.as_text()))


class VAEEncode(io.ComfyNode):
    """IMAGE -> LATENT, with whichever VAE is connected."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersVAEEncode",
            display_name="VAE Encode (Fast)",
            category=types.CATEGORY,
            search_aliases=["encode", "vae encode", "tiled encode", "image to latent", "video to latent"],
            inputs=[io.Image.Input("pixels"), *shared_inputs("encode")],
            outputs=[io.Latent.Output(display_name="latent"), types.Report.Output(display_name="report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, pixels: torch.Tensor, vae: Any, compile_settings: CompileSettings | None = None, **widgets: Any
    ) -> io.NodeOutput:
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        choices = VaeChoices(compile=compile_settings, **widgets)
        with progress.running() as callbacks:
            latent, report = vae_engines.encode(vae, pixels, choices, callbacks)
        progress.show_report("VAE Encode (Fast)", report)
        return io.NodeOutput(latent, report, ui=ui.PreviewText(report.as_text()))

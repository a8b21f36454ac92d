"""Diffusers Sampler: prompt in; images or video, with sound where the model makes it, and their latent out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..optimizations.settings import (
    ATTENTION_CHOICES,
    COMPILE_CHOICES,
    STEP_CACHE_CHOICES,
    TRISTATE,
)
from ..pipelines.generate import generate
from ..pipelines.types import PipelineHandle, SampleRequest
from . import comfy_bridge, residency, sampler_outputs, types
from .compat import ADVANCED, schema
from .settings import FOLLOW, with_widgets

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..optimizations.settings import CompileSettings, OptimizationSettings

MODEL_DEFAULT = "model default"
SCHEDULERS = (
    MODEL_DEFAULT,
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
IMAGE_SOCKETS = ("image_1", "image_2", "image_3", "image_4")


class Sampler(io.ComfyNode):
    """Widgets and sockets -> one `SampleRequest`, one `OptimizationSettings`, and one call of the engine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersSampler",
            display_name="Diffusers Sampler",
            category=types.CATEGORY,
            description="Runs a diffusers pipeline: text, and images where the model takes them, to images or video, "
            "with sound where the model makes it. An optimization that cannot be had is left out, the result is still "
            "made, and the report says why.",
            search_aliases=["diffusers", "ksampler", "generate", "text to image", "text to video", "image edit"],
            inputs=[*_what_to_make(), *_how_to_run(), *_optional_inputs(), *_advanced_inputs()],
            outputs=sampler_outputs.outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        prompt: str,
        negative_prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        num_frames: int,
        batch_size: int,
        scheduler: str,
        attention: str,
        torch_compile: str,
        vae_tiling: str,
        step_cache: str,
        compile_settings: CompileSettings | None = None,
        settings: OptimizationSettings | None = None,
        images: dict[str, torch.Tensor | None] | None = None,
        last_image: torch.Tensor | None = None,
        latent: dict[str, Any] | None = None,
        strength: float = 1.0,
        guidance_2: float = -1.0,
        frame_rate: float = 0.0,
        max_sequence_length: int = 0,
        decode: bool = True,
    ) -> io.NodeOutput:
        request = SampleRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            steps=steps or None,
            guidance=None if guidance < 0 else guidance,
            guidance_2=None if guidance_2 < 0 else guidance_2,
            width=width or None,
            height=height or None,
            num_frames=num_frames or None,
            frame_rate=frame_rate or None,
            seed=seed,
            batch=batch_size,
            scheduler=scheduler,
            images=_image_list(images),
            last_image=None if last_image is None else last_image[0, ..., :3],
            latent=None if latent is None else latent["samples"],
            strength=strength,
            max_sequence_length=max_sequence_length or None,
            decode=decode,
        )
        optimizations = with_widgets(
            settings,
            attention=attention,
            torch_compile=torch_compile,
            compile_settings=compile_settings,
            vae_tiling=vae_tiling,
            step_cache=step_cache,
            memory_mode=pipeline.memory_mode,
        )
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        with residency.on_card(pipeline):
            result = generate(pipeline, request, optimizations, progress.callbacks, memory=comfy_bridge.memory_state)
        progress.show_report(result.report)
        return io.NodeOutput(*sampler_outputs.values(result), ui=ui.PreviewText(result.report.as_table()))


def _what_to_make() -> list[Any]:
    return [
        types.Pipeline.Input("pipeline", tooltip="From Load Diffusers Pipeline."),
        io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What to show."),
        io.String.Input(
            "negative_prompt",
            multiline=True,
            dynamic_prompts=True,
            tooltip="What to keep away from. Models that know no negative prompt ignore it, and the report says so. "
            "Where it is used, every step runs the model twice.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Start of the noise. Image i of a batch uses seed + i. The noise is drawn on the CPU, so that it "
            "is the same on every device.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip="Denoising steps; 0 is the model's default. The time grows with them.",
        ),
        io.Float.Input(
            "guidance",
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.1,
            round=0.001,
            tooltip="How closely to follow the prompt, as the model itself understands it; -1 is the model's default. "
            "Distilled models take a low value or none.",
        ),
        io.Int.Input(
            "width",
            default=0,
            min=0,
            max=16384,
            step=8,
            tooltip="Pixels; 0 is the model's default (edit: the image's).",
        ),
        io.Int.Input(
            "height",
            default=0,
            min=0,
            max=16384,
            step=8,
            tooltip="Pixels; 0 is the model's default (edit: the image's).",
        ),
        io.Int.Input(
            "num_frames",
            default=0,
            min=0,
            max=100000,
            tooltip="Frames of a video; 0 is the model's default. Wan takes 4n+1, LTX-2 8n+1. Image models take 0 "
            "or 1.",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=4096,
            tooltip="How many images or videos to make, each from its own seed. Time and memory grow with it.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default=MODEL_DEFAULT,
            tooltip="The solver. Others than the model's own are for those who know that it fits the model; one that "
            "cannot is refused before anything is loaded.",
        ),
    ]


def _how_to_run() -> list[Any]:
    return [
        io.Combo.Input(
            "attention",
            options=list(ATTENTION_CHOICES),
            default=FOLLOW,
            tooltip="The attention kernel. A chosen one is first tried on this device with this model's head size; "
            "where it fails, PyTorch's own ('sdpa') runs and the report says why. 'sage' quantizes and changes the "
            "result a little. 'auto' follows 'settings'; without it, what was measured here, or 'sdpa'.",
        ),
        io.Combo.Input(
            "torch_compile",
            options=list(COMPILE_CHOICES),
            default=FOLLOW,
            tooltip="Compile the denoiser. The first run takes longer, later ones are faster, and it needs memory. "
            "'on' compiles where the memory allows it. 'auto' follows 'settings'; without it, it compiles where that "
            "can pay back, compares, and goes back to plain where it is not faster. Changing it never reloads the "
            "model.",
        ),
        io.Combo.Input(
            "vae_tiling",
            options=list(TRISTATE),
            default=FOLLOW,
            tooltip="Decode in tiles: less memory, more time, and tiles can differ slightly where they meet. 'auto' "
            "follows 'settings'; without it, it tiles when the decode would not fit or the image is larger than "
            "1536x1536.",
        ),
        io.Combo.Input(
            "step_cache",
            options=[FOLLOW, *STEP_CACHE_CHOICES],
            default=FOLLOW,
            tooltip="Reuse parts of one step in the next: faster, and the result changes; 'fast' more so than "
            "'balanced'. Some models need the package cache-dit for it. 'auto' follows 'settings', and is off without "
            "it.",
        ),
    ]


def _optional_inputs() -> list[Any]:
    return [
        types.CompileSettings.Input(
            "compile_settings",
            optional=True,
            tooltip="From Torch Compile Settings; without it, what 'settings' says, else the defaults.",
        ),
        types.OptimizationSettings.Input(
            "settings",
            optional=True,
            tooltip="From Optimization Settings or a benchmark. It decides what the widgets here leave at 'auto' "
            "(attention, torch_compile, vae_tiling, step_cache); any other value of a widget wins over it. "
            "'compile_settings' wins where it is connected, and memory_mode is always the loader's.",
        ),
        io.Autogrow.Input(
            "images",
            template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=list(IMAGE_SOCKETS), min=0),
            optional=True,
            tooltip="Images to edit or to refer to, or the first frame of a video. A batch counts as several images.",
        ),
        io.Image.Input("last_image", optional=True, tooltip="Last frame of a video, where the model takes one."),
        io.Latent.Input(
            "latent", optional=True, tooltip="Latent to start from instead of pure noise, with a strength below 1."
        ),
    ]


def _advanced_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="1 starts from noise. Less keeps that much of 'latent' or of the first image, and runs fewer "
            "steps.",
            **ADVANCED,
        ),
        io.Float.Input(
            "guidance_2",
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.1,
            round=0.001,
            optional=True,
            tooltip="Guidance of the low-noise expert (Wan 2.2); -1 is the same as 'guidance'.",
            **ADVANCED,
        ),
        io.Float.Input(
            "frame_rate",
            default=0.0,
            min=0.0,
            max=240.0,
            step=1.0,
            optional=True,
            tooltip="Frames per second of a video; 0 is what the model was trained for.",
            **ADVANCED,
        ),
        io.Int.Input(
            "max_sequence_length",
            default=0,
            min=0,
            max=8192,
            optional=True,
            tooltip="Text tokens that are read; 0 is the model's default. Longer prompts cost time in every step.",
            **ADVANCED,
        ),
        io.Boolean.Input(
            "decode",
            default=True,
            optional=True,
            tooltip="Off: only the latent is made, for VAE Decode (Fast) or another decode.",
            **ADVANCED,
        ),
    ]


def _image_list(images: Mapping[str, torch.Tensor | None] | None) -> tuple[torch.Tensor, ...]:
    """Every image of every connected batch, as RGB [H, W, 3]."""
    batches = [batch for batch in (images or {}).values() if batch is not None]
    return tuple(image[..., :3] for batch in batches for image in batch)

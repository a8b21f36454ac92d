"""The widgets and sockets of Diffusers Sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..optimizations.settings import ATTENTION_CHOICES, COMPILE_CHOICES, STEP_CACHE_CHOICES, TRISTATE
from . import types
from .host.compat import ADVANCED
from .settings import FOLLOW

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


def inputs() -> list[Any]:
    """Return all inputs, in the order in which a saved workflow lists their values. New ones go to the end."""
    return [*_what_to_make(), *_how_to_run(), *_optional_inputs(), *_advanced_inputs()]


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

"""The widgets and sockets of Diffusers Sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..engines.requests import MAX_FRAMES
from ..optimizations.settings import ATTENTION_CHOICES, COMPILE_CHOICES, STEP_CACHE_CHOICES, TRISTATE
from ..pipelines.conditions.rates import MOST_FRAME_RATE
from ..pipelines.families import MAX_SIZE
from ..pipelines.requests import MAX_BATCH, MAX_FLOW_SHIFT, MAX_SEQUENCE_LENGTH, MAX_STEPS
from ..pipelines.schedulers import SHORT_NAMES
from . import types
from .host.compat import ADVANCED
from .settings import FOLLOW

MODEL_DEFAULT = "model default"
SCHEDULERS = (
    MODEL_DEFAULT,
    *SHORT_NAMES,
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
        types.Pipeline.Input("pipeline"),
        io.String.Input("prompt", multiline=True, dynamic_prompts=True),
        io.String.Input("negative_prompt", multiline=True, dynamic_prompts=True),
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
        io.Int.Input("steps", default=0, min=0, max=MAX_STEPS),
        io.Float.Input("guidance", default=-1.0, min=-1.0, max=100.0, step=0.1, round=0.001),
        io.Int.Input("width", default=0, min=0, max=MAX_SIZE, step=8),
        io.Int.Input("height", default=0, min=0, max=MAX_SIZE, step=8),
        io.Int.Input("num_frames", default=0, min=0, max=MAX_FRAMES),
        io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH, **ADVANCED),
        io.Combo.Input("scheduler", options=list(SCHEDULERS), default=MODEL_DEFAULT, **ADVANCED),
    ]


def _how_to_run() -> list[Any]:
    return [
        io.Combo.Input("attention", options=list(ATTENTION_CHOICES), default=FOLLOW),
        io.Combo.Input("torch_compile", options=list(COMPILE_CHOICES), default=FOLLOW),
        io.Combo.Input("vae_tiling", options=list(TRISTATE), default=FOLLOW),
        io.Combo.Input("step_cache", options=[FOLLOW, *STEP_CACHE_CHOICES], default=FOLLOW, **ADVANCED),
    ]


def _optional_inputs() -> list[Any]:
    return [
        types.CompileSettings.Input("compile_settings", optional=True),
        types.OptimizationSettings.Input("settings", optional=True),
        io.Autogrow.Input(
            "images",
            template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=list(IMAGE_SOCKETS), min=0),
            optional=True,
        ),
        io.Image.Input("last_image", optional=True),
        io.Latent.Input("latent", optional=True),
        io.Conditioning.Input("positive", optional=True),
        io.Conditioning.Input("negative", optional=True),
        types.Conditions.Input("conditions", optional=True),
        types.Cluster.Input("cluster", optional=True),
    ]


def _advanced_inputs() -> list[Any]:
    return [
        io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, **ADVANCED),
        io.Float.Input(
            "guidance_2", default=-1.0, min=-1.0, max=100.0, step=0.1, round=0.001, optional=True, **ADVANCED
        ),
        io.Float.Input("frame_rate", default=0.0, min=0.0, max=MOST_FRAME_RATE, step=1.0, optional=True, **ADVANCED),
        io.Int.Input("max_sequence_length", default=0, min=0, max=MAX_SEQUENCE_LENGTH, optional=True, **ADVANCED),
        io.Boolean.Input("decode", default=True, optional=True, **ADVANCED),
        io.Float.Input(
            "flow_shift", default=0.0, min=0.0, max=MAX_FLOW_SHIFT, step=0.1, round=0.001, optional=True, **ADVANCED
        ),
    ]

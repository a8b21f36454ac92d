"""Load Image Prompt Model and Image Prompt Condition: what reads a picture as a prompt, and the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ...errors import FastDiffusersError
from ...pipelines.conditions.image_prompts.keys import MOST_STRENGTH, resolve_image_prompt
from ...pipelines.conditions.kinds import ImagePromptCondition
from .. import types
from ..host.compat import ADVANCED, schema
from ..host.model_files import image_prompt_choices, image_prompt_source
from ..pictures import pictures

if TYPE_CHECKING:
    import torch

    from ...pipelines.conditions.kinds import Condition, ImagePromptKey


class LoadImagePromptModel(io.ComfyNode):
    """An IP-Adapter's file or Flux Redux's folder -> `ImagePromptKey`. Weights are read when a sampler needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersLoadImagePromptModel",
            display_name="Load Image Prompt Model (Diffusers)",
            category=types.CATEGORY,
            search_aliases=["ip-adapter", "ipadapter", "redux", "style", "image prompt"],
            inputs=[
                io.Combo.Input("model_name", options=image_prompt_choices()),
                io.String.Input("custom_model", default=""),
                io.String.Input("image_encoder", default="", optional=True, **ADVANCED),
            ],
            outputs=[types.ImagePromptModel.Output(display_name="image_prompt_model")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str, custom_model: str, image_encoder: str = "") -> bool | str:
        # ComfyUI asks this before anything runs. Naming the widget also replaces its own "value not in list".
        try:
            _key(model_name, custom_model, image_encoder)
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name: str, custom_model: str, image_encoder: str = "", **how: Any) -> str:
        # An edited file runs again under the same name.
        key = _key(model_name, custom_model, image_encoder)
        return f"{key.source} {key.identity}"

    @classmethod
    def execute(cls, model_name: str, custom_model: str, image_encoder: str = "") -> io.NodeOutput:
        return io.NodeOutput(_key(model_name, custom_model, image_encoder))


def _key(model_name: str, custom_model: str, image_encoder: str) -> ImagePromptKey:
    return resolve_image_prompt(image_prompt_source(model_name, custom_model), image_encoder.strip().strip('"'))


class ImagePromptConditionNode(io.ComfyNode):
    """A picture and what reads it -> one condition more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersImagePromptCondition",
            display_name="Image Prompt Condition",
            category=types.CATEGORY,
            search_aliases=["ip-adapter", "ipadapter", "redux", "style transfer", "image prompt"],
            inputs=[
                io.Image.Input("image"),
                types.ImagePromptModel.Input("image_prompt_model"),
                io.Float.Input("strength", default=1.0, min=0.0, max=MOST_STRENGTH, step=0.05, round=0.001),
                types.Conditions.Input("conditions", optional=True),
            ],
            outputs=[types.Conditions.Output(display_name="conditions")],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        image_prompt_model: ImagePromptKey,
        strength: float,
        conditions: tuple[Condition, ...] | None = None,
    ) -> io.NodeOutput:
        added = ImagePromptCondition(pictures("image", image), image_prompt_model, strength)
        return io.NodeOutput((*(conditions or ()), added))

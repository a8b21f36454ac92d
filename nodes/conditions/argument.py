"""Pipeline Argument: an argument of the pipeline's call that no other input gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ...pipelines.conditions.arguments.names import json_or_text
from ...pipelines.conditions.kinds import ArgumentCondition
from .. import types
from ..host.compat import schema
from ..pictures import pictures

if TYPE_CHECKING:
    import torch

    from ...pipelines.conditions.kinds import Condition


class PipelineArgumentNode(io.ComfyNode):
    """A name with a value, or with a picture -> one condition more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersPipelineArgument",
            display_name="Pipeline Argument",
            category=types.CATEGORY,
            search_aliases=["eta", "guidance_rescale", "pag_scale", "cfg_normalization", "kwargs", "extra input"],
            inputs=[
                io.String.Input("name", default="eta"),
                io.String.Input("value", default=""),
                io.Image.Input("image", optional=True),
                types.Conditions.Input("conditions", optional=True),
            ],
            outputs=[types.Conditions.Output(display_name="conditions")],
        )

    @classmethod
    def execute(
        cls,
        name: str,
        value: str,
        image: torch.Tensor | None = None,
        conditions: tuple[Condition, ...] | None = None,
    ) -> io.NodeOutput:
        given = None if image is not None else json_or_text(name, value)
        shown = None if image is None else pictures("image", image)
        return io.NodeOutput((*(conditions or ()), ArgumentCondition(name.strip(), given, shown)))

"""Mask Condition: which part of a picture is made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ...pipelines.conditions.kinds import MaskCondition
from .. import types
from ..host.compat import schema

if TYPE_CHECKING:
    import torch

    from ...pipelines.conditions.kinds import Condition


class MaskConditionNode(io.ComfyNode):
    """A MASK -> one condition more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersMaskCondition",
            display_name="Mask Condition",
            category=types.CATEGORY,
            search_aliases=["inpaint", "mask", "fill", "outpaint", "flux fill", "repaint"],
            inputs=[
                io.Mask.Input("mask"),
                types.Conditions.Input("conditions", optional=True),
            ],
            outputs=[types.Conditions.Output(display_name="conditions")],
        )

    @classmethod
    def execute(cls, mask: torch.Tensor, conditions: tuple[Condition, ...] | None = None) -> io.NodeOutput:
        return io.NodeOutput((*(conditions or ()), MaskCondition(mask)))

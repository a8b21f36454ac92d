"""Load ControlNet (Diffusers) and Control Condition: a control model, and the picture that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ...errors import FastDiffusersError
from ...pipelines.conditions.control import MOST_STRENGTH
from ...pipelines.conditions.controlnets import resolve_controlnet
from ...pipelines.conditions.kinds import ControlCondition
from .. import types
from ..host.compat import ADVANCED, schema
from ..host.model_files import controlnet_choices, controlnet_source
from ..pictures import pictures

if TYPE_CHECKING:
    import torch

    from ...pipelines.conditions.kinds import Condition, ControlNetKey

NO_MODE = -1
"""Of a control model that reads one kind of picture."""
MOST_MODES = 255


class LoadControlNet(io.ComfyNode):
    """A folder or file -> `ControlNetKey`. Its configuration is read at once, its weights when a sampler needs them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersLoadControlNet",
            display_name="Load ControlNet (Diffusers)",
            category=types.CATEGORY,
            search_aliases=["controlnet", "canny", "depth", "pose", "union", "control model"],
            inputs=[
                io.Combo.Input("controlnet_name", options=controlnet_choices()),
                io.String.Input("custom_controlnet", default=""),
            ],
            outputs=[types.ControlNet.Output(display_name="control_net")],
        )

    @classmethod
    def validate_inputs(cls, controlnet_name: str, custom_controlnet: str) -> bool | str:
        # ComfyUI asks this before anything runs. Naming the widget also replaces its own "value not in list".
        try:
            resolve_controlnet(controlnet_source(controlnet_name, custom_controlnet))
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def fingerprint_inputs(cls, controlnet_name: str, custom_controlnet: str, **how: Any) -> str:
        # An edited folder runs again under the same name.
        key = resolve_controlnet(controlnet_source(controlnet_name, custom_controlnet))
        return f"{key.source} {key.identity}"

    @classmethod
    def execute(cls, controlnet_name: str, custom_controlnet: str) -> io.NodeOutput:
        return io.NodeOutput(resolve_controlnet(controlnet_source(controlnet_name, custom_controlnet)))


class ControlConditionNode(io.ComfyNode):
    """A control picture, and mostly a control model -> one condition more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersControlCondition",
            display_name="Control Condition",
            category=types.CATEGORY,
            search_aliases=["controlnet", "apply controlnet", "canny", "depth", "pose", "control image"],
            inputs=[
                io.Image.Input("image"),
                io.Float.Input("strength", default=1.0, min=0.0, max=MOST_STRENGTH, step=0.05, round=0.001),
                types.ControlNet.Input("control_net", optional=True),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, **ADVANCED),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, **ADVANCED),
                types.Conditions.Input("conditions", optional=True),
                io.Int.Input("mode", default=NO_MODE, min=NO_MODE, max=MOST_MODES, optional=True, **ADVANCED),
            ],
            outputs=[types.Conditions.Output(display_name="conditions")],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        strength: float,
        control_net: ControlNetKey | None = None,
        start: float = 0.0,
        end: float = 1.0,
        conditions: tuple[Condition, ...] | None = None,
        mode: int = NO_MODE,
    ) -> io.NodeOutput:
        shown, kind = pictures("image", image), None if mode == NO_MODE else mode
        added = ControlCondition(shown, control_net, strength, start, end, kind)
        return io.NodeOutput((*(conditions or ()), added))

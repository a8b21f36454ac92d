"""Video Condition and Keyframe Condition: a clip that a run starts from or keeps to, and pictures at places of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ...pipelines.conditions.kinds import ROLES, KeyframeCondition, Sound, VideoCondition
from ...pipelines.families import MAX_FRAMES
from .. import types
from ..host.compat import schema
from ..pictures import clip, pictures

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ...pipelines.families import MAX_FRAMES
from ...pipelines.conditions.kinds import Condition


class VideoConditionNode(io.ComfyNode):
    """A VIDEO, or its frames as an IMAGE batch -> one condition more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersVideoCondition",
            display_name="Video Condition",
            category=types.CATEGORY,
            search_aliases=["video to video", "v2v", "vace", "animate", "pose", "face", "wan animate"],
            inputs=[
                io.MultiType.Input("video", types=[io.Video, io.Image]),
                io.Combo.Input("role", options=list(ROLES), default="video"),
                types.Conditions.Input("conditions", optional=True),
            ],
            outputs=[types.Conditions.Output(display_name="conditions")],
        )

    @classmethod
    def execute(cls, video: Any, role: str, conditions: tuple[Condition, ...] | None = None) -> io.NodeOutput:
        if hasattr(video, "get_components"):
            parts = video.get_components()
            frames, rate = clip("video", parts.images), float(parts.frame_rate)
            added = VideoCondition(frames, role, rate, _sound(parts.audio))
        else:
            added = VideoCondition(clip("video", video), role)
        return io.NodeOutput((*(conditions or ()), added))


def _sound(audio: Mapping[str, Any] | None) -> Sound | None:
    """An AUDIO's first item; None where there is nothing to hear."""
    if audio is None or not audio["waveform"].numel():
        return None
    return Sound(audio["waveform"][0], int(audio["sample_rate"]))


class KeyframeConditionNode(io.ComfyNode):
    """A picture and its place in a clip -> one condition more."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersKeyframeCondition",
            display_name="Keyframe Condition",
            category=types.CATEGORY,
            search_aliases=["keyframe", "first frame", "last frame", "ltx", "guide"],
            inputs=[
                io.Image.Input("image"),
                io.Int.Input("frame", default=0, min=-1, max=MAX_FRAMES - 1),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.01),
                types.Conditions.Input("conditions", optional=True),
            ],
            outputs=[types.Conditions.Output(display_name="conditions")],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, frame: int, strength: float, conditions: tuple[Condition, ...] | None = None
    ) -> io.NodeOutput:
        added = KeyframeCondition(pictures("image", image), frame, strength)
        return io.NodeOutput((*(conditions or ()), added))

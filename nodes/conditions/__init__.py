"""The nodes whose output goes to `conditions` of Diffusers Sampler. Each takes another one's, so that they chain."""

from __future__ import annotations

from comfy_api.latest import io

from .argument import PipelineArgumentNode
from .control import ControlConditionNode, LoadControlNet
from .image_prompt import ImagePromptConditionNode, LoadImagePromptModel
from .mask import MaskConditionNode
from .video import KeyframeConditionNode, VideoConditionNode

CONDITION_NODES: list[type[io.ComfyNode]] = [
    MaskConditionNode,
    ControlConditionNode,
    LoadControlNet,
    VideoConditionNode,
    KeyframeConditionNode,
    ImagePromptConditionNode,
    LoadImagePromptModel,
    PipelineArgumentNode,
]
"""In the order of the menu."""

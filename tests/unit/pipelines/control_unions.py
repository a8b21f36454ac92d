"""ControlNet Unions with random weights for the tiny pipelines, and folders of them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch

from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.kinds import ControlNetKey
from fastdiffusers.pipelines.tiny.build import spread_weights

MODES = 3


def union(family: str) -> Any:
    """The control model of "flux" or "sdxl" that reads three kinds of pictures."""
    pipeline: Any = tiny.build(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        if family == "flux":
            config = {**pipeline.transformer.config, "num_layers": 1, "num_single_layers": 1, "num_mode": MODES}
            made: Any = diffusers.FluxControlNetModel
        else:
            made = diffusers.ControlNetUnionModel
            takes = inspect.signature(made).parameters
            config = {name: value for name, value in pipeline.unet.config.items() if name in takes}
            width = pipeline.unet.config.block_out_channels[0]
            config |= {"num_control_type": MODES, "num_trans_channel": width, "num_proj_channel": width}
            config |= {"num_trans_head": 4, "conditioning_embedding_out_channels": (16, 16, 16, 16)}
        model = made.from_config({name: value for name, value in config.items() if not name.startswith("_")})
        spread_weights(model)
    return model.eval().requires_grad_(False)


def union_key(family: str, folder: Path) -> ControlNetKey:
    """One of them, saved in a folder."""
    if not folder.is_dir():
        union(family).save_pretrained(folder)
    return resolve_controlnet(str(folder))

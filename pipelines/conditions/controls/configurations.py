"""The configuration of a ControlNet that comes as one file: from the shapes of its tensors, and from the model that it
steers where they do not show it.

A ControlNet begins as a copy of the beginning of its model, as diffusers' `from_unet` and `from_transformer` make it:
what no tensor shows, such as the number of heads, is the model's. Tensors under other names are not converted by guess:
every name and shape is compared with the network that comes of the configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""
Config = dict[str, Any]

ORIGINAL = "input_hint_block.0.weight"
"""A tensor of ControlNets under the names of their own code, in which diffusers knows those of Stable Diffusion."""
_OF_OWN_CODE = "control_model."


def rename(tensors: Mapping[str, Any], config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Tensors, or their shapes, under diffusers' names."""
    if class_name != "ControlNetModel" or not is_original(tensors):
        return dict(tensors)
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    given = {name.removeprefix(_OF_OWN_CODE): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in convert_controlnet_checkpoint(given, config).items() if tensor is not None}


def is_original(tensors: Mapping[str, Any]) -> bool:
    """Whether these are a Stable Diffusion ControlNet's tensors under the names of its own code."""
    return any(
        start + ORIGINAL in tensors and f"{start}zero_convs.0.0.weight" in tensors for start in ("", _OF_OWN_CODE)
    )


def class_of_tensors(shapes: Shapes) -> str:
    """The class in diffusers that has tensors of these names, "" where none is known to."""
    if "control_add_embedding.linear_1.weight" in shapes:
        return "ControlNetUnionModel"
    if (
        "controlnet_cond_embedding.conv_in.weight" in shapes and "controlnet_mid_block.weight" in shapes
    ) or is_original(shapes):
        return "ControlNetModel"
    if "pos_embed_input.proj.weight" in shapes and _has(shapes, "controlnet_blocks."):
        return "SD3ControlNetModel"
    if _has(shapes, "control_layers.") and _has(shapes, "control_all_x_embedder."):
        return "ZImageControlNetModel"
    if "controlnet_x_embedder.weight" in shapes and _has(shapes, "controlnet_blocks."):
        return "QwenImageControlNetModel" if "img_in.weight" in shapes else "FluxControlNetModel"
    return ""


def not_shown(class_name: str) -> tuple[str, ...]:
    """What of the configuration of a class neither its tensors show nor the model that it steers."""
    return _NOT_SHOWN.get(class_name, () if class_name in _READERS else ("configuration",))


def derived(class_name: str, shapes: Shapes, denoiser: Mapping[str, Any]) -> Config:
    """The configuration of a ControlNet without one.

    Args:
        class_name: one of which everything is shown.
        shapes: as in its file.
        denoiser: configuration of the model that it steers.

    Raises:
        KeyError, IndexError, ValueError: these are not the tensors of such a network.
    """
    import diffusers

    takes = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    config = {name: value for name, value in denoiser.items() if name in takes}
    return config | _READERS[class_name](rename(shapes, denoiser, class_name), denoiser)


def modes_of(config: Mapping[str, Any]) -> int:
    """How many kinds of pictures a control model tells apart by a number; 0 where it reads one kind."""
    modes = config.get("num_mode") or config.get("num_control_type") or 0
    return modes if isinstance(modes, int) else 0


def modes_of_tensors(class_name: str, shapes: Shapes) -> int:
    """Likewise, of one in a file."""
    named = {"FluxControlNetModel": "controlnet_mode_embedder.weight", "ControlNetUnionModel": "task_embedding"}
    return shapes.get(named.get(class_name, ""), (0,))[0]


def _unet_like(shapes: Shapes, denoiser: Mapping[str, Any]) -> Config:
    """Of `ControlNetModel`: the encoder of a UNet."""
    blocks = range(_count(shapes, "down_blocks."))
    attends = [_has(shapes, f"down_blocks.{block}.attentions.") for block in blocks]
    middle = _has(shapes, "mid_block.attentions.")
    depths = [_count(shapes, f"down_blocks.{block}.attentions.0.transformer_blocks.") or 1 for block in blocks]
    if middle and not attends[-1]:
        depths[-1] = _count(shapes, "mid_block.attentions.0.transformer_blocks.")
    hint = "controlnet_cond_embedding."
    first = shapes[f"{hint}conv_in.weight"]
    further = range(1, _count(shapes, f"{hint}blocks."), 2)
    config: Config = {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": [shapes[f"down_blocks.{block}.resnets.0.conv1.weight"][0] for block in blocks],
        "down_block_types": ["CrossAttnDownBlock2D" if attended else "DownBlock2D" for attended in attends],
        "layers_per_block": _count(shapes, "down_blocks.0.resnets."),
        "transformer_layers_per_block": depths,
        "conditioning_channels": first[1],
        "conditioning_embedding_out_channels": [
            first[0],
            *(shapes[f"{hint}blocks.{block}.weight"][0] for block in further),
        ],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "addition_embed_type": None,
    }
    if width := next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0):
        config["cross_attention_dim"] = width
    if projection := next((shape for name, shape in shapes.items() if name.endswith("proj_in.weight")), ()):
        config["use_linear_projection"] = len(projection) == 2
    if "add_embedding.linear_1.weight" in shapes:
        config["addition_embed_type"] = "text_time"
        config["projection_class_embeddings_input_dim"] = shapes["add_embedding.linear_1.weight"][1]
    return config


def _union(shapes: Shapes, denoiser: Mapping[str, Any]) -> Config:
    config = _unet_like(shapes, denoiser)
    del config["mid_block_type"]
    modes, channels = shapes["task_embedding"]
    return config | {
        "num_control_type": modes,
        "num_trans_channel": channels,
        "num_trans_layer": _count(shapes, "transformer_layes."),
        "num_proj_channel": shapes["spatial_ch_projs.weight"][0],
        "addition_time_embed_dim": shapes["control_add_embedding.linear_1.weight"][1] // modes,
    }


def _flux(shapes: Shapes, denoiser: Mapping[str, Any]) -> Config:
    width, channels = shapes["x_embedder.weight"]
    head = next(shape[0] for name, shape in shapes.items() if name.endswith("attn.norm_q.weight"))
    return {
        "in_channels": channels,
        "num_layers": _count(shapes, "transformer_blocks."),
        "num_single_layers": _count(shapes, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": _has(shapes, "time_text_embed.guidance_embedder."),
        "num_mode": shapes.get("controlnet_mode_embedder.weight", (None,))[0],
        "conditioning_embedding_channels": shapes.get("input_hint_block.conv_out.weight", (None,))[0],
    }


def _qwenimage(shapes: Shapes, denoiser: Mapping[str, Any]) -> Config:
    width, channels = shapes["img_in.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "in_channels": channels,
        "num_layers": _count(shapes, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "extra_condition_channels": shapes["controlnet_x_embedder.weight"][1] - channels,
    }


_READERS: dict[str, Callable[[Shapes, Mapping[str, Any]], Config]] = {
    "ControlNetModel": _unet_like,
    "ControlNetUnionModel": _union,
    "FluxControlNetModel": _flux,
    "QwenImageControlNetModel": _qwenimage,
}
_NOT_SHOWN = {
    "SD3ControlNetModel": ("force_zeros_for_pooled_projection",),
    "ZImageControlNetModel": ("control_layers_places", "add_control_noise_refiner"),
}


def _has(names: Shapes, beginning: str) -> bool:
    return any(name.startswith(beginning) for name in names)


def _count(names: Shapes, beginning: str) -> int:
    """How many numbers follow upon `beginning` in names."""
    return len({name[len(beginning) :].split(".")[0] for name in names if name.startswith(beginning)})

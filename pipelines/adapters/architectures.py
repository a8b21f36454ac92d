"""Which architecture the layers of an adapter file belong to, told by their names and sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_UNET, _JOINT = "SD 1.5 or SDXL", "SD 3, FLUX.1 or Qwen-Image"
_MARKS: Sequence[tuple[str, str]] = (
    ("FLUX.2", r"to_qkv_mlp_proj|(double|single)_stream_modulation|ff(_context)?[._]linear_(in|out)"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)"),
    ("HunyuanVideo", r"double_blocks\.\d+\.(img|txt)_attn_(qkv|proj)$|token_refiner|txt_in[._]individual"),
    ("FLUX.1", r"double_blocks[._]\d+[._](img|txt)_|single_blocks[._]\d+[._](linear|modulation)"),
    ("FLUX.1", r"single_transformer_blocks[._]\d+[._](proj_(mlp|out)|norm[._]linear|attn)"),
    ("SD 3", r"joint_blocks"),
    (_JOINT, r"transformer_blocks[._]\d+[._]attn[._](to_[qkv]|to_out|add_[qkv]_proj|to_add_out)"),
    (
        "Wan",
        r"blocks[._]\d+[._](self_attn|cross_attn)[._]([qkvo]|norm_[qk])|(?<!r_)blocks[._]\d+[._](attn[12]|ffn)[._]",
    ),
    ("Z-Image", r"(noise|context)_refiner[._]\d+|layers[._]\d+[._](attention[._]|feed_forward)"),
    (_UNET, r"(input|output|down|up)_blocks[._]\d+|mid(dle)?_block[._]"),
    ("a text encoder", r"text_encoder|text_model|lora_te"),
    ("LTX-Video, PixArt or another model with attn1 and attn2", r"transformer_blocks[._]\d+[._]attn[12][._]"),
)
"""Name -> what only its layers are called, the most telling first."""
_FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "FLUX.1": (("flux", "Flux"), ("flux2", "flux3", "Flux2", "Flux3")),
    "FLUX.2": (("flux2", "Flux2"), ()),
    "Qwen-Image": (("qwenimage", "QwenImage"), ()),
    "SD 3": (("sd3", "StableDiffusion3"), ()),
    "Wan": (("wan", "Wan"), ()),
    "Z-Image": (("zimage", "ZImage"), ()),
    "HunyuanVideo": (("hunyuan", "Hunyuan"), ()),
}
"""Architecture -> how the names of its families begin, and how they do not."""
_SD3_WIDTHS = (1536, 2432)
_QWEN_WIDTH = 3072
_FLUX_DOUBLE_BLOCKS = 19
_CROSS_ATTENTION = re.compile(r"attn2[._]to_k$")
_UNETS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}
"""Width of the text that a UNet attends to -> the model."""


def architecture_of(shapes: Mapping[str, Sequence[int]]) -> str:
    """The architecture that layers belong to, "" when they are of none that is known.

    Args:
        shapes: layer name -> the shape of its `down` matrix, () where there is none.
    """
    for name, mark in _MARKS:
        if any(re.search(mark, layer) for layer in shapes):
            decide = {_UNET: _unet, _JOINT: _joint}.get(name)
            return (decide(shapes) if decide else "") or name
    return ""


def is_for(architecture: str, family: str, class_name: str) -> bool:
    """Whether an architecture is that of a family of pipelines, or may be."""
    return any(_is_one(name, family, class_name) for name in re.split(", | or ", architecture))


def is_known(family: str, class_name: str) -> bool:
    """Whether it is known which architecture a family of pipelines is."""
    return any(is_for(name, family, class_name) for name in (*_FAMILIES, *_UNETS.values()))


def _is_one(architecture: str, family: str, class_name: str) -> bool:
    if architecture in _UNETS.values():
        diffusion = class_name.startswith("StableDiffusion") and not class_name.startswith("StableDiffusion3")
        return diffusion and ("XL" in class_name) == (architecture == "SDXL")
    beginnings, others = _FAMILIES.get(architecture, ((), ()))
    return family.startswith(beginnings) and not family.startswith(others) if beginnings else False


def kind_of(keys: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> str:
    """What a file is that holds no adapter."""
    if any(key.startswith(("control_model.", "controlnet_", "control_add_", "controlnet")) for key in keys):
        return "a ControlNet"
    if any(
        re.match(r"(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|conv1|down_blocks|up_blocks|mid)", key)
        for key in keys
    ):
        return "a VAE"
    if (
        len(keys) <= 8
        and all(len(shapes.get(key, ())) <= 2 for key in keys)
        and any(re.fullmatch(r"emb_params|clip_[lg]|string_to_param.*|<.+>|t5xxl|qwen.*", key) for key in keys)
    ):
        return "a textual inversion"
    if any(key.startswith(("text_model.", "model.embed_tokens", "encoder.block.", "shared.")) for key in keys):
        return "a text encoder"
    if any("ip_adapter" in key or key.startswith("image_proj") for key in keys):
        return "an IP-Adapter"
    if any(re.search(r"blocks?[._]\d+[._]|layers[._]\d+[._]", key) and key.endswith(".weight") for key in keys):
        return "a whole model or a part of one"
    return ""


def _unet(shapes: Mapping[str, Sequence[int]]) -> str:
    for layer, shape in shapes.items():
        if _CROSS_ATTENTION.search(layer) and len(shape) >= 2:
            return _UNETS.get(int(shape[1]), "")
    return ""


def _joint(shapes: Mapping[str, Sequence[int]]) -> str:
    """Which of the models whose joint attention has the same names: they differ in width and depth."""
    if any(re.search(r"attn2[._]", layer) for layer in shapes):
        return "SD 3"
    blocks = [int(number) for number in re.findall(r"transformer_blocks[._](\d+)[._]", " ".join(shapes))]
    for layer, shape in shapes.items():
        if re.search(r"attn[._](to|add)_[qkv]", layer) and len(shape) >= 2:
            if int(shape[1]) in _SD3_WIDTHS:
                return "SD 3"
            if int(shape[1]) == _QWEN_WIDTH and max(blocks, default=0) >= _FLUX_DOUBLE_BLOCKS:
                return "Qwen-Image"
    return ""

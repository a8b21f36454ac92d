"""Diffusion models that Nunchaku quantized (svdq int4 and fp4): read and run by its own package, where it is installed.

Its files say of themselves, in their metadata, which of its classes reads them, the configuration of diffusers' class
that this one derives from, and how they are quantized (`nunchaku/merge_safetensors.py`). What only the package can do
stays there: its classes' `from_pretrained`, and which cards run which files (`nunchaku.utils`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InputError, MissingDependencyError, ModelFileError, first_line
from ....fallback import is_out_of_memory
from ....safetensors_header import DOWNLOAD_AGAIN, parse_json, read_metadata

if TYPE_CHECKING:
    import torch

    from .component import Component, Config

PACKAGE = "nunchaku"
INSTALL = "the wheel for your PyTorch and Python from https://github.com/nunchaku-tech/nunchaku/releases"
OTHER_COPY = "use a copy in bf16, fp16, fp8, scaled fp8 or GGUF"
_ENDS = (".wscales", ".wtscale", ".qweight")
"""Ends of names in its files."""
_WEIGHTS = {"int4": "int4", "fp4_e2m1_all": "fp4"}
"""How a file calls its weights -> how people do."""
_BASES = {
    "NunchakuFluxTransformer2dModel": "FluxTransformer2DModel",
    "NunchakuFluxTransformer2DModelV2": "FluxTransformer2DModel",
    "NunchakuQwenImageTransformer2DModel": "QwenImageTransformer2DModel",
    "NunchakuZImageTransformer2DModel": "ZImageTransformer2DModel",
}
"""Its classes of the families that are read in parts -> the class of diffusers that each derives from."""


@dataclass(frozen=True)
class Quantized:
    """What a file of Nunchaku's says of itself: its class there, the configuration, and how it is quantized."""

    class_name: str
    config: Mapping[str, Any]
    quantization: Mapping[str, Any]

    @property
    def base(self) -> str:
        """The class of diffusers that its class derives from."""
        return _BASES[self.class_name]

    @property
    def precision(self) -> str:
        """As people call it."""
        return f"Nunchaku svdq {_WEIGHTS[self.quantization['weight']['dtype']]}"

    def problem(self, component: Component, config: Config) -> str:
        """Why its network, which the package builds by this configuration, is not a component; "" where it is."""
        if self.base != component.class_name:
            return f"it is a {self.base}, and {component.title} a {component.class_name}"
        for key, value in config.items():
            own = self.config.get(key, value)
            if (list(own) if isinstance(own, list | tuple) else own) != value:
                return f"{key} is {own} in its configuration and {value} in {component.title}"
        return ""


def is_nunchaku(names: Iterable[str]) -> bool:
    """Whether tensors of such names are in a file of Nunchaku's."""
    return any(name.endswith(_ENDS) for name in names)


def read_quantized(path: Path, name: str) -> tuple[Quantized, dict[str, tuple[int, ...]]]:
    """What a file says of itself, and the tensors that tell a family and its sizes, under the names of the model's own
    code, as its configuration describes them: those in the file are of other shapes.

    Args:
        name: of the input, for errors.

    Raises:
        ModelFileError: it says nothing of it, as those that are not merged, or what is not read.
    """
    metadata = read_metadata(path, name)
    class_name = metadata.get("model_class", "")
    if not class_name or "config" not in metadata or "quantization_config" not in metadata:
        reason = "it is quantized by Nunchaku (svdq) and does not say which model it is, as its older files"
        cure = "use a newer file, or merge it with `python -m nunchaku.merge_safetensors`"
        raise ModelFileError(name, str(path), reason, cure)
    if class_name not in _BASES:
        reason = f"it is quantized by Nunchaku (svdq) for its {class_name[:60]}, which is not read in parts"
        raise ModelFileError(name, str(path), reason, OTHER_COPY)
    try:
        config, quantization = (parse_json(metadata[key].encode()) for key in ("config", "quantization_config"))
        found = Quantized(class_name, config, quantization)
        _ = found.precision
        return found, _SHAPES[found.base](config)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"what it says of its quantization (svdq) cannot be read ({first_line(error, 80)})"
        raise ModelFileError(name, str(path), reason, DOWNLOAD_AGAIN) from error


def require_class(path: Path, name: str, quantized: Quantized) -> Any:
    """The class of the package that reads a file. Raises where the package is missing, or has none."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingDependencyError(PACKAGE, f"{name} = {str(path)!r} (svdq)", INSTALL)
    try:
        return getattr(importlib.import_module(PACKAGE), quantized.class_name)
    except (AttributeError, ImportError, OSError) as error:
        reason = f"the installed package nunchaku gives no {quantized.class_name} ({first_line(error, 100)})"
        raise ModelFileError(name, str(path), reason, f"install {INSTALL}") from error


def check_card(path: Path, quantized: Quantized, device: str, dtype: str) -> None:
    """Refuse a device that does not run a file, as the package itself says.

    Raises:
        InputError: it computes in another precision, or on cards only.
        ModelFileError: the card runs the other kind of its files, or none.
    """
    if not device.startswith("cuda"):
        reason = f"{path.name} is quantized by Nunchaku (svdq), which runs on NVIDIA cards alone"
        raise InputError("device", device, reason, OTHER_COPY)
    utils = importlib.import_module(f"{PACKAGE}.utils")
    try:
        utils.check_hardware_compatibility(dict(quantized.quantization), device)
    except ValueError as error:
        reason = f"this card does not run it ({quantized.precision}): {first_line(error, 160)}"
        raise ModelFileError("diffusion_model", str(path), reason, OTHER_COPY) from error
    turing = utils.is_turing(device)
    if dtype == "float32" or (turing and dtype != "float16"):
        takes = "float16" if turing else "bfloat16 and float16"
        reason = f"{path.name} is quantized by Nunchaku (svdq), which computes in {takes}{' on this card' * turing}"
        raise InputError("dtype", dtype, reason, f"choose {takes.split(' ')[0]}")


def load(path: Path, quantized: Quantized, device: str, dtype: torch.dtype) -> Any:
    """The network, by the package's own reader, on its card."""
    found = require_class(path, "diffusion_model", quantized)
    try:
        return found.from_pretrained(str(path), device=device, torch_dtype=dtype).eval()
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"the package nunchaku does not read it ({type(error).__name__}: {first_line(error, 120)})"
        raise ModelFileError("diffusion_model", str(path), reason, DOWNLOAD_AGAIN) from error


def _flux_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    head = config["attention_head_dim"]
    width, channels = head * config["num_attention_heads"], config["in_channels"]
    shapes = {
        "img_in.weight": (width, channels),
        "txt_in.weight": (width, config["joint_attention_dim"]),
        "vector_in.in_layer.weight": (width, config["pooled_projection_dim"]),
        "final_layer.linear.weight": (config.get("out_channels") or channels, width),
        "double_blocks.0.img_attn.norm.query_norm.scale": (head,),
    }
    if config.get("guidance_embeds"):
        shapes["guidance_in.in_layer.weight"] = (width, 256)
    blocks = {
        f"double_blocks.{number}.img_attn.qkv.weight": (3 * width, width) for number in range(config["num_layers"])
    }
    single = range(config["num_single_layers"])
    return shapes | blocks | {f"single_blocks.{number}.linear1.weight": (7 * width, width) for number in single}


def _qwen_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    head = config["attention_head_dim"]
    width = head * config["num_attention_heads"]
    shapes = {
        "img_in.weight": (width, config["in_channels"]),
        "proj_out.weight": (4 * (config.get("out_channels") or config["in_channels"] // 4), width),
        "txt_norm.weight": (config["joint_attention_dim"],),
        "transformer_blocks.0.attn.add_q_proj.weight": (width, width),
        "transformer_blocks.0.attn.norm_q.weight": (head,),
    }
    if config.get("zero_cond_t"):
        shapes["__index_timestep_zero__"] = ()
    blocks = range(config["num_layers"])
    return shapes | {f"transformer_blocks.{number}.img_mod.1.weight": (6 * width, width) for number in blocks}


def _zimage_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, heads = config["dim"], config["n_heads"]
    qkv = (width + 2 * config["n_kv_heads"] * (width // heads), width)
    names = [f"layers.{number}." for number in range(config["n_layers"])]
    names += [f"noise_refiner.{number}." for number in range(config["n_refiner_layers"])]
    return {
        "cap_embedder.1.weight": (width, config["cap_feat_dim"]),
        "cap_pad_token": (1, width),
        "x_pad_token": (1, width),
        "x_embedder.weight": (width, 4 * config["in_channels"]),
        "layers.0.attention.q_norm.weight": (width // heads,),
        **{f"{name}attention.qkv.weight": qkv for name in names},
    }


_SHAPES = {
    "FluxTransformer2DModel": _flux_shapes,
    "QwenImageTransformer2DModel": _qwen_shapes,
    "ZImageTransformer2DModel": _zimage_shapes,
}

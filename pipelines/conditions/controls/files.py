"""ControlNets in one .safetensors file, as ComfyUI's `controlnet` folder holds them: told, checked, and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InputError, ModelFileError, first_line
from ....safetensors_header import DOWNLOAD_AGAIN
from ...loading.parts.header import is_lora, read_part
from ...loading.parts.read import fill
from ...loading.parts.weights import read_weights
from ...loading.small_files import identity_of, read_json
from ..kinds import ControlNetKey
from .configurations import class_of_tensors, derived, is_original, modes_of, modes_of_tensors, not_shown, rename

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
CURE = "choose a ControlNet's diffusers folder, with its config.json, or its .safetensors file"
_POOLED = ("_shuffle", "_shuffle_fp16")
"""Ends of the names of ControlNets whose output is averaged over the picture, as ComfyUI tells them."""
_OTHERS = {
    "lora_controlnet": "it is a Control-LoRA, which diffusers does not read",
    "double_blocks.0.img_attn.qkv.weight": "it is a Flux ControlNet under its authors' names, which diffusers does not "
    "convert",
    "double_blocks.0.processor.qkv1.weight": "it is an IP-Adapter of Flux, not a ControlNet",
    "transformer_blocks.0.adaLN_modulation.1.weight": "it is an SD 3.5 ControlNet under its authors' names, which "
    "diffusers does not convert",
    "body.0.block1.weight": "it is a T2I-Adapter, not a ControlNet",
    "adapter.body.0.resnets.0.block1.weight": "it is a T2I-Adapter, not a ControlNet",
    "down_blocks.0.motion_modules.0.proj_in.weight": "it is a SparseControlNet, which only AnimateDiff takes",
}
"""A tensor of models that are taken for ControlNets -> what they are."""


def resolve_file(path: Path) -> ControlNetKey:
    """Check a ControlNet in one file by its header alone.

    Raises:
        ModelFileError: damaged, no ControlNet of diffusers, or one whose configuration its tensors do not show.
    """
    part = read_part(path, "controlnet")
    name = class_of_tensors(part.shapes)
    config = config_of_file(path)
    if is_lora(part.shapes):
        cure = "give it to Load LoRA (Diffusers) or --lora, and a ControlNet here"
        raise ModelFileError("controlnet", str(path), "it is a LoRA", cure)
    reason = next((reason for tensor, reason in _OTHERS.items() if tensor in part.shapes), "")
    if reason or not name:
        raise ModelFileError("controlnet", str(path), reason or "its tensors are none of a ControlNet's", CURE)
    missing = () if config is not None else not_shown(name)
    if missing:
        reason = f"it is a {name}, and no tensor of it shows its {' and '.join(missing)}"
        cure = f"put its config.json into the folder {path.with_suffix('')}, or choose its diffusers folder"
        raise ModelFileError("controlnet", str(path), reason, cure)
    if config is None:
        return ControlNetKey(str(path), identity_of((path,)), name, modes_of_tensors(name, part.shapes))
    said = read_json(config)
    return ControlNetKey(str(path), identity_of((path, config)), str(said.get("_class_name", name)), modes_of(said))


def config_of_file(path: Path) -> Path | None:
    """The configuration of a ControlNet's file: in the folder of its name beside it, or in its own folder."""
    own = path.with_suffix("") / CONFIG
    if own.is_file():
        return own
    around = path.parent / CONFIG
    if around.is_file() and "ControlNet" in str(read_json(around).get("_class_name", "")):
        return around
    return None


def configuration(key: ControlNetKey, denoiser: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a control model in a folder or a file.

    Args:
        denoiser: configuration of the model that it steers.

    Raises:
        ModelFileError: a file cannot be read.
    """
    path = Path(key.source)
    if path.is_dir():
        return read_json(path / CONFIG)
    own = config_of_file(path)
    part = read_part(path, "controlnet")
    try:
        config = derived(key.class_name, part.shapes, denoiser) if own is None else read_json(own)
    except (KeyError, IndexError, ValueError, TypeError, StopIteration):
        raise ModelFileError("controlnet", str(path), "tensors of it are missing", DOWNLOAD_AGAIN) from None
    if own is None and path.stem.lower().endswith(_POOLED) and is_original(part.shapes):
        config["global_pool_conditions"] = True
    return config


def check_tensors(key: ControlNetKey, config: Mapping[str, Any]) -> None:
    """Raise InputError where the tensors of a control model's file are others than its class has with `config`."""
    path = Path(key.source)
    reason = _differs(key, json.dumps(config, default=list, sort_keys=True)) if path.is_file() else ""
    if reason:
        whose = "this model" if config_of_file(path) is None else f"its {CONFIG}"
        raise InputError("controlnet", path.name, reason, f"choose one that goes with {whose}, or download it again")


@lru_cache(maxsize=16)
def _differs(key: ControlNetKey, config: str) -> str:
    """What tells a file's tensors from those of its class with this configuration; "" for nothing."""
    import diffusers
    from accelerate import init_empty_weights

    settings = json.loads(config)
    try:
        with init_empty_weights():
            model = getattr(diffusers, key.class_name).from_config(settings)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        return f"diffusers makes no {key.class_name} of what its tensors show ({first_line(error, 80)})"
    shapes = read_part(Path(key.source), "controlnet").shapes
    found = _under_own_names(shapes, settings, key.class_name)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, strange = sorted(wanted.keys() - found), sorted(found.keys() - wanted)
    other = sorted(name for name in wanted.keys() & found if wanted[name] != found[name])
    if missing:
        return f"{len(missing)} tensors of a {key.class_name} are missing in it, the first is {missing[0]}"
    if strange:
        return f"{len(strange)} tensors of it are none of a {key.class_name}'s, the first is {strange[0]}"
    if other:
        name = other[0]
        return f"its {name} is {list(found[name])}, and a {key.class_name}'s {list(wanted[name])}"
    return ""


def _under_own_names(tensors: Mapping[str, Any], config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Tensors or shapes of a file under the names of its class."""
    found = rename(tensors, config, class_name)
    if class_name == "ZImageControlNetModel":
        from diffusers.loaders.single_file_utils import convert_z_image_controlnet_checkpoint_to_diffusers

        found = dict(convert_z_image_controlnet_checkpoint_to_diffusers(found, config))
    return found


def read_file(key: ControlNetKey, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The network of a control model's file, on the CPU."""
    import diffusers

    weights = read_weights(read_part(Path(key.source), "controlnet"), dtype)
    own = getattr(diffusers, key.class_name)
    return fill(own, _under_own_names(weights, config, key.class_name), dict(config), dtype)

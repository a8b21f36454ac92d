"""LoRA files: read one, whatever trainer wrote it, and say which layers of a pipeline it changes and by what.

Only .safetensors files are read. The names that trainers give to layers are translated by diffusers' own converters,
one for every family of pipelines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ModelFileError
from ..optimizations.lora_factors import Factors, fit
from ..optimizations.lora_layers import LoraBranches
from .loading import checkpoints

if TYPE_CHECKING:
    import torch

METADATA_KEY = "lora_adapter_metadata"
"""Where PEFT and diffusers keep the adapter's configuration in a file's header."""

_DOWN_UP = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_OTHER_KINDS = {
    "lokr_": "LoKr",
    "hada_": "LoHa",
    ".oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "diff_b": "full difference",
    "lora_B.bias": "LoRA with biases",
}
"""Part of a key -> the kind of adapter that it belongs to; none of them is a pair of low-rank matrices alone."""
_SHOWN_KEYS = 4

Layers = dict[str, Factors]
"""Layer name -> what is added to it."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that was read and fitted to a pipeline.

    Attributes:
        parts: component ("transformer", "text_encoder", ...) -> its layers; the matrices are on the CPU.
        note: keys that this pipeline has no layer for, in one sentence; "" when there are none.
    """

    parts: Mapping[str, Layers]
    note: str = ""


def stamp(path: str) -> tuple[int, int]:
    """Size and change time: tells whether a file is still the one that was read.

    Raises:
        ModelFileError: it is not there.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ModelFileError("lora", path, f"it cannot be read ({error.strerror})", "choose another file") from error
    return status.st_size, status.st_mtime_ns


def check(path: str) -> None:
    """Check a LoRA file without reading its weights.

    Raises:
        ModelFileError: missing, not a .safetensors file, or damaged.
    """
    stamp(path)
    if Path(path).suffix != ".safetensors":
        pickle = Path(path).suffix in checkpoints.PICKLES
        reason = "it is a pickle, and loading one can run any code it holds" if pickle else "it is no .safetensors file"
        raise ModelFileError("lora", path, reason, checkpoints.CONVERT)
    try:
        checkpoints.read_header(Path(path))
    except ModelFileError as error:
        raise ModelFileError("lora", path, error.reason, "download the file again") from error


def read(path: str, pipeline: Any, branches: Mapping[str, LoraBranches]) -> LoraFile:
    """Read a LoRA file and fit it to a pipeline, which is only looked at.

    Args:
        path: a .safetensors file.
        pipeline: the diffusers pipeline it is for.
        branches: component -> its branches, for every component that can take a LoRA.

    Raises:
        ModelFileError: the file is missing or damaged.
        InputError: it is for another architecture, or no LoRA; the keys that do not match are named.
    """
    check(path)
    tensors, metadata = _contents(path)
    _refuse_other_kinds(path, tensors)
    state, alphas = _translate(path, dict(tensors), pipeline)
    parts: dict[str, Layers] = {}
    unmatched: list[str] = []
    mismatch: list[str] = []
    for component, layers in _pairs(state, alphas, metadata).items():
        for name, factors in layers.items():
            layer_name = _layer_name(name, branches.get(component))
            if layer_name is None:
                unmatched.append(f"{component}.{name}")
                continue
            try:
                fitted = fit(factors, branches[component].original(layer_name))
            except (TypeError, ValueError) as error:
                mismatch.append(f"{component}.{name} ({error})")
                continue
            parts.setdefault(component, {})[layer_name] = fitted
    matched = sum(len(layers) for layers in parts.values())
    if mismatch or len(unmatched) >= max(matched, 1):
        _refuse_architecture(path, pipeline, mismatch, unmatched or list(tensors), matched)
    note = f"{len(unmatched)} of its layers are not in this model: {_some(unmatched)}" if unmatched else ""
    return LoraFile(parts, note)


def _contents(path: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a file, and the adapter configuration in its header ({} when there is none)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            header = (file.metadata() or {}).get(METADATA_KEY)
    except (OSError, SafetensorError) as error:
        raise ModelFileError("lora", path, f"it cannot be read ({error})", "download the file again") from error
    try:
        metadata = json.loads(header) if header else {}
    except ValueError:
        metadata = {}
    return tensors, metadata if isinstance(metadata, dict) else {}


def _refuse_other_kinds(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for mark, kind in _OTHER_KINDS.items():
        key = next((key for key in tensors if mark in key), None)
        if key is not None:
            reason = f"it is a {kind} adapter ({key}), and only plain LoRA files can be used"
            raise InputError("lora", Path(path).name, reason, "choose another file")


def _translate(
    path: str, tensors: dict[str, torch.Tensor], pipeline: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The tensors under diffusers' names, and the alphas that the names came with."""
    if not hasattr(pipeline, "lora_state_dict"):
        kind = type(pipeline).__name__
        raise InputError("lora", Path(path).name, f"{kind} takes no LoRAs", "remove it, or choose another model")
    options: dict[str, Any] = {"return_alphas": True}
    if getattr(pipeline, "unet", None) is not None:
        options["unet_config"] = pipeline.unet.config
    names = list(tensors)
    try:
        result = pipeline.lora_state_dict(tensors, **options)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # The converters are written for files that are what they expect; what they say about others helps nobody.
        _refuse_architecture(path, pipeline, [], names, 0)
    state, alphas = (result[0], result[1] or {}) if isinstance(result, tuple) else (result, {})
    return _modern_names(state, {key.removesuffix(".alpha"): float(value) for key, value in alphas.items()})


def _modern_names(
    state: dict[str, torch.Tensor], alphas: dict[str, float]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """UNets and CLIP encoders come out of the converters under older names, with an alpha per matrix: both as PEFT's.

    Args:
        state: tensors by key.
        alphas: alpha by the key of a matrix or by the name of a layer.

    Returns:
        The tensors, and alpha by the key of the `down` matrix or by the name of the layer.
    """
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    by_tensor = {id(state[key]): alpha for key, alpha in alphas.items() if key in state}
    renamed = {}
    components: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        component, _, rest = key.partition(".")
        components.setdefault(component, {})[rest] = tensor
    for component, layers in components.items():
        if component == "unet":
            layers = convert_unet_state_dict_to_peft(layers)
        elif component.startswith("text_encoder"):
            layers = convert_state_dict_to_peft(convert_state_dict_to_diffusers(layers))
        renamed.update({f"{component}.{name}": tensor for name, tensor in layers.items()})
    found = {key: by_tensor[id(tensor)] for key, tensor in renamed.items() if id(tensor) in by_tensor}
    return renamed, {**alphas, **found}


def _pairs(
    state: Mapping[str, torch.Tensor], alphas: Mapping[str, float], metadata: Mapping[str, Any]
) -> dict[str, Layers]:
    """Component -> layer -> factors, from "component.layer.lora_A.weight" and its other half."""
    found: dict[str, Layers] = {}
    for key, down in state.items():
        for down_end, up_end in _DOWN_UP:
            stem = key.removesuffix(down_end)
            if stem != key and stem + up_end in state:
                component, _, layer = stem.removeprefix("base_model.model.").partition(".")
                alpha = alphas.get(key, alphas.get(stem, _float(state.get(f"{stem}.alpha"))))
                scale = _scale(alpha, int(down.shape[0]), layer, _settings_of(component, metadata))
                found.setdefault(component, {})[layer] = Factors(down, state[stem + up_end], scale)
    return found


def _float(value: torch.Tensor | None) -> float | None:
    return None if value is None else float(value)


def _settings_of(component: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A component's adapter configuration: pipelines write it with the component's name before every key."""
    own = {k.removeprefix(f"{component}."): v for k, v in metadata.items() if k.startswith(f"{component}.")}
    return own or {key: value for key, value in metadata.items() if "." not in key}


def _scale(alpha: float | None, rank: int, layer: str, settings: Mapping[str, Any]) -> float:
    """alpha / rank (alpha / sqrt(rank) for rank-stabilised LoRA); 1 when the file says nothing about alpha."""
    if alpha is None:
        patterns = settings.get("alpha_pattern") or {}
        alpha = next((value for name, value in patterns.items() if layer.endswith(name)), settings.get("lora_alpha"))
    if alpha is None:
        return 1.0
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def _layer_name(name: str, branches: LoraBranches | None) -> str | None:
    """The model's name for a layer; None when there is no such layer. CLIP has lost a level over the versions."""
    if branches is None:
        return None
    for candidate in (name, name.removeprefix("text_model."), f"text_model.{name}"):
        try:
            branches.original(candidate)
        except AttributeError:
            continue
        return candidate
    return None


def _refuse_architecture(path: str, pipeline: Any, mismatch: list[str], unmatched: list[str], matched: int) -> None:
    kind = type(pipeline).__name__
    if mismatch:
        reason = f"its layers do not fit those of {kind}: {_some(mismatch)}"
    else:
        of = f"{len(unmatched)} of its {len(unmatched) + matched} layers" if matched else "its keys"
        reason = f"{of} belong to no layer of {kind}: {_some(unmatched)}"
    raise InputError("lora", Path(path).name, reason, "choose a LoRA that was trained for this model")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return ", ".join(names[:_SHOWN_KEYS]) + more

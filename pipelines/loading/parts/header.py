"""What the header of a part says: tensors under the names of the model's own code, and their precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import ModelFileError, first_line
from ....safetensors_header import DOWNLOAD_AGAIN, SUFFIX, file_size, parse_json, read_header
from ...adapters import keys as adapter_keys
from . import gguf, layouts, nunchaku
from .component import Component

if TYPE_CHECKING:
    import torch

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_BESIDE = ("text_embedding_projection.",)
"""Beginnings of what ComfyUI's files hold beside a diffusion model, whose own tensors alone have the prefix."""
_WHOLE = ("vae.", "audio_vae.", "vocoder.")
"""Likewise, in a whole checkpoint of LTX-2's, from which each component is read."""
_READ_WHOLE = "model.diffusion_model.audio_adaln_single.linear.weight"
_OF_CHECKPOINTS = ("first_stage_model.", "vae.", "conditioner.", "cond_stage_model.", "text_encoders.")
_FP8 = {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2"}
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MARKER = "scaled_fp8"
_EXTRAS = ("spiece_model",)
"""What ComfyUI keeps in a file besides weights: a tokenizer."""
_COUNT = "num_batches_tracked"
"""What a batch norm counts while it is trained: a whole number that nothing reads afterwards."""
_COMFY_QUANT = ".comfy_quant"
_COMFY_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
"""Formats of ComfyUI's quantized layers that are read -> type of their weights."""
_OTHER_COPY = nunchaku.OTHER_COPY
_NOT_SCALED = ("shared.weight", "embed_tokens.weight", "_embedding.weight", "relative_attention_bias.weight")
"""Ends of the names of embeddings, which are looked up and not multiplied: they have no scale."""


_OF_ADAPTERS = {"down", "up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "oft", "boft", "dora_scale"}
"""Parts of an adapter, as `adapters.keys` calls them, that no model has a tensor like."""


class QuantizationNotReadError(ModelFileError):
    """A whole and healthy file, quantized in a way that is not read."""

    __module__ = ModelFileError.__module__


@dataclass(frozen=True)
class Part:
    """One file.

    Attributes:
        shapes: tensor name, without the prefix of ComfyUI's own files -> shape; weights only, or those of a LoRA.
        scales: name of a weight -> name of the tensor that it is multiplied by, in files of scaled fp8.
        precision: as found: "bfloat16", "fp8 e4m3", "scaled fp8 e4m3", with "mixed with" where there are several.
        prefix: what was taken off.
        layouts: name of a weight -> what the file says of its layer, where it is in one of `layouts.LAYOUTS`.
        svdq: what a file of Nunchaku's says of itself; its shapes are those of the model before it was quantized.
        kept: beginnings of names that have no prefix.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    scales: dict[str, str]
    precision: str
    prefix: str
    layouts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    svdq: nunchaku.Quantized | None = None
    kept: tuple[str, ...] = ()

    @property
    def is_gguf(self) -> bool:
        return gguf.is_gguf(self.path)

    def name_in_file(self, name: str) -> str:
        """A tensor's name with what was taken off."""
        return name if name.startswith(self.kept) else self.prefix + name

    def only(self, component: Component) -> Part:
        """What belongs to one component."""
        return self._with(component.own(self.shapes))

    def without(self, component: Component) -> Part:
        """What does not belong to a component."""
        others = component.own(self.shapes)
        return self._with({name: shape for name, shape in self.shapes.items() if name not in others})

    def _with(self, own: Mapping[str, tuple[int, ...]]) -> Part:
        if len(own) == len(self.shapes):
            return self
        scales = {name: scale for name, scale in self.scales.items() if name in own}
        in_layouts = {name: entry for name, entry in self.layouts.items() if name in own}
        return replace(self, shapes=dict(own), scales=scales, layouts=in_layouts)


def read_part(path: Path, name: str) -> Part:
    """Read the header of a part.

    Args:
        name: of the input, for errors.

    Raises:
        ModelFileError: damaged, of another format, a whole checkpoint, in a precision that is not read, or without
            the scale of a weight.
    """
    file_size(path, name)
    if gguf.is_gguf(path):
        return _read_gguf(path, name)
    if path.suffix.lower() != SUFFIX:
        kind = path.suffix or "a file without a suffix"
        raise ModelFileError(name, str(path), f"{kind} is not read as parts", f"choose a {SUFFIX} file")
    entries = read_header(path, name)
    if is_lora(entries):
        return Part(path, {key: tuple(entry["shape"]) for key, entry in entries.items()}, {}, "", "")
    kept = (*_BESIDE, *_WHOLE) if _READ_WHOLE in entries else _BESIDE
    if any(key.startswith(_OF_CHECKPOINTS) and not key.startswith(kept) for key in entries):
        cure = "load it whole: with Load Diffusers Pipeline, or --model"
        raise ModelFileError(name, str(path), "it is a whole checkpoint, not a part", cure)
    prefix = next((each for each in _PREFIXES if any(key.startswith(each) for key in entries)), "")
    if nunchaku.is_nunchaku(entries):
        return _read_nunchaku(path, name)
    ours = (prefix, *kept)
    strange = [key for key in entries if not key.startswith(ours) and not key.endswith((_MARKER, *_EXTRAS))]
    if strange:
        raise ModelFileError(name, str(path), f"it mixes models: {strange[0][:80]!r} lies beside them", DOWNLOAD_AGAIN)
    tensors: dict[str, Any] = {key.removeprefix(prefix): entry for key, entry in entries.items()}
    layers = _quantized_layers(path, name, prefix, tensors)
    _refuse_other_quantizations(path, name, tensors, layers)
    scaled = bool(layers) or _MARKER in tensors or any(key.endswith(".scale_weight") for key in tensors)
    weights = {key: entry for key, entry in tensors.items() if not _is_helper(key)}
    in_blocks = {f"{layer}.weight": entry for layer, entry in layers.items() if entry["format"] in layouts.LAYOUTS}
    in_blocks = {key: entry for key, entry in in_blocks.items() if key in weights}
    if in_blocks and name != "file":
        layouts.require_package(path, name, {entry["format"] for entry in in_blocks.values()})
    shapes = {key: tuple(entry["shape"]) for key, entry in weights.items()}
    scales: dict[str, str] = {}
    for key, entry in weights.items():
        layer = key.removesuffix(".weight") if key.endswith(".weight") else ""
        if key in in_blocks:
            shapes[key] = layouts.check_layer(path, name, layer, layers[layer], tensors)
            continue
        scale = f"{layer}.weight_scale" if layer in layers else f"{layer}.scale_weight"
        if layer in layers and _COMFY_FORMATS[layers[layer]["format"]] != entry["dtype"]:
            reason = f"{key[:80]!r} is {entry['dtype']} in it and said to be {layers[layer]['format']}"
            raise ModelFileError(name, str(path), reason, DOWNLOAD_AGAIN)
        if scale in tensors:
            if tensors[scale]["shape"] not in ([], [1]):
                raise ModelFileError(name, str(path), f"the scale of {key!r} is not one number", "use another copy")
            scales[key] = scale
        elif layer in layers or (scaled and _is_scaled(key, entry)):
            raise ModelFileError(name, str(path), f"the scale of {key[:80]!r} is missing in it", DOWNLOAD_AGAIN)
    sizes: dict[str, int] = {}
    for key, entry in weights.items():
        begin, end = entry["data_offsets"]
        if key in in_blocks:
            kind = layouts.LAYOUTS[in_blocks[key]["format"]].title
        elif entry["dtype"] in _FP8 | _PLAIN:
            kind = ("scaled " if scaled and entry["dtype"] in _FP8 else "") + (_FP8 | _PLAIN)[entry["dtype"]]
        else:
            reason = f"it holds weights of type {entry['dtype']}, which are not read"
            raise ModelFileError(name, str(path), reason, "use a copy in bf16, fp16 or fp8")
        sizes[kind] = sizes.get(kind, 0) + end - begin
    names = sorted(sizes, key=lambda kind: -sizes[kind])
    return Part(path, shapes, scales, " mixed with ".join(names), prefix, in_blocks, kept=kept)


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of such names are a LoRA or another adapter, as none of a model's is called."""
    split = (adapter_keys.split(name) for name in names)
    return any(found[1] in _OF_ADAPTERS for found in split if found)


def _read_gguf(path: Path, name: str) -> Part:
    if name not in ("diffusion_model", "second_expert", "file"):
        cure = f"choose a {SUFFIX} file"
        raise ModelFileError(name, str(path), "GGUF is read for diffusion models only", cure)
    shapes, kinds = gguf.read_gguf_header(path, name)
    prefix = next((each for each in _PREFIXES if any(key.startswith(each) for key in shapes)), "")
    sizes = dict.fromkeys(kinds.values(), 0)
    for key, kind in kinds.items():
        sizes[kind] += math.prod(shapes[key])
    precision = "GGUF " + " mixed with ".join(sorted(sizes, key=lambda kind: -sizes[kind]))
    return Part(path, {key.removeprefix(prefix): shape for key, shape in shapes.items()}, {}, precision, prefix)


def _read_nunchaku(path: Path, name: str) -> Part:
    found, shapes = nunchaku.read_quantized(path, name)
    if name not in ("diffusion_model", "file"):
        reason = "files of Nunchaku's are read as diffusion models only"
        raise ModelFileError(name, str(path), reason, f"choose another {SUFFIX} file")
    nunchaku.require_class(path, name, found)
    return Part(path, shapes, {}, found.precision, "", svdq=found)


def read_extra(part: Part, name: str) -> torch.Tensor | None:
    """A tensor of a file that is no weight; None where it has none of that name."""
    from safetensors import safe_open

    with safe_open(part.path, framework="pt") as file:
        key = next((key for key in (name, part.prefix + name) if key in file.keys()), None)  # noqa: SIM118
        return None if key is None else file.get_tensor(key)


def _quantized_layers(path: Path, name: str, prefix: str, tensors: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The layers that ComfyUI quantized, and what is said of each: in a tensor beside it, or in the file's metadata.

    Raises:
        ModelFileError: a format that is not read, or no format at all.
    """
    from safetensors import safe_open

    marks = [key for key in tensors if key.endswith(_COMFY_QUANT)]
    told: dict[str, Any] = {}
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            for key in marks:
                full = prefix + key if prefix + key in file.keys() else key  # noqa: SIM118
                told[key.removesuffix(_COMFY_QUANT)] = parse_json(file.get_tensor(full).tobytes())
        if "_quantization_metadata" in metadata:
            layers = parse_json(metadata["_quantization_metadata"].encode()).get("layers", {})
            told |= {layer.removeprefix(prefix): entry for layer, entry in layers.items()}
        formats = {layer: entry.get("format") for layer, entry in told.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        reason = f"what it says of its quantized layers (comfy_quant) cannot be read ({first_line(error)})"
        raise ModelFileError(name, str(path), reason, DOWNLOAD_AGAIN) from error
    for layer, kind in formats.items():
        if kind not in {*_COMFY_FORMATS, *layouts.LAYOUTS}:
            reason = f"its layer {layer[:80]!r} is quantized in a way that is not read (comfy_quant {str(kind)[:40]!r})"
            raise QuantizationNotReadError(name, str(path), reason, _OTHER_COPY)
    return told


def _is_scaled(key: str, entry: dict[str, Any]) -> bool:
    return entry["dtype"] in _FP8 and len(entry["shape"]) == 2 and not key.endswith(_NOT_SCALED)


def _is_helper(key: str) -> bool:
    return key in _EXTRAS or key.endswith(
        (
            _COUNT,
            _MARKER,
            ".scale_weight",
            ".scale_input",
            _COMFY_QUANT,
            ".weight_scale",
            ".input_scale",
            *layouts.HELPERS,
        )
    )


def _refuse_other_quantizations(path: Path, name: str, tensors: dict[str, Any], layers: Mapping[str, Any]) -> None:
    if any(key.endswith(".weight_scale") and key.removesuffix(".weight_scale") not in layers for key in tensors):
        reason = "it is quantized in a way that is not read (weight_scale without comfy_quant)"
        raise QuantizationNotReadError(name, str(path), reason, _OTHER_COPY)

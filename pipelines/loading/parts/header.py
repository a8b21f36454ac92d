"""What the header of a part says: tensors under the names of the model's own code, and their precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import ModelFileError
from ....safetensors_header import DOWNLOAD_AGAIN, SUFFIX, read_header

if TYPE_CHECKING:
    import torch

_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_OF_CHECKPOINTS = ("first_stage_model.", "vae.", "conditioner.", "cond_stage_model.", "text_encoders.")
_FP8 = {"F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2"}
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MARKER = "scaled_fp8"
_NOT_SCALED = ("shared.weight", "embed_tokens.weight", "_embedding.weight", "relative_attention_bias.weight")
"""Ends of the names of embeddings, which are looked up and not multiplied: they have no scale."""


@dataclass(frozen=True)
class Part:
    """One file.

    Attributes:
        shapes: tensor name, without the prefix of ComfyUI's own files -> shape; weights only.
        scales: name of a weight -> name of the tensor that it is multiplied by, in files of scaled fp8.
        precision: as found: "bfloat16", "fp8 e4m3", "scaled fp8 e4m3", with "mixed with" where there are several.
        prefix: what was taken off.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    scales: dict[str, str]
    precision: str
    prefix: str


def read_part(path: Path, name: str) -> Part:
    """Read the header of a part.

    Args:
        name: of the input, for errors.

    Raises:
        ModelFileError: damaged, of another format, a whole checkpoint, in a precision that is not read, or without
            the scale of a weight.
    """
    if path.suffix != SUFFIX:
        kind = "GGUF files are" if path.suffix == ".gguf" else f"{path.suffix or 'a file without a suffix'} is"
        raise ModelFileError(name, str(path), f"{kind} not read as parts", f"choose a {SUFFIX} file")
    entries = read_header(path, name)
    if any(key.startswith(_OF_CHECKPOINTS) for key in entries):
        cure = "load it whole: with Load Diffusers Pipeline, or --model"
        raise ModelFileError(name, str(path), "it is a whole checkpoint, not a part", cure)
    prefix = next((each for each in _PREFIXES if any(key.startswith(each) for key in entries)), "")
    strange = [key for key in entries if not key.startswith(prefix) and not key.endswith(_MARKER)]
    if strange:
        raise ModelFileError(name, str(path), f"it mixes models: {strange[0][:80]!r} lies beside them", DOWNLOAD_AGAIN)
    tensors: dict[str, Any] = {key.removeprefix(prefix): entry for key, entry in entries.items()}
    _refuse_other_quantizations(path, name, tensors)
    scaled = _MARKER in tensors or any(key.endswith(".scale_weight") for key in tensors)
    weights = {key: entry for key, entry in tensors.items() if not _is_helper(key)}
    scales: dict[str, str] = {}
    for key, entry in weights.items():
        scale = key.removesuffix("weight") + "scale_weight" if key.endswith(".weight") else ""
        if scale in tensors:
            if tensors[scale]["shape"] not in ([], [1]):
                raise ModelFileError(name, str(path), f"the scale of {key!r} is not one number", "use another copy")
            scales[key] = scale
        elif scaled and entry["dtype"] in _FP8 and len(entry["shape"]) == 2 and not key.endswith(_NOT_SCALED):
            raise ModelFileError(name, str(path), f"the scale of {key[:80]!r} is missing in it", DOWNLOAD_AGAIN)
    kinds = {entry["dtype"]: 0 for entry in weights.values()}
    for entry in weights.values():
        begin, end = entry["data_offsets"]
        kinds[entry["dtype"]] += end - begin
    unread = next((kind for kind in kinds if kind not in _FP8 | _PLAIN), None)
    if unread is not None:
        cure = "use a copy in bf16, fp16 or fp8"
        raise ModelFileError(name, str(path), f"it holds weights of type {unread}, which are not read", cure)
    names = [
        ("scaled " if scaled and kind in _FP8 else "") + (_FP8 | _PLAIN)[kind]
        for kind in sorted(kinds, key=lambda kind: -kinds[kind])
    ]
    shapes = {key: tuple(entry["shape"]) for key, entry in weights.items()}
    return Part(path, shapes, scales, " mixed with ".join(names), prefix)


def read_weights(part: Part, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights of a part on the CPU, in its own type, those with a scale multiplied by it and rounded to `dtype`."""
    import torch
    from safetensors.torch import load_file

    stored = {key.removeprefix(part.prefix): tensor for key, tensor in load_file(part.path).items()}
    weights = {key: stored[key] for key in part.shapes}
    for key, scale in part.scales.items():
        weights[key] = (weights[key].to(torch.float32) * stored[scale].to(torch.float32)).to(dtype)
    return weights


def _is_helper(key: str) -> bool:
    return key.endswith((_MARKER, ".scale_weight", ".scale_input"))


def _refuse_other_quantizations(path: Path, name: str, tensors: dict[str, Any]) -> None:
    for ending, what in ((".comfy_quant", "comfy_quant"), (".wscales", "Nunchaku"), (".weight_scale", "weight_scale")):
        if any(key.endswith(ending) for key in tensors):
            reason = f"it is quantized in a way that is not read ({what})"
            raise ModelFileError(name, str(path), reason, "use a copy in bf16, fp16, fp8 or scaled fp8")

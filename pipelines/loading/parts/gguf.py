"""Diffusion models as GGUF files: read with the package `gguf`, their layers multiplied by diffusers' own code."""

from __future__ import annotations

import importlib.util
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import FastDiffusersError, MissingDependencyError, ModelFileError, first_line
from ....fallback import is_out_of_memory
from ....safetensors_header import DOWNLOAD_AGAIN, file_size

if TYPE_CHECKING:
    import torch

SUFFIX = ".gguf"
INSTALL = "pip install gguf"
_MAGIC = b"GGUF"
_PLAIN = ("F32", "F16")
_SHAPE = "comfy.gguf.orig_shape."
"""Beginning of the settings that hold the shapes of tensors with more dimensions than the format has."""


def is_gguf(path: Path) -> bool:
    """Whether a file says by its name that it is one."""
    return path.suffix.lower() == SUFFIX


def is_language_model(names: Container[str]) -> bool:
    """Whether tensors of such names are a text encoder or another language model, as llama.cpp calls them."""
    return "token_embd.weight" in names


def read_gguf_header(path: Path, name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Tensor name -> shape, and tensor name -> type ("Q4_K"), reading no weights.

    Args:
        name: of the input, for errors.

    Raises:
        MissingDependencyError: the package `gguf` is not installed.
        ModelFileError: damaged, or of a type that diffusers does not multiply.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError("gguf", f"{name} = {str(path)!r}", INSTALL)
    file_size(path, name)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != _MAGIC:
            raise ModelFileError(name, str(path), "it is not a GGUF file, or its beginning is damaged", DOWNLOAD_AGAIN)
        shapes, kinds = _tensors(path)
    except FastDiffusersError:
        raise
    except Exception as error:  # the reader raises anything for a damaged file
        if is_out_of_memory(error):
            raise
        reason = f"it is damaged: a broken or unfinished download ({type(error).__name__}: {first_line(error, 80)})"
        raise ModelFileError(name, str(path), reason, DOWNLOAD_AGAIN) from error
    known = {*_PLAIN, *_supported()}
    for key, kind in kinds.items():
        if kind not in known:
            reason = f"{key[:80]!r} in it is of the GGUF type {kind}, which diffusers does not read"
            raise ModelFileError(name, str(path), reason, f"use a copy in one of: {', '.join(sorted(known))}")
    return shapes, kinds


def _tensors(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    size = path.stat().st_size
    shapes, kinds = {}, {}
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise ValueError(f"{tensor.name[:60]!r} ends after the file")
        shapes[tensor.name] = _own_shape(reader, tensor) or tuple(int(count) for count in reversed(tensor.shape))
        kinds[tensor.name] = tensor.tensor_type.name
    return shapes, kinds


def _own_shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    field = reader.get_field(_SHAPE + tensor.name)
    return () if field is None else tuple(int(field.parts[index][0]) for index in field.data)


def _supported() -> list[str]:
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    return [kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES]


def read_gguf_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The tensors of these names and shapes: quantized ones as diffusers' `GGUFParameter`, copied into memory."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    weights = {}
    for key, value in load_gguf_checkpoint(str(path)).items():
        if key not in shapes:  # another component's
            continue
        if hasattr(value, "quant_type") and tuple(value.quant_shape) == shapes[key]:
            weights[key] = value
        else:  # with more dimensions than the format has it is no linear layer's, and is written out below
            weights[key] = dequantize_gguf_tensor(value).reshape(shapes[key])
    return weights


def fill_gguf(model_class: Any, weights: dict[str, Any], folder: str, dtype: torch.dtype) -> Any:
    """A network of diffusers whose quantized linear layers stay quantized.

    Args:
        weights: under the names of the class; what is quantized and no linear layer's weight is written out.
        folder: holds its `config.json`.
    """
    import torch
    from accelerate import init_empty_weights
    from diffusers import GGUFQuantizationConfig
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    with init_empty_weights():
        empty = model_class.from_config(model_class.load_config(folder))
    linear = {f"{key}.weight" for key, part in empty.named_modules() if isinstance(part, torch.nn.Linear)}
    for key, value in weights.items():
        if hasattr(value, "quant_type") and key not in linear:
            weights[key] = dequantize_gguf_tensor(value).to(dtype)
    config = GGUFQuantizationConfig(compute_dtype=dtype)
    return model_class.from_single_file(
        weights, config=folder, local_files_only=True, torch_dtype=dtype, quantization_config=config
    )

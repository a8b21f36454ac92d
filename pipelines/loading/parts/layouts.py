"""Layers that ComfyUI quantized in blocks or to integers (`comfy_quant`), written out by the package comfy-kitchen.

ComfyUI's `comfy/ops.py` says which tensors a format has, and comfy-kitchen what they stand for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import MissingDependencyError, ModelFileError, first_line
from ....fallback import is_out_of_memory
from ....safetensors_header import DOWNLOAD_AGAIN

if TYPE_CHECKING:
    import torch

INSTALL = "pip install comfy-kitchen"


@dataclass(frozen=True)
class Layout:
    """One format.

    Attributes:
        title: what it is called in a report.
        class_name: in comfy-kitchen.
        weight: type of the weights in a file.
        scales: ends of the names of its scales -> argument of the layout.
        block_type: of the scales of blocks, which a file may hold as plain bytes.
        columns: columns of the weight for each one in the file.
    """

    title: str
    class_name: str
    weight: str
    scales: Mapping[str, str]
    block_type: str = ""
    columns: int = 1


LAYOUTS = {
    "nvfp4": Layout(
        "nvfp4",
        "TensorCoreNVFP4Layout",
        "U8",
        {".weight_scale": "block_scale", ".weight_scale_2": "scale"},
        "float8_e4m3fn",
        columns=2,
    ),
    "mxfp8": Layout("mxfp8", "TensorCoreMXFP8Layout", "F8_E4M3", {".weight_scale": "scale"}, "float8_e8m0fnu"),
    "int8_tensorwise": Layout("int8", "TensorWiseINT8Layout", "I8", {".weight_scale": "scale"}),
}
"""ComfyUI's name of a format -> how it is read."""
HELPERS = (".weight_scale_2", ".pre_quant_scale")
"""Ends of further names beside a weight."""


def check_layer(
    path: Path, name: str, layer: str, entry: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[int, ...]:
    """The shape of the weight of a layer in one of `LAYOUTS`.

    Args:
        name: of the input, for errors.
        entry: what the file says of the layer.
        tensors: tensor name -> {"dtype", "shape"}.

    Raises:
        ModelFileError: the weight is of another type, or a scale is missing.
    """
    layout, weight = LAYOUTS[entry["format"]], tensors[f"{layer}.weight"]
    if weight["dtype"] != layout.weight or len(weight["shape"]) != 2:
        reason = f"{layer[:80]!r} is {weight['dtype']} of shape {weight['shape']} in it and said to be {layout.title}"
        raise ModelFileError(name, str(path), reason, DOWNLOAD_AGAIN)
    if any(layer + end not in tensors for end in layout.scales):
        raise ModelFileError(
            name, str(path), f"the scale of {layer[:80] + '.weight'!r} is missing in it", DOWNLOAD_AGAIN
        )
    if f"{layer}.pre_quant_scale" in tensors:
        reason = f"the inputs of its layer {layer[:80]!r} are scaled (pre_quant_scale), which is not read"
        raise ModelFileError(name, str(path), reason, "use a copy in bf16, fp16, fp8 or scaled fp8")
    rows, columns = weight["shape"]
    return rows, columns * layout.columns


def require_package(path: Path, name: str, formats: set[str]) -> None:
    """Raise where comfy-kitchen is missing, or too old for one of these formats."""
    if importlib.util.find_spec("comfy_kitchen") is None:
        raise MissingDependencyError("comfy-kitchen", f"{name} = {str(path)!r}", INSTALL)
    for kind in sorted(formats):
        try:
            _class(LAYOUTS[kind])
        except (ImportError, AttributeError, KeyError, ValueError) as error:
            reason = f"the installed comfy-kitchen reads no {LAYOUTS[kind].title} ({first_line(error, 80)})"
            raise ModelFileError(name, str(path), reason, f"{INSTALL} --upgrade") from error


def _class(layout: Layout) -> Any:
    import comfy_kitchen.tensor

    return getattr(comfy_kitchen.tensor, layout.class_name)


def write_out(
    path: Path,
    key: str,
    data: torch.Tensor,
    entry: Mapping[str, Any],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
) -> torch.Tensor:
    """A weight as the numbers that it stands for, [rows, columns] in `dtype`.

    Args:
        path: the file, for errors.
        key: name of the weight.
        data: what the file holds for it.
        entry: what the file says of its layer.
        read: gives a tensor of the file by its name.

    Raises:
        ModelFileError: its scales are not of its size.
    """
    try:
        return _written_out(key, data, entry, read, dtype)
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"the scales of {key[:80]!r} do not fit it ({first_line(error, 80)})"
        raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN) from error


def _written_out(
    key: str, data: torch.Tensor, entry: Mapping[str, Any], read: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    import torch

    layout, layer = LAYOUTS[entry["format"]], key.removesuffix(".weight")
    given: dict[str, Any] = {}
    for end, argument in layout.scales.items():
        scale = read(layer + end)
        blocks = layout.block_type and end == ".weight_scale"
        given[argument] = scale.view(getattr(torch, layout.block_type)) if blocks and scale.itemsize == 1 else scale
    if entry["format"] == "int8_tensorwise":
        params = entry.get("params")
        told = {**(params if isinstance(params, dict) else {}), **entry}
        given["scale"] = given["scale"].float()
        if told.get("convrot"):
            given |= {"convrot": True, "convrot_groupsize": int(told.get("convrot_groupsize", 256))}
    shape = (data.shape[0], data.shape[1] * layout.columns)
    found = _class(layout)
    return found.dequantize(data, found.Params(**given, orig_dtype=torch.float32, orig_shape=shape)).to(dtype)

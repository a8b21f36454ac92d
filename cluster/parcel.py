"""Requests, settings and results as one file: their plain values as JSON, their tensors beside it in safetensors.

A process that ComfyUI starts knows the pack by another name than ComfyUI does, and takes no pickle from anybody: only
the classes listed here are written and read.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FastDiffusersError, first_line
from ..optimizations.settings import CompileSettings, OptimizationSettings, PrecisionSettings, TilingSettings
from ..pipelines.conditions import kinds
from ..pipelines.embeddings.given import Embeddings
from ..pipelines.types import LoadKey, LoraSpec, PipelineHandle, SampleRequest, SampleResult
from ..report import OptimizationRecord, OptimizationReport

if TYPE_CHECKING:
    import torch

CLASSES: dict[str, Any] = {
    each.__name__: each
    for each in (
        *(LoadKey, LoraSpec, PipelineHandle, SampleRequest, SampleResult, Embeddings),
        *(OptimizationSettings, CompileSettings, TilingSettings, PrecisionSettings),
        *(each for each in vars(kinds).values() if is_dataclass(each) and isinstance(each, type)),
        *(OptimizationReport, OptimizationRecord),
    )
}
KIND, VALUE = "kind", "value"
TREE = "tree"


class ParcelError(FastDiffusersError):
    """A value that cannot be sent, or a file that holds none."""


def write(path: Path, value: Any) -> None:
    """Write a value: None, numbers, texts, tensors; lists, tuples and dicts of these; and `CLASSES`.

    Raises:
        ParcelError: it holds something else; the text says where.
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_plain(value, tensors, "value"))
    try:
        save_file(tensors, path, metadata={TREE: tree})
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def read(path: Path) -> Any:
    """The value in a file that `write` has written.

    Raises:
        ParcelError: it is none, or not all of it.
        OSError: there is no such file, or it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[TREE])
            # A mapped tensor would change with its file.
            return _value(tree, {name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ParcelError(f"{path.name} is no whole parcel: {first_line(error)}") from None


def _plain(value: Any, tensors: dict[str, torch.Tensor], where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "contiguous"):
        name = f"{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {KIND: "tensor", VALUE: name}
    if isinstance(value, list):
        return [_plain(each, tensors, f"{where}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, tuple):
        return {KIND: "tuple", VALUE: [_plain(each, tensors, f"{where}[{i}]") for i, each in enumerate(value)]}
    if isinstance(value, dict):
        pairs = [[_plain(key, tensors, where), _plain(each, tensors, f"{where}.{key}")] for key, each in value.items()]
        return {KIND: "dict", VALUE: pairs}
    if is_dataclass(value) and CLASSES.get(type(value).__name__) is type(value):
        found = {
            each.name: _plain(getattr(value, each.name), tensors, f"{where}.{each.name}") for each in fields(value)
        }
        return {KIND: type(value).__name__, VALUE: found}
    raise ParcelError(f"{where} cannot be sent to another process: it is a {type(value).__name__}")


def _value(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_value(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    kind, value = tree[KIND], tree[VALUE]
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(_value(each, tensors) for each in value)
    if kind == "dict":
        return {_value(key, tensors): _value(each, tensors) for key, each in value}
    return CLASSES[kind](**{name: _value(each, tensors) for name, each in value.items()})

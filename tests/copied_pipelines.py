"""Copies of the tiny pipelines. Most tests want a fresh one, and building it takes ten times as long as copying it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

Tensors = list[torch.Tensor]


class _Pickler(pickle.Pickler):
    """Writes everything but tensors, which it puts aside."""

    def __init__(self, file: io.BytesIO, tensors: Tensors) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._tensors)
            self._tensors.append(value)
        return self._numbers[id(value)]


class _Unpickler(pickle.Unpickler):
    """Makes a new tensor of each that was put aside; what was one tensor in two places is one again."""

    def __init__(self, file: io.BytesIO, tensors: Tensors) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._made: dict[int, torch.Tensor] = {}

    def persistent_load(self, number: int) -> torch.Tensor:
        if number not in self._made:
            kept = self._tensors[number]
            made = kept.detach().clone()
            if isinstance(kept, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=kept.requires_grad)
            self._made[number] = made
        return self._made[number]


def copying(build: Callable[..., Any]) -> Callable[..., Any]:
    """`build(name, seed=0, dtype=None)`, which makes each pipeline once; every call gives a copy of its own."""

    from fastdiffusers.pipelines.tiny import PIPELINE_CLASSES, identity

    @cache
    def made(
        name: str, seed: int, dtype: torch.dtype | None, _class_name: str | None, _weights: str
    ) -> tuple[bytes, Tensors]:
        file, tensors = io.BytesIO(), Tensors()
        _Pickler(file, tensors).dump(build(name, seed, dtype))
        return file.getvalue(), tensors

    def copied(name: str, seed: int = 0, dtype: torch.dtype | None = None) -> Any:
        written, tensors = made(name, seed, dtype, PIPELINE_CLASSES.get(name), identity(name))
        return _Unpickler(io.BytesIO(written), tensors).load()

    return copied

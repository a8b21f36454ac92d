"""How many bytes the models that a run's conditions bring will take on the device, told before they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...safetensors_header import read_shapes
from ..loading.sources import TINY
from .control import control_models
from .image_prompts.keys import image_prompts_of
from .kinds import ControlCondition

if TYPE_CHECKING:
    import torch

    from ..types import LoadedPipeline, SampleRequest


def is_controlled(request: SampleRequest) -> bool:
    """Whether a control model takes part in a run."""
    return any(isinstance(each, ControlCondition) for each in request.conditions)


def bytes_to_come(loaded: LoadedPipeline, request: SampleRequest) -> int:
    """Bytes of control models and of what reads image prompts that are not on the pipeline's device yet."""
    import torch

    total = 0
    for key in dict.fromkeys(control_models(request)):
        held = loaded.controlnets.get(key)
        total += _numbers(_files(key.source)) * _size(loaded) if held is None else _elsewhere(held, loaded.device)
    for prompted in dict.fromkeys(prompt.model for prompt in image_prompts_of(request)):
        if prompted in loaded.image_prompts:
            models = [part for part in loaded.image_prompts[prompted] if isinstance(part, torch.nn.Module)]
            total += sum(_elsewhere(model, loaded.device) for model in models)
        else:
            encoder = _files(prompted.encoder) if prompted.encoder else []
            total += _numbers([*_files(prompted.source), *encoder]) * _size(loaded)
    return total


def _size(loaded: LoadedPipeline) -> int:
    """Bytes of a number as the pipeline holds it."""
    import torch

    return torch.empty((), dtype=loaded.dtype).element_size()


def _files(source: str) -> list[Path]:
    """The weight files of a model: one file, or those of a folder and its components."""
    if source.startswith(TINY):  # made on the spot, and too small to count
        return []
    path = Path(source)
    return [path] if path.is_file() else sorted({*path.glob("*.safetensors"), *path.glob("*/*.safetensors")})


def _numbers(files: Iterable[Path]) -> int:
    return sum(math.prod(shape) for file in files for shape in read_shapes(file).values())


def _elsewhere(model: Any, device: torch.device) -> int:
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.nbytes for tensor in tensors if tensor.device.type != device.type)

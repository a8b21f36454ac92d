"""Whether the configuration of a component can be that of the weights beside it, before a model is built from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from ...safetensors_header import DOWNLOAD_AGAIN
from .small_files import read_json

_LAYERS = re.compile(
    r"^(num|n)_(\w+_)?(layers?|blocks?|resnets|experts)$|^(\w+_)?layers(_per_block)?$|^(\w+_)?depths?$"
)
"""Names of the settings that count parts of a network: num_layers, layers_per_block, num_hidden_layers, depth. Not of
those that say how wide parts are: block_out_channels, block_size."""
_FEW = 1000
"""Layers that any model may ask for: parts of a text encoder that it does not use have layers without weights."""
_TIMESTEPS = 1_000_000
"""Timesteps that a scheduler makes a table of."""
_LONG = 10_000
"""Items in a list of a configuration; real ones are a few dozen."""


def check_config(path: Path, tensors: int) -> dict[str, Any]:
    """Read a component's `config.json`, and return it.

    Args:
        path: the file.
        tensors: how many tensors the component's files hold. Every layer has at least one.

    Raises:
        ModelFileError: it cannot be read, or asks for a network that would take for ever to build.
    """
    config = read_json(path)
    for name, value in _settings(config):
        if isinstance(value, list) and len(value) > _LONG:
            raise ModelFileError("model", str(path), f"its {name} is a list of {len(value)}", DOWNLOAD_AGAIN)
        if name == "num_train_timesteps" and isinstance(value, int | float) and value > _TIMESTEPS:
            reason = f"its {name} is {value:g}, and no scheduler has more than {_TIMESTEPS}"
            raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN)
        if not _LAYERS.search(name):
            continue
        numbers = value if isinstance(value, list) else [value]
        count = sum(number for number in numbers if isinstance(number, int | float) and number > 0)
        if count > max(_FEW, tensors):
            reason = f"its {name} asks for {count:g} layers, and its weights are {tensors} tensors"
            raise ModelFileError("model", str(path), reason, DOWNLOAD_AGAIN)
    return config


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a configuration and of those within it (a text part, a vision part)."""
    waiting: list[Any] = [config]
    while waiting:
        current = waiting.pop()
        for name, value in current.items():
            if isinstance(value, dict):
                waiting.append(value)
            else:
                yield name, value

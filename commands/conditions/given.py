"""`--argument NAME=VALUE`: an argument of the pipeline's call, as JSON, as text, or from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, first_line
from ...pipelines.loading.small_files import plain_path
from ..media import read_picture

if TYPE_CHECKING:
    import torch

    from ...pipelines.conditions.kinds import ArgumentCondition

TENSORS = ".safetensors"
_AS = "write NAME=VALUE, as in eta=0.5, or NAME=@FILE for a picture or a .safetensors file"


def argument(text: str, read: Callable[..., torch.Tensor] = read_picture) -> ArgumentCondition:
    """One `--argument` option. A value that is no JSON is text.

    Raises:
        InputError: it has no name, or its file cannot be read.
    """
    from ...pipelines.conditions.arguments.names import json_or_text
    from ...pipelines.conditions.kinds import ArgumentCondition

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError("argument", text, "it is no NAME=VALUE", _AS)
    file = argument_file(text)
    if file is None:
        return ArgumentCondition(name, json_or_text(name, value))
    if file.suffix.lower() == TENSORS:
        return ArgumentCondition(name, read_tensor(file, name))
    return ArgumentCondition(name, image=read(file, f"argument {name}", alpha=True)[None])


def argument_file(text: str) -> Path | None:
    """The file that an `--argument` option names, None for a value of its own. Raises InputError for no path at all."""
    name, _, value = text.partition("=")
    return plain_path(f"argument {name}", value[1:]) if value.startswith("@") else None


def absolute_argument(text: str) -> str:
    """An `--argument` option that holds in any working folder."""
    name, _, value = text.partition("=")
    return f"{name}=@{Path(value[1:]).expanduser().absolute()}" if value.startswith("@") and value[1:] else text


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """The tensor of that name in a .safetensors file, or the only one in it.

    Raises:
        InputError: there is no such file, or no such tensor in it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            names = list(held.keys())
            if name not in names and len(names) != 1:
                reason = f"it holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
                raise InputError(f"argument {name}", str(file), reason, f"save the one that is meant as {name}")
            found: torch.Tensor = held.get_tensor(name if name in names else names[0]).clone()
            return found
    except (OSError, SafetensorError) as error:
        raise InputError(f"argument {name}", str(file), first_line(error), "check the file") from None

"""What a file may be, and whether it is the component that it is given as: its configuration and its network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....errors import MissingDependencyError, ModelFileError
from ....fallback import is_out_of_memory
from ....safetensors_header import read_header
from .. import checkpoints
from ..small_files import read_json
from .component import DIFFUSION_MODEL, UNREADABLE, Component, Config, PartsFamily
from .gguf import is_gguf
from .header import Part, QuantizationNotReadError, is_lora, read_part
from .models import FAMILIES, kind_of_shapes
from .nunchaku import is_nunchaku


def beside(diffusion_model: Path) -> Path:
    """The folder of the same name beside a diffusion model: its configurations and tokenizers go before the pack's."""
    return diffusion_model.with_suffix("")


def configuration(slot: str, component: Component, part: Part, diffusion_model: Path, *joined: Part) -> Config:
    """The configuration of a component: of the folder beside the diffusion model, else the published one.

    Args:
        joined: files that hold more of it.
    """
    shapes = dict(part.only(component).shapes)
    for more in joined:
        shapes |= more.only(component).shapes
    own = beside(diffusion_model) / slot / "config.json"
    return component.fitted(read_json(own), shapes) if own.is_file() else component.config(shapes)


@contextmanager
def without_a_warning() -> Iterator[None]:
    """While the block runs, layers without weights are made without a word: what they would do is done elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        yield


def empty_network(component: Component, config: Config) -> Any:
    """The network that a configuration describes, without memory."""
    import torch

    found = component.network
    with torch.device("meta"), without_a_warning():
        if component.library == "transformers":
            return found(found.config_class.from_dict(config))
        return found.from_config(config)


@lru_cache(maxsize=64)
def _problem(family: int, slot: str, path: str, stamp: str, diffusion_model: str, name: str) -> str:
    """Why a file is not the component `slot`, "" where it is. `family` is a number in the table, `stamp` is for the
    cache."""
    import torch

    part = read_part(Path(path), name)
    if is_lora(part.shapes):
        return "it is a LoRA"
    component = FAMILIES[family].components[slot]
    part = part.only(component)
    if part.svdq is not None:
        return part.svdq.problem(component, configuration(slot, component, part, Path(diffusion_model)))
    try:
        config = configuration(slot, component, part, Path(diffusion_model))
        weights = {key: torch.empty(shape, device="meta") for key, shape in part.shapes.items()}
        held = {key: tuple(value.shape) for key, value in component.rename(weights, config).items()}
        wanted = {key: tuple(value.shape) for key, value in empty_network(component, config).state_dict().items()}
    except ModelFileError:
        raise
    except Exception as error:  # the converters raise anything for the tensors of another model
        if is_out_of_memory(error):
            raise
        return f"its tensors are another model's ({type(error).__name__}: {str(error)[:80]})"
    for key in (*wanted, *held):
        if wanted.get(key) != held.get(key):
            return f"{key!r} is {held.get(key, 'missing')} in it and {wanted.get(key, 'not in the model')} in the model"
    return ""


def problem_of(family: PartsFamily, slot: str, file: Path, chosen: Path, name: str) -> str:
    """Why a file is not the component `slot` of the diffusion model `chosen`, "" where it is.

    Raises:
        ModelFileError: it is damaged.
    """
    stamp = checkpoints.stamp(file) + str(beside_files(chosen))
    return _problem(FAMILIES.index(family), slot, str(file), stamp, str(chosen), name)


def beside_files(diffusion_model: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of what lies in the folder of the same name."""
    files = sorted(path for path in beside(diffusion_model).glob("*/*") if path.suffix in (".json", ".txt", ".model"))
    return [(file.parent.name + "/" + file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def kind_of_part(file: Path) -> str:
    """What a file may be: `DIFFUSION_MODEL`, `TEXT_ENCODER` or `VAE` of any family; `UNREADABLE` where its header
    cannot be read, "" for any other file."""
    return _kind(str(file), checkpoints.stamp(file)) if file.is_file() else ""


@lru_cache(maxsize=4096)
def _kind(path: str, stamp: str) -> str:
    """`stamp` is for the cache."""
    file = Path(path)
    try:
        part = read_part(file, "file")
    except QuantizationNotReadError:
        return UNREADABLE
    except (ModelFileError, MissingDependencyError):
        return UNREADABLE if is_gguf(file) or _is_damaged(file) or is_nunchaku(read_header(file)) else ""
    kind = kind_of_shapes(part.shapes, file.stem)
    return kind if kind in (DIFFUSION_MODEL, UNREADABLE) or not part.is_gguf else ""


def _is_damaged(file: Path) -> bool:
    try:
        read_header(file)
    except ModelFileError:
        return True
    return False

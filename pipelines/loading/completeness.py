"""Whether a component's files hold all of its weights, counted on a copy of the network that takes no memory.

diffusers and transformers fill what a file lacks with random numbers and only log it. A file of another model, or one
with half of its tensors, would load and give noise, and sizes in a damaged configuration would be allocated as asked.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from ...fallback import describe, is_out_of_memory
from ...safetensors_header import DOWNLOAD_AGAIN
from ..modular.index import component_folder
from .checkpoints import CheckedFolder
from .components import components, find_class
from .small_files import read_json

log = logging.getLogger(__name__)

_SLACK = 0.01
"""Part of a text encoder's weights that its files may lack: some are computed, and not stored."""

_UNUSED = r"(^|\.)lm_head\."
"""Names of weights that no pipeline uses: text encoders give their hidden states."""


def check_complete(folder: Path, checked: CheckedFolder) -> None:
    """Check every component of diffusers and transformers that is not quantized.

    Args:
        folder: a diffusers folder.
        checked: what `check_folder` found in it.

    Raises:
        ModelFileError: the files of a component hold fewer weights than its configuration asks for.
    """
    for name, (library, class_name) in components(checked.index).items():
        if name in checked.headers:
            _check_component(component_folder(folder, checked.index, name), library, class_name, checked.headers[name])


def check_read(pipeline: Any, source: str) -> None:
    """Raise ModelFileError when a weight of a loaded pipeline has no content: its file changed after it was checked."""
    import torch

    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            empty = [name for name, tensor in module.named_parameters() if tensor.is_meta]
            if empty:
                reason = f"{len(empty)} tensors of its {part} are in none of its files, {empty[0]} for one"
                raise ModelFileError("model", source, reason, DOWNLOAD_AGAIN)


def _check_component(folder: Path, library: str, class_name: str, stored: dict[str, Any]) -> None:
    import diffusers

    config_path = folder / "config.json"
    if not config_path.is_file() or (folder / "quantization_config.json").exists():
        return
    config = read_json(config_path)
    if config.get("quantization_config"):
        return
    if not all(entry["dtype"].startswith(("F", "BF")) for entry in stored.values()):  # packed: counted otherwise
        return
    network = _empty_network(folder, library, class_name, config)
    if network is None:
        return
    absent = re.compile("|".join((*(getattr(network, "_keys_to_ignore_on_load_missing", None) or ()), _UNUSED)))
    wanted = {name: tuple(each.shape) for name, each in network.named_parameters() if not absent.search(name)}
    asked = sum(math.prod(shape) for shape in wanted.values())
    held = sum(math.prod(entry["shape"]) for entry in stored.values())
    lacking = {name: shape for name, shape in wanted.items() if name not in stored}
    if isinstance(network, diffusers.ModelMixin):
        # Names are as they are, but for a few that were renamed over the years.
        strange = sum(math.prod(shape) for shape in lacking.values()) > asked / 2
        complete = held >= asked and not strange
    else:  # names may be those of an older version or of a part
        complete = held >= asked * (1 - _SLACK)
    if complete:
        return
    missing = f": {len(lacking)} tensors are missing, {next(iter(lacking))} for one" if lacking else ""
    reason = f"its files hold {held} numbers, and its config.json asks for {asked}{missing}"
    raise ModelFileError("model", str(folder), reason, DOWNLOAD_AGAIN)


def _empty_network(folder: Path, library: str, class_name: str, config: dict[str, Any]) -> Any:
    """The network that a configuration describes, without memory; None where this version cannot build it so.

    What cannot be built is for the load to complain about: it knows more ways to read a configuration.
    """
    import diffusers
    import torch
    import transformers

    found: Any = find_class(library, class_name)
    if found is None:
        return None
    try:
        if issubclass(found, diffusers.ModelMixin):
            with torch.device("meta"):
                return found.from_config(config)
        if issubclass(found, transformers.PreTrainedModel):
            settings = found.config_class.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                network = found(settings)
            network.tie_weights()
            return network
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.debug("%s is not counted: %s", folder, describe(error))
    return None

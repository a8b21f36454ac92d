"""A model in parts as a diffusers folder: one component after the other, so that the largest has to fit in memory."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import ModelFileError
from ....fallback import Signals
from .component import Component, Config, PartsFamily, input_of
from .header import Part, read_part
from .nunchaku import OTHER_COPY
from .plan import beside, configuration, empty_network, family_of_part
from .read import fill, read_component, read_scheduler, read_tokenizer
from .weights import read_weights

if TYPE_CHECKING:
    import torch


def write_parts(
    parts: tuple[tuple[str, str], ...], comfyui: str, dtype: torch.dtype, folder: Path, callbacks: Signals
) -> dict[str, str]:
    """Write a diffusers folder of what `locate_parts` found.

    Args:
        comfyui: folder of a ComfyUI, whose tokenizers are used; "" for none.
        dtype: of the weights that are written: whatever is quantized in the files is written out.
        folder: empty.
        callbacks: stage "save", one tick per component.

    Returns:
        of each component the precision that its file has, and what became of it.

    Raises:
        ModelFileError: there is no tokenizer, or a file cannot be read.
    """
    import diffusers

    files = {slot: Path(path) for slot, path in parts}
    chosen = next(iter(files.values()))
    family = family_of_part(chosen)
    made: dict[str, Any] = {}
    for name, tokenizer in family.tokenizers.items():
        made[name] = read_tokenizer(name, tokenizer, chosen, comfyui, files)
        made[name].save_pretrained(folder / name)
    written = {}
    for number, (slot, path) in enumerate(files.items()):
        callbacks.tick("save", number, len(files), slot)
        component, part, config = _described(family, slot, path, chosen)
        model = _read(component, part, config, dtype)
        model.save_pretrained(folder / slot)
        name = str(dtype).removeprefix("torch.")
        written[slot] = part.precision if part.precision == name else f"{part.precision}, written as {name}"
        del model
        gc.collect()
        made[slot] = empty_network(component, config)  # for the index alone
    callbacks.tick("save", len(files), len(files))
    made["scheduler"] = read_scheduler(family, chosen)
    made["scheduler"].save_pretrained(folder / "scheduler")
    if family.more:
        more = family.more(made, beside(chosen))
        for name, value in more.items():
            value.save_pretrained(folder / name)
        made |= more
    settings = family.settings_with(files)
    getattr(diffusers, family.pipeline)(**made, **settings).save_config(folder)
    return written


def bytes_of_parts(parts: tuple[tuple[str, str], ...], dtype: torch.dtype) -> int:
    """Bytes of the weights of a model in parts in one precision."""
    files = {slot: Path(path) for slot, path in parts}
    numbers = sum(math.prod(shape) for path in files.values() for shape in read_part(path, "file").shapes.values())
    return numbers * dtype.itemsize


def _described(family: PartsFamily, slot: str, path: Path, chosen: Path) -> tuple[Component, Part, Config]:
    part = read_part(path, input_of(slot))
    component = family.components[slot]
    return component, part, configuration(slot, component, part, chosen)


def _read(component: Component, part: Part, config: Config, dtype: torch.dtype) -> Any:
    """A component with plain weights: what GGUF quantized is written out, as it is where it runs."""
    if part.svdq is not None:
        reason = "it is quantized by Nunchaku (svdq), whose weights only its package's layers read"
        raise ModelFileError("diffusion_model", str(part.path), reason, OTHER_COPY)
    if not part.is_gguf:
        return read_component(component, part, config, dtype)
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    weights = component.rename(read_weights(part, dtype), config)
    for key in list(weights):
        if hasattr(weights[key], "quant_type"):
            weights[key] = dequantize_gguf_tensor(weights[key]).to(dtype)
    return fill(component.class_name, weights, config, dtype)

"""A model in parts as a diffusers folder: one component after the other, so that the largest has to fit in memory."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import ModelFileError
from ....fallback import Signals
from ....optimizations.components import is_modular_class
from ...modular.build import assemble
from ...modular.save import save_index
from .component import Component, Config
from .fit import beside, configuration, empty_network
from .header import Part, read_part
from .nunchaku import OTHER_COPY
from .plan import family_of_part
from .read import fill, read_component, read_file, read_scheduler, read_tokenizer, written_out
from .weights import read_weights

if TYPE_CHECKING:
    import torch


def write_parts(
    parts: tuple[tuple[str, str], ...],
    comfyui: str,
    dtype: torch.dtype,
    folder: Path,
    output: Path,
    callbacks: Signals,
) -> dict[str, str]:
    """Write a diffusers folder of what `locate_parts` found.

    Args:
        comfyui: folder of a ComfyUI, whose tokenizers are used; "" for none.
        dtype: of the weights that are written: whatever is quantized in the files is written out.
        folder: empty.
        output: what it is going to be called.
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
    opened = {slot: read_file(slot, path, chosen) for slot, path in files.items()}
    for number, (slot, part) in enumerate(opened.items()):
        callbacks.tick("save", number, len(files), slot)
        if slot in family.joined:
            continue
        component = family.components[slot]
        joined = [opened[other] for other, whole in family.joined.items() if whole == slot and other in files]
        config = configuration(slot, component, part, chosen, *joined)
        model = _read(component, part, config, dtype, joined)
        model.save_pretrained(folder / slot)
        name = str(dtype).removeprefix("torch.")
        written[slot] = part.precision if part.precision == name else f"{part.precision}, written as {name}"
        del model
        gc.collect()
        made[slot] = empty_network(component, config)  # for the index alone
    callbacks.tick("save", len(files), len(files))
    made["scheduler"] = read_scheduler(family, chosen)
    if made["scheduler"] is not None:
        made["scheduler"].save_pretrained(folder / "scheduler")
    if family.more:
        more = family.more(made, beside(chosen))
        for name, value in more.items():
            value.save_pretrained(folder / name)
        made |= more
    made |= family.settings_with(files)
    pipeline_class = getattr(diffusers, family.pipeline)
    if is_modular_class(pipeline_class):
        save_index(assemble(pipeline_class, made), folder, output)
    else:
        pipeline_class(**made).save_config(folder)
    return written


def bytes_of_parts(parts: tuple[tuple[str, str], ...], dtype: torch.dtype) -> int:
    """Bytes of the weights of a model in parts in one precision."""
    files = {slot: Path(path) for slot, path in parts}
    if not files:  # one of the embedded pipelines
        return 0
    family = family_of_part(next(iter(files.values())))
    held = [read_part(path, "file").only(family.components[slot]).shapes for slot, path in files.items()]
    return sum(math.prod(shape) for shapes in held for shape in shapes.values()) * dtype.itemsize


def _read(component: Component, part: Part, config: Config, dtype: torch.dtype, joined: Sequence[Part] = ()) -> Any:
    """A component with plain weights: what GGUF quantized is written out, as it is where it runs."""
    if part.svdq is not None:
        reason = "it is quantized by Nunchaku (svdq), whose weights only its package's layers read"
        raise ModelFileError("diffusion_model", str(part.path), reason, OTHER_COPY)
    if not part.is_gguf:
        return read_component(component, part, config, dtype, joined=joined)
    weights = component.rename(read_weights(part.only(component), dtype), config)
    written_out(weights, dtype)
    return fill(component.network, weights, config, dtype)

"""Write a model that was chosen as parts, or as one file, as a diffusers folder.

The folder appears under its name when it is complete, and not at all otherwise.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ....callbacks import SILENT, Callbacks
from ....errors import InputError
from ....fallback import Signals
from ....links import link_target
from ....optimizations.components import is_modular_class
from ....optimizations.quantization.schemes import NONE as NOT_QUANTIZED
from ...modular.save import save_index
from .. import loader
from ..partial_folder import complete_or_absent, sweep
from ..parts import MODEL_INPUT, bytes_of_parts, left_out, write_parts
from ..progress import reading_errors
from ..sources import TINY

if TYPE_CHECKING:
    import torch

    from ...types import LoadKey


@dataclass(frozen=True)
class SavedFolder:
    """What was written.

    Attributes:
        folder: the new diffusers folder.
        components: of each component with a file of its own, the precision of that file and what became of it.
        bytes: of the weights.
    """

    folder: Path
    components: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


def save_folder(key: LoadKey, output: Path, callbacks: Callbacks = SILENT) -> SavedFolder:
    """Write the model of a resolved key as a diffusers folder, in the key's dtype.

    Args:
        key: of a model in parts, of one file with everything, or of an embedded tiny pipeline.
        output: the folder to write; it must not exist yet, or be empty.
        callbacks: stage "save", one tick per component; a cancel takes effect between two.

    Raises:
        InputError: it is a diffusers folder already, something of it was left out, or the output is in the way or does
            not fit on the disk.
        ModelFileError: a file cannot be read.
    """
    import torch

    _check_source(key)
    dtype: torch.dtype = getattr(torch, key.dtype)
    _check_output(output, bytes_of_parts(key.parts, dtype))
    sweep(link_target(output).parent)
    described: dict[str, str] = {}
    with complete_or_absent(output) as partial:
        signals = Signals(callbacks)
        if key.parts:
            with reading_errors(Path(key.source), signals):
                described = write_parts(key.parts, key.comfyui, dtype, partial, output, signals)
        else:
            pipeline = loader.load(key, callbacks).pipeline
            signals.tick("save", 0, 1, Path(key.source).name)
            if is_modular_class(type(pipeline)):
                pipeline.save_pretrained(str(partial), overwrite_modular_index=True)
                save_index(pipeline, partial, output)
            else:
                pipeline.save_pretrained(partial)
            signals.tick("save", 1, 1)
    size = sum(file.stat().st_size for file in output.glob("*/*.safetensors"))
    return SavedFolder(output, described, size)


def _check_source(key: LoadKey) -> None:
    path, name = Path(key.source), MODEL_INPUT if key.parts else "model"
    if key.revision or (not key.parts and not key.source.startswith(TINY) and path.is_dir()):
        cure = "use it as it is, or Quantize Model for a smaller copy"
        raise InputError(name, key.source, "it is a diffusers folder already", cure)
    if key.quantization != NOT_QUANTIZED:
        reason = "it is quantized while it loads, and a folder of plain weights is written"
        raise InputError("quantization", key.quantization, reason, "set it to none, and quantize the folder afterwards")
    for component in left_out(key.parts) if key.parts else ():
        reason = f"it was chosen without its {component}, and a folder holds all of a model"
        raise InputError(name, key.source, reason, "choose one in its loader")


def _check_output(output: Path, needed: int) -> None:
    target = link_target(output)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError("output", str(output), "it exists already and is not an empty folder", "choose another name")
    if not target.parent.is_dir():
        raise InputError("output", str(output), "its folder does not exist", "create the folder first")
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        reason = f"it needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free there"
        raise InputError("output", str(output), reason, "choose another disk or free some space")

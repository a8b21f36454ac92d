"""Write a quantized copy of a diffusers folder: smaller on disk, faster to load, and loadable by plain diffusers.

The components are quantized one after the other, so that the largest of them has to fit in memory, not the pipeline.
The copy appears under its name when it is complete, and not at all otherwise.
"""

from __future__ import annotations

import gc
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks
from ...errors import InputError, ModelFileError
from ...links import link_target
from ...optimizations.quantization.layers import describe_model
from ...optimizations.quantization.quantize import sdnq_config
from ...optimizations.quantization.schemes import quantizable
from ...optimizations.quantization.sdnq import import_sdnq_safely
from .. import tiny
from ..modular.index import MODULAR_INDEX, folders
from . import checkpoints, loader
from .checkpoints import CheckedFolder
from .completeness import check_complete
from .components import components
from .devices import dtype_name
from .partial_folder import complete_or_absent, sweep
from .progress import reading_errors
from .sources import TINY, folder_of

if TYPE_CHECKING:
    import torch

MAX_RANK = 1024
WEIGHTS_DTYPES = ("int8", "uint4", "int6", "uint5", "uint3", "float8_e4m3fn")
"""Types to offer. SDNQ knows more, and `quantize_folder` takes any of them."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float32"}
_TINY_MINIMUM = 1024
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that mean a device on Windows, with any suffix."""
_LONGEST_NAME = 200
"""Bytes of a folder's name; file systems allow 255, and the folder has another name while it is written."""
_NEEDED_FOR = "Writing a quantized folder"


@dataclass(frozen=True)
class QuantizedCopy:
    """What was written.

    Attributes:
        folder: the new diffusers folder.
        components: what is quantized in it: {"transformer": "uint4 in 57 of 60 layers"}.
        bytes_before, bytes_after: size of all weight files of the original and of the copy.
    """

    folder: Path
    components: dict[str, str]
    bytes_before: int
    bytes_after: int


def quantize_folder(
    source: str,
    weights_dtype: str,
    output: Path,
    *,
    revision: str = "",
    device: str = "auto",
    svd_rank: int = 0,
    quantized_matmul: bool = False,
    minimum_numel: int | None = None,
    library: Path | None = None,
    callbacks: Callbacks = SILENT,
) -> QuantizedCopy:
    """Quantize a pipeline with SDNQ and save it as a diffusers folder.

    Denoisers and large text encoders are quantized; VAE, CLIP encoders, tokenizers and schedulers are copied.

    Args:
        source: diffusers folder, Hub id, or "tiny:<family>".
        weights_dtype: "int8", "uint4" or another type of SDNQ's.
        output: the folder to write; it must not exist yet, or be empty.
        revision: Hub commit or branch.
        device: where the quantizing is computed; "auto" is the first accelerator.
        svd_rank: rank of a high-precision correction beside the quantized weights, 0 for none. It takes longer, needs
            a little more memory and loses less.
        quantized_matmul: whether the copy says that it multiplies in the quantized type.
        minimum_numel: smallest weight that is quantized, in elements; None leaves SDNQ's default.
        library: folder of models in which the download of a Hub id is kept; None is the Hub's own cache.
        callbacks: stage "quantize", one tick per component; a cancel takes effect between two.

    Raises:
        InputError: the source is quantized already, or the output is in the way or does not fit on the disk.
        ModelFileError: the source cannot be read.
        MissingDependencyError: SDNQ is not installed.
    """
    if not 0 <= svd_rank <= MAX_RANK:
        raise InputError("svd_rank", svd_rank, f"it must be between 0 and {MAX_RANK}", "use 0 for none, or 32")
    weights_dtype = dtype_name(weights_dtype)
    with import_sdnq_safely(_NEEDED_FOR):
        sdnq_config(weights_dtype)  # an unknown type is said before anything is downloaded
        with _source_folder(source, revision, device, library, callbacks) as (folder, target_device):
            _check_output(folder, output)
            sweep(link_target(output).parent)
            checked = checkpoints.check_folder(folder)
            check_complete(folder, checked)
            _check_beside(folder, checked)
            minimum = _TINY_MINIMUM if source.startswith(TINY) and minimum_numel is None else minimum_numel
            options: dict[str, Any] = {
                "device": target_device,
                "svd_rank": svd_rank,
                "quantized_matmul": quantized_matmul,
                "minimum_numel": minimum,
            }
            chosen = quantizable(components(checked.index), "sdnq-int8")
            if not chosen:
                raise ModelFileError(
                    "model", source, "it has no component that can be quantized", "choose another model"
                )
            _check_disk(folder, output, chosen, weights_dtype)
            described = {}
            with complete_or_absent(output) as partial:
                names = list(components(checked.index))
                for number, name in enumerate(names):
                    callbacks.tick("quantize", number, len(names), name)
                    if name in chosen:
                        config = sdnq_config(weights_dtype, **options)
                        described[name] = _quantize_component(folder, partial, name, checked, config)
                    else:
                        shutil.copytree(folder / name, partial / name, ignore_dangling_symlinks=True)
                callbacks.tick("quantize", len(names), len(names))
                _copy_files(folder, partial)
                before, after = _weight_bytes(folder), _weight_bytes(partial)
    return QuantizedCopy(output, described, before, after)


def copy_name(source: str, weights_dtype: str, name: str = "") -> str:
    """The name of the folder that a copy is written to, below a folder of models.

    Args:
        source: what is quantized: a path of this or another system, a Hub id, or "tiny:<family>".
        name: what a person chose; "" is the model's own name with the type added.

    Raises:
        InputError: it is not the name of one folder on every system.
    """
    name = name.strip()
    if not name:
        model = re.split(r"[\\/]", source.rstrip("\\/"))[-1].replace(":", "-").strip(". ")
        name = f"{model[:100] or 'model'}-sdnq-{weights_dtype}"
    return check_name(name)


def check_name(name: str) -> str:
    """The name of a new folder of a model. Raises InputError for what is not the name of one folder everywhere."""
    # A workflow from elsewhere must not be able to write anywhere else.
    odd = name.startswith(".") or name.endswith(".") or re.search(r'[\\/:*?"<>|\x00-\x1f\x7f\ud800-\udfff]', name)
    if odd or _RESERVED.fullmatch(name) or len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise InputError("name", name, "it must be the name of one folder", "use letters, digits, '-' and '_'")
    return name


@contextmanager
def _source_folder(
    source: str, revision: str, device: str, library: Path | None, callbacks: Callbacks
) -> Iterator[tuple[Path, str]]:
    """The folder to read and the device to compute on; an embedded tiny pipeline is written out first."""
    options: dict[str, Any] = {"revision": revision, "device": device, "library": library, "callbacks": callbacks}
    try:
        key = loader.resolve(source, quantization="sdnq-int8", **options)
    except InputError as error:
        if error.name != "quantization":
            raise
        raise InputError("model", source, error.reason, "choose the model that it was made from") from None
    folder = folder_of(key)
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield tiny.save(source.removeprefix(TINY), temporary), key.device
    elif folder.is_file():
        raise ModelFileError("model", source, "it is a single file, not a diffusers folder", "use the model's folder")
    else:
        yield folder, key.device


def _check_beside(folder: Path, checked: CheckedFolder) -> None:
    """A copy has every component in a subfolder of its name, and the index as it was."""
    elsewhere = [name for name, place in folders(folder, checked.index).items() if place != folder / name]
    if elsewhere:
        reason = f"its {', '.join(elsewhere)} is in another folder or repository"
        raise InputError("model", str(folder), reason, "use a model whose components are all in its own folder")


def _check_output(folder: Path, output: Path) -> None:
    target = link_target(output)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError("output", str(output), "it exists already and is not an empty folder", "choose another name")
    if not target.parent.is_dir():
        raise InputError("output", str(output), "its folder does not exist", "create the folder first")
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError("output", str(output), "it lies inside the model that is read", "choose another folder")


def _check_disk(folder: Path, output: Path, chosen: dict[str, str], weights_dtype: str) -> None:
    """Raise InputError when the copy would not fit: the unquantized parts, and the others at their new width."""
    from sdnq.common import dtype_dict

    bits = int(dtype_dict[weights_dtype]["num_bits"])
    needed = 0
    for file in folder.glob("*/*.safetensors"):
        size = file.stat().st_size
        # A tenth more for scales, and for layers that stay as they are.
        needed += math.ceil(size * bits / 16 * 1.1) if file.parent.name in chosen else size
    free = shutil.disk_usage(link_target(output).parent).free
    if needed > free:
        reason = f"the copy needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free there"
        raise InputError("output", str(output), reason, "choose another disk or free some space")


def _quantize_component(folder: Path, partial: Path, name: str, checked: CheckedFolder, config: Any) -> str:
    """Read one component quantized, write it, and forget it. Returns what was quantized in it."""
    import sdnq

    library, class_name = components(checked.index)[name]
    dtype_argument = "dtype" if library == "transformers" else "torch_dtype"
    options = {dtype_argument: _stored_dtype(checked.headers[name]), "quantization_config": config}
    with reading_errors(folder / name):
        model = _component_class(library, class_name).from_pretrained(
            folder / name,
            use_safetensors=True,
            local_files_only=True,
            variant=checked.variant,
            **options,
        )
    described = describe_model(model)
    sdnq.save_sdnq_model(model, str(partial / name))
    del model
    gc.collect()
    return described


def _component_class(library: str, class_name: str) -> Any:
    import diffusers
    import transformers

    found = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), class_name, None)
    if found is None:
        reason = f"its {class_name} comes from {library}, which this version does not have"
        raise ModelFileError("model", class_name, reason, "update diffusers and transformers")
    return found


def _stored_dtype(header: dict[str, Any]) -> torch.dtype:
    """The type that most weights of a component are stored in: the copy computes in it."""
    import torch

    sizes: dict[str, int] = {}
    for entry in header.values():
        begin, end = entry["data_offsets"]
        sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + end - begin
    known = {kind: size for kind, size in sizes.items() if kind in _DTYPES}
    dtype: torch.dtype = getattr(torch, _DTYPES[max(known, key=known.__getitem__)] if known else "bfloat16")
    return dtype


def _copy_files(folder: Path, partial: Path) -> None:
    """The files beside the components: the index, which stays as it is, and the licence and the model card."""
    for file in folder.iterdir():
        wanted = file.name in (checkpoints.INDEX, MODULAR_INDEX) or file.name.lower().startswith(
            ("license", "readme", "notice")
        )
        if file.is_file() and wanted:
            shutil.copy2(file, partial / file.name)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))

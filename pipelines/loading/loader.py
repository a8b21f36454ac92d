"""From what the user typed to a pipeline in memory: `resolve` checks without reading weights, `load` reads them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks
from ...errors import InputError, ModelFileError
from ...fallback import Signals
from ...optimizations.quantization import schemes
from ...optimizations.quantization.layers import describe_model
from ...optimizations.quantization.quantize import outcome, pipeline_quantization_config, quantize_loaded
from ...optimizations.quantization.sdnq import import_sdnq_safely
from .. import tiny
from ..families import Family
from ..modular.build import build
from ..modular.index import folders, is_modular, other_folders
from ..recognize import family_of, small
from ..types import LoadedPipeline, LoadKey
from . import checkpoints, described, single_file
from .completeness import check_complete, check_read
from .components import absent, components, find_class, made_around_any_unet, not_taken
from .devices import dtype_name, resolve_device, resolve_dtype
from .mapped_files import mapped_files
from .parts import absent_vae, check_quantized, family_of_parts, left_out, locate_parts, read_parts
from .progress import component_progress, reading_errors
from .sources import TINY, files_stamp, folder_of, locate

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATION_CHOICES = schemes.quantization_choices()


def resolve(
    source: str,
    *,
    revision: str = "",
    dtype: str = "auto",
    component_dtypes: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    device: str = "auto",
    quantization: str = "none",
    lora_rank: int = 0,
    library: Path | None = None,
    text_encoders: Sequence[str] = (),
    vae: str = "",
    second_expert: str = "",
    audio_vae: str = "",
    in_parts: bool = False,
    comfyui: Path | None = None,
    callbacks: Callbacks = SILENT,
) -> LoadKey:
    """Check everything that can be checked without reading weights; download a Hub id.

    Args:
        source: path of a diffusers folder or a .safetensors file, a Hub id "owner/name", or "tiny:<family>".
        revision: branch, tag or commit of a Hub id, "" for the newest.
        dtype: one of `DTYPES`, or a short name ("bf16", "fp16", "fp32"); "auto" is bfloat16 where the device can, else
            float16; float32 on a CPU.
        component_dtypes: exceptions, e.g. {"vae": "float32"}.
        device: "auto" is the first accelerator, else the CPU.
        quantization: one of `QUANTIZATION_CHOICES`.
        lora_rank: room that LoRAs of this total rank are given from the first one on; 0 = as the first ones need.
        library: folder of models in which a Hub id's download is kept; None is the Hub's own cache.
        text_encoders, vae, audio_vae: files of the other components, where `in_parts` says that `source` is a
            diffusion model's; "none" leaves one out.
        second_expert: file of the expert for little noise, of a diffusion model in two files.
        comfyui: folder of a ComfyUI, whose tokenizers a model in parts or in one file takes.

    Returns:
        A key in which nothing is "auto" any more, so that equal requests share one pipeline.

    Raises:
        ModelFileError: no such model, half-downloaded, corrupt, a pickle, or out of reach.
        InputError: any other argument is not usable here.
        MissingDependencyError: the quantization needs a package that is not installed.
    """
    chosen_device = resolve_device(device)
    dtype = dtype_name(dtype)
    overrides = tuple(sorted((part, dtype_name(value)) for part, value in dict(component_dtypes).items()))
    for name, value in (("dtype", dtype), *((f"dtype of {part}", value) for part, value in overrides)):
        if value not in DTYPES:
            raise InputError(name, value, "it is not one of the choices", f"choose one of: {', '.join(DTYPES)}")
    if not 0 <= lora_rank <= 4096:
        raise InputError("lora_rank", lora_rank, "it must be between 0 and 4096", "use 0 unless LoRAs are exchanged")
    schemes.check_quantization(quantization, chosen_device)
    parts: tuple[tuple[str, str], ...] = ()
    if in_parts:
        parts, identity = locate_parts(source, text_encoders, vae, second_expert, audio_vae)
        quantized = check_quantized(parts, chosen_device, resolve_dtype(dtype, chosen_device))
        if quantized and quantization != "none":
            raise InputError("quantization", quantization, f"{quantized} is quantized already", "leave it at none")
        location, commit = parts[0][1], ""
    else:
        location, commit, identity = locate(source, revision, quantization, library, callbacks)
    return LoadKey(
        source=location,
        revision=commit,
        identity=identity,
        dtype=resolve_dtype(dtype, chosen_device),
        component_dtypes=tuple((part, resolve_dtype(value, chosen_device)) for part, value in overrides),
        device=chosen_device,
        quantization=quantization,
        lora_rank=lora_rank,
        parts=parts,
        comfyui=str(comfyui or "") if in_parts or Path(location).is_file() else "",
    )


@lru_cache(maxsize=64)
def family_of_key(key: LoadKey) -> Family:
    """The family that a key will load, for checks before the load."""
    if key.source.startswith(TINY):
        name = key.source.removeprefix(TINY)
        one = name in tiny.ONE_EXPERT
        if folder := tiny.trained_folder(name):
            return small(described.family_of_folder(folder), trained=True, one_expert=one)
        return small(family_of(tiny.PIPELINE_CLASSES[name]), one_expert=one)
    path = folder_of(key)
    assert path is not None  # noqa: S101 - only tiny sources have no path
    if key.parts:
        return family_of_parts(path)
    return family_of(single_file.pipeline_class_of(path)) if path.is_file() else described.family_of_folder(path)


@lru_cache(maxsize=64)
def scheduler_of_key(key: LoadKey) -> Any:
    """The scheduler that a key's pipeline comes with, to ask before the load; None where only the load tells it."""
    path = folder_of(key)
    if path is None:
        return described.scheduler_of_embedded(key.source)
    return described.scheduler_of_folder(path) if path.is_dir() else None


def load(key: LoadKey, callbacks: Callbacks = SILENT) -> LoadedPipeline:
    """Read the weights of a resolved key into CPU memory. Where they live after that is for the optimizations to say.

    Progress: one tick of stage "load" per component, between which a cancel takes effect; of a model in parts one per
    tensor that is read, in MiB.

    Raises:
        ModelFileError: the files changed since they were checked, or diffusers cannot read them.
    """
    import torch

    started = time.perf_counter()
    dtype = getattr(torch, key.dtype)
    stamp = files_stamp(key)
    precisions: dict[str, str] = {}
    if key.parts:
        signals, keep = Signals(callbacks), key.quantization == schemes.LAYERWISE
        with reading_errors(Path(key.source), signals):
            pipeline, precisions = read_parts(key.parts, key.comfyui, dtype, signals, keep, key.device)
        quantize_loaded(pipeline, key.quantization, dtype=dtype, device=key.device)
    else:
        pipeline = _read(key, dtype, callbacks)
    if files_stamp(key) not in ("", stamp):
        reason = "its files were written to while they were read"
        raise ModelFileError("model", key.source, reason, "run again when nothing changes them any more")
    check_read(pipeline, key.source)
    _apply_component_dtypes(pipeline, key)
    pipeline.set_progress_bar_config(disable=True)
    family = family_of(pipeline)
    if key.source.startswith(TINY):
        family = small(family, trained=tiny.trained_folder(key.source.removeprefix(TINY)) is not None)
    facts: dict[str, Any] = {
        "model": key.source,
        "pipeline": type(pipeline).__name__,
        "family": family.name,
        "device": key.device,
        "dtype": key.dtype,
        "weights_mib": {name: round(size / 2**20, 1) for name, size in _sizes(pipeline).items()},
        "load_seconds": round(time.perf_counter() - started, 3),
        "loaded_at": datetime.datetime.now().astimezone().isoformat(timespec="milliseconds"),
    }
    if commit := key.revision or checkpoints.downloaded_commit(Path(key.source)):
        facts["revision"] = commit
    if quantized := outcome(pipeline, key.quantization):
        facts["quantization"] = quantized
    if key.parts:
        facts["parts"] = {slot: f"{path} ({precisions[slot]})" for slot, path in key.parts}
        if missing := left_out(key.parts):
            facts["left out"] = " and ".join(missing)
    if dropped := _dropped(key):
        facts["not loaded"] = f"{', '.join(dropped)}: {facts['pipeline']} takes no such component"
    mapped = mapped_files(folder_of(key))
    for place in _elsewhere(key):
        mapped |= mapped_files(place)
    for _, file in key.parts:
        mapped |= mapped_files(Path(file))
    vae = None if key.holds("vae") else absent_vae(Path(key.source)).to(dtype)
    return LoadedPipeline(key, pipeline, family, torch.device(key.device), dtype, facts, stamp, mapped, vae)


def _elsewhere(key: LoadKey) -> list[Path]:
    path = folder_of(key)
    return [] if path is None or path.is_file() else other_folders(path, checkpoints.read_index(path))


def _dropped(key: LoadKey) -> list[str]:
    """The components that a folder holds and that were not loaded, as diffusers does not load them either."""
    path = folder_of(key)
    return [] if path is None or path.is_file() else not_taken(checkpoints.read_index(path))


def _read(key: LoadKey, dtype: torch.dtype, callbacks: Callbacks) -> Any:
    if key.source.startswith(TINY):
        callbacks.tick("load", 0, 1, key.source)
        with reading_errors(Path(key.source)):
            pipeline = tiny.build(key.source.removeprefix(TINY), dtype=dtype)
        # Real models skip small layers; nothing would be left of these.
        quantize_loaded(pipeline, key.quantization, dtype=dtype, device=key.device, minimum_numel=1024)
        callbacks.tick("load", 1, 1)
        return pipeline
    path = folder_of(key)
    assert path is not None  # noqa: S101 - only tiny sources have no path
    signals = Signals(callbacks)
    with component_progress(signals), reading_errors(path, signals):
        pipeline = _read_folder(path, key, dtype) if path.is_dir() else single_file.read(path, dtype, key.comfyui)
    if path.is_file() or (key.quantization != "none" and schemes.SCHEMES[key.quantization].after_load):
        quantize_loaded(pipeline, key.quantization, dtype=dtype, device=key.device)
    return pipeline


def _read_folder(folder: Path, key: LoadKey, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    checked = checkpoints.check_folder(folder)
    check_complete(folder, checked)
    parts = components(checked.index)
    held = schemes.checkpoint_quantization(folder, parts, folders(folder, checked.index))
    config = pipeline_quantization_config(key.quantization, parts, dtype=dtype, device=key.device)
    sdnq = key.quantization.startswith("sdnq") or any(method.startswith("sdnq") for method in held.values())
    made = find_class("diffusers", str(checked.index["_class_name"]))
    with import_sdnq_safely() if sdnq else nullcontext(), made_around_any_unet(made) if made else nullcontext():
        if is_modular(checked.index):
            return _read_modular(folder, key, dtype, checked, config)
        return DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=_dtype_argument(key, dtype),
            use_safetensors=True,
            local_files_only=True,
            variant=checked.variant,
            **absent(checked.index, made),
            **({"quantization_config": config} if config is not None else {}),
        )


def _read_modular(folder: Path, key: LoadKey, dtype: torch.dtype, checked: Any, quantization: Any) -> Any:
    import torch

    classes = {}
    for name, (library, class_name) in components(checked.index).items():
        found = find_class(library, class_name)
        if found is None or not hasattr(found, "from_pretrained"):
            reason = f"its {name} is a {class_name} of {library}, which this version does not have"
            raise ModelFileError("model", str(folder), reason, "update diffusers and transformers")
        classes[name] = found
    dtypes = {"default": dtype, **{part: getattr(torch, name) for part, name in key.component_dtypes}}
    return build(folder, checked.index, classes, dtypes=dtypes, variant=checked.variant, quantization=quantization)


def _dtype_argument(key: LoadKey, dtype: torch.dtype) -> Any:
    """One dtype, or one per component with a default, as `from_pretrained` takes it."""
    import torch

    if not key.component_dtypes:
        return dtype
    return {"default": dtype, **{part: getattr(torch, name) for part, name in key.component_dtypes}}


def _apply_component_dtypes(pipeline: Any, key: LoadKey) -> None:
    """Check the names in `component_dtypes`, and convert what was not read from a folder component by component."""
    import torch

    for part, name in key.component_dtypes:
        module = pipeline.components.get(part)
        if not isinstance(module, torch.nn.Module):
            parts = [name for name, value in pipeline.components.items() if isinstance(value, torch.nn.Module)]
            raise InputError("component_dtypes", part, "the pipeline has no such model", f"choose of {parts}")
        if not describe_model(module):
            module.to(getattr(torch, name))


def _sizes(pipeline: Any) -> dict[str, int]:
    """Bytes of weights by component."""
    import torch

    return {
        name: sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }

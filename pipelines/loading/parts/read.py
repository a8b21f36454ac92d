"""The pipeline of a model in parts, read one component after the other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import ModelFileError
from ....fallback import Signals
from ....optimizations.quantization.layers import describe_model
from ..devices import default_dtype
from ..small_files import read_json
from . import nunchaku
from .component import MODEL_INPUT, Component, Config, PartsFamily, Tokenizer, input_of
from .gguf import fill_gguf, is_gguf
from .header import Part, read_extra, read_part
from .plan import beside, configuration, family_of_part
from .weights import read_weights

if TYPE_CHECKING:
    import torch

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
"""Of which a folder has at least one that holds a tokenizer."""


def read_parts(
    parts: tuple[tuple[str, str], ...],
    comfyui: str,
    dtype: torch.dtype,
    callbacks: Signals,
    keep_fp8: bool = False,
    device: str = "cpu",
) -> tuple[Any, dict[str, str]]:
    """Read what `locate_parts` found, on the CPU.

    Args:
        comfyui: folder of a ComfyUI, whose tokenizers are used; "" for none.
        keep_fp8: a diffusion model in plain fp8 stays in it, and its layers are cast one by one when they run.
        device: where a diffusion model of Nunchaku's is read to, which its package reads to no other.

    Returns:
        the pipeline, and of each component the precision that its file has, and what its tensors do not tell.

    Raises:
        ModelFileError: there is no tokenizer, or a file cannot be read.
    """
    import diffusers

    files = {slot: Path(path) for slot, path in parts}
    chosen = next(iter(files.values()))
    family = family_of_part(chosen)
    made: dict[str, Any] = {slot: None for slot in (*family.components, *family.tokenizers) if slot != family.second}
    encoded = not set(family.text_encoders) & set(files)
    for name, tokenizer in () if encoded else family.tokenizers.items():
        made[name] = read_tokenizer(name, tokenizer, chosen, comfyui, files)
    found: dict[str, str] = {}
    sizes = {slot: path.stat().st_size for slot, path in files.items()}
    before, total = 0, _mebibytes(sum(sizes.values()))
    for slot, path in files.items():

        def told(done: int, slot: str = slot, before: int = before) -> None:
            callbacks.tick("load", _mebibytes(before + done), total, f"{slot}, in MiB")

        told(0)
        component = family.components[slot]
        part = read_part(path, input_of(slot))
        config = configuration(slot, component, part, chosen)
        found[slot] = part.precision
        keep = keep_fp8 and input_of(slot) == MODEL_INPUT
        if part.svdq is not None:
            made[slot] = nunchaku.load(path, part.svdq, device, dtype)
        else:
            made[slot] = read_component(component, part, config, dtype, keep, told)
        before += sizes[slot]
        if keep and "fp8" in describe_model(made[slot]):
            found[slot] += ", kept"
        found[slot] += component.not_told(config)
        if slot == family.diffusion_model and family.note:
            found[slot] += "; " + family.note
    callbacks.tick("load", total, total)
    made["scheduler"] = read_scheduler(family, chosen)
    if family.more:
        made |= family.more(made, beside(chosen))
    settings = family.settings_with(files)
    return getattr(diffusers, family.pipeline)(**made, **settings), found


def check_quantized(parts: tuple[tuple[str, str], ...], device: str, dtype: str) -> str:
    """The file whose layers its own code multiplies as they are quantized, GGUF or Nunchaku's; "" where there is none.

    Raises:
        InputError, ModelFileError: the device does not run it, or not in this precision.
    """
    for slot, file in parts:
        if is_gguf(Path(file)):
            return file
        if input_of(slot) != MODEL_INPUT:  # of Nunchaku's there are diffusion models alone
            continue
        part = read_part(Path(file), MODEL_INPUT)
        if part.svdq is not None:
            nunchaku.check_card(part.path, part.svdq, device, dtype)
            return file
    return ""


def read_scheduler(family: PartsFamily, chosen: Path) -> Any:
    """The scheduler of the folder beside a diffusion model, else the published one."""
    import diffusers

    name, config = _scheduler(family, chosen)
    return getattr(diffusers, name).from_config(config)


def _scheduler(family: PartsFamily, chosen: Path) -> tuple[str, Config]:
    own = beside(chosen) / "scheduler" / "scheduler_config.json"
    if not own.is_file():
        return family.scheduler
    import diffusers

    config = read_json(own)
    name = str(config.get("_class_name", family.scheduler[0]))
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        cure = f"name a scheduler of diffusers there, or remove {own.parent}"
        raise ModelFileError("diffusion_model", str(chosen), f"{own} names {name[:80]!r}, which is no scheduler", cure)
    return name, config


def _mebibytes(size: int) -> int:
    return -(-size // 2**20)


def read_component(
    component: Component,
    part: Part,
    config: Config,
    dtype: torch.dtype,
    keep_fp8: bool = False,
    told: Callable[[int], None] = lambda done: None,
) -> Any:
    """One network of a pipeline, from its file.

    Args:
        told: called with the bytes of the file that are read, as they are; it may raise to stop.
    """
    weights = component.rename(read_weights(part, dtype, keep_fp8, told), config)
    if part.is_gguf:
        import diffusers

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            return fill_gguf(getattr(diffusers, component.class_name), weights, folder, dtype)
    if component.library == "diffusers":
        return fill(component.class_name, weights, config, dtype, keep_fp8)
    import transformers

    model_class = getattr(transformers, component.class_name)
    # transformers rounds the rest itself, and keeps in float32 what a class says must stay so. Where all of it is to be
    # float32, each tensor goes here when its wide one comes: transformers would hold both of all of them.
    for key, value in weights.items():
        if value.itemsize == 1 or (dtype.itemsize == 4 and value.is_floating_point()):
            weights[key] = value.to(dtype)
    settings = model_class.config_class.from_dict(config)
    return model_class.from_pretrained(None, config=settings, state_dict=weights, torch_dtype=dtype).eval()


def fill(class_name: str, weights: dict[str, Any], config: Config, dtype: torch.dtype, keep_fp8: bool = False) -> Any:
    """A network of diffusers with these weights: in their file where it has `dtype` already, else rounded to it.

    As diffusers' own `from_pretrained` does it, layers that a class keeps in float32 are in float32, and what a class
    computes when it is built is computed in `dtype`.
    """
    import diffusers
    import torch
    from accelerate import init_empty_weights

    model_class = getattr(diffusers, class_name)
    with default_dtype(dtype), init_empty_weights():
        model = model_class.from_config(config)
    exact = model_class._keep_in_fp32_modules or []
    exact = set(exact if isinstance(exact, list) else [exact])
    fp8 = {value.dtype for value in weights.values() if value.itemsize == 1}
    kept = next(iter(fp8)) if keep_fp8 and len(fp8) == 1 else None
    for key in list(weights):
        kind = torch.float32 if exact & set(key.split(".")) else dtype
        if weights[key].is_floating_point() and (weights[key].dtype != kept or kind != dtype):
            weights[key] = weights[key].to(kind)
    model.load_state_dict(weights, strict=True, assign=True)
    if kept is not None:
        _cast_layer_by_layer(model, kept, dtype)
    return model.eval()


def _cast_layer_by_layer(model: Any, kept: torch.dtype, dtype: torch.dtype) -> None:
    """Keep the layers in `kept`, as their file has them, that diffusers casts when they run; widen the others."""
    from diffusers.hooks.layerwise_casting import _LAYERWISE_CASTING_HOOK

    model.enable_layerwise_casting(storage_dtype=kept, compute_dtype=dtype)
    for module in model.modules():
        hooks = getattr(module, "_diffusers_hook", None)
        if hooks is None or hooks.get_hook(_LAYERWISE_CASTING_HOOK) is None:
            for parameter in module.parameters(recurse=False):
                if parameter.dtype == kept:
                    parameter.data = parameter.data.to(dtype)


def read_tokenizer(name: str, tokenizer: Tokenizer, chosen: Path, comfyui: str, files: dict[str, Path]) -> Any:
    """A tokenizer from the folder beside the diffusion model, the file of its text encoder, or a ComfyUI.

    Raises:
        ModelFileError: it is in none of them.
    """
    import transformers

    own = beside(chosen) / name
    tokenizer_class = getattr(transformers, tokenizer.class_name)
    if any((own / file).is_file() for file in _TOKENIZER_FILES):
        return tokenizer_class.from_pretrained(own, local_files_only=True)
    if tokenizer.inside and (held := _held_tokenizer(read_part(files[tokenizer.inside], tokenizer.inside), tokenizer)):
        return held
    folder = Path(comfyui) / tokenizer.folder
    if comfyui and tokenizer.folder and folder.is_dir():
        return tokenizer_class.from_pretrained(folder, local_files_only=True, **tokenizer.options)
    if tokenizer.inside:
        reason = f"there is no {name} for it: neither {own} nor in the file of the text encoder"
        cure = "use ComfyUI's file of the text encoder, which holds it, or put the model's tokenizer there"
        raise ModelFileError(tokenizer.inside, str(files[tokenizer.inside]), reason, cure)
    reason = f"there is no {name} for it: neither {own} nor a ComfyUI's {tokenizer.folder}"
    raise ModelFileError("diffusion_model", str(chosen), reason, "name a ComfyUI with COMFYUI_PATH=FOLDER")


def _held_tokenizer(part: Part, tokenizer: Tokenizer) -> Any:
    """The SentencePiece model in the file of a text encoder, as ComfyUI's files of UMT5 hold it; None without one."""
    import transformers

    tensor = read_extra(part, "spiece_model")
    if tensor is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spiece.model").write_bytes(tensor.numpy().tobytes())
        made = getattr(transformers, tokenizer.class_name)
        return made.from_pretrained(folder, local_files_only=True, extra_ids=0, **tokenizer.options)

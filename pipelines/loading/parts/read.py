"""The pipeline of a model in parts, read one component after the other."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import ModelFileError
from ....fallback import Signals
from ....optimizations.components import is_modular_class
from ....optimizations.quantization.layers import describe_model
from ...modular.build import assemble
from ..devices import default_dtype
from ..small_files import read_json
from . import nunchaku
from .component import MODEL_INPUT, Component, Config, PartsFamily, Shapes, Tokenizer, input_of
from .fit import beside, configuration, without_a_warning
from .gguf import fill_gguf, is_gguf
from .header import Part, read_extra, read_part
from .plan import family_of_part
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
    absent = {family.second, *family.joined}
    made: dict[str, Any] = {slot: None for slot in (*family.components, *family.tokenizers) if slot not in absent}
    for slot, make in family.stand_ins.items():
        own = beside(chosen) / slot / "config.json"
        if slot not in files:
            made[slot] = make(read_json(own) if own.is_file() else {}).to(dtype)
    encoded = not set(family.text_encoders) & set(files)
    for name, tokenizer in () if encoded else family.tokenizers.items():
        made[name] = read_tokenizer(name, tokenizer, chosen, comfyui, files)
    found: dict[str, str] = {}
    opened = {slot: read_file(slot, path, chosen) for slot, path in files.items()}
    sizes = {slot: _share(family.components[slot], part) for slot, part in opened.items()}
    before, total = 0, _mebibytes(sum(sizes.values()))
    for slot, path in files.items():

        def told(done: int, slot: str = slot, before: int = before) -> None:
            callbacks.tick("load", _mebibytes(before + done), total, f"{slot}, in MiB")

        told(0)
        component, part = family.components[slot], opened[slot]
        found[slot] = part.precision
        if slot in family.joined:  # read with the whole
            before += sizes[slot]
            continue
        pieces = [other for other, whole in family.joined.items() if whole == slot]
        joined = [opened[other] for other in pieces if other in files]
        for piece in pieces if encoded else ():  # texts that come encoded need none of it
            part = part.without(family.components[piece])
        config = configuration(slot, component, part, chosen, *joined)
        keep = keep_fp8 and input_of(slot) == MODEL_INPUT
        if part.svdq is not None:
            made[slot] = nunchaku.load(path, part.svdq, device, dtype)
        else:
            made[slot] = read_component(component, part, config, dtype, keep, told, joined)
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
    pipeline_class = getattr(diffusers, family.pipeline)
    if is_modular_class(pipeline_class):
        return assemble(pipeline_class, made | settings), found
    return pipeline_class(**made, **settings), found


def read_file(slot: str, path: Path, chosen: Path) -> Part:
    """The header of the file that a component is in."""
    return read_part(path, MODEL_INPUT if path == chosen else input_of(slot))


def _share(component: Component, part: Part) -> int:
    """Bytes of a file that a component is: all, where nothing else is in it."""
    size, own = part.path.stat().st_size, component.own(part.shapes)
    if len(own) == len(part.shapes):
        return size
    return size * _numbers(own) // max(1, _numbers(part.shapes))


def _numbers(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


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
    """The scheduler of the folder beside a diffusion model, else the published one; None where the blocks bring it."""
    import diffusers

    name, config = _scheduler(family, chosen)
    if not name:
        return None
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
    joined: Sequence[Part] = (),
) -> Any:
    """One network of a pipeline, from its file.

    Args:
        told: called with the bytes of the file that are read, as they are; it may raise to stop.
        joined: files that hold more of it.
    """
    held = read_weights(part.only(component), dtype, keep_fp8, told)
    for more in joined:
        held |= read_weights(more.only(component), dtype)
    weights = component.rename(held, config)
    if part.is_gguf and not hasattr(component.network, "from_single_file"):
        written_out(weights, dtype)
    elif part.is_gguf:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            return fill_gguf(component.network, weights, folder, dtype)
    if component.library != "transformers":
        return fill(component.network, weights, config, dtype, keep_fp8)
    model_class = component.network
    # transformers rounds the rest itself, and keeps in float32 what a class says must stay so. Where all of it is to be
    # float32, each tensor goes here when its wide one comes: transformers would hold both of all of them.
    for key, value in weights.items():
        if value.itemsize == 1 or (dtype.itemsize == 4 and value.is_floating_point()):
            weights[key] = value.to(dtype)
    settings = model_class.config_class.from_dict(config)
    return model_class.from_pretrained(None, config=settings, state_dict=weights, torch_dtype=dtype).eval()


def written_out(weights: dict[str, Any], dtype: torch.dtype) -> None:
    """Write out what GGUF quantized, in place."""
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    for key, value in weights.items():
        if hasattr(value, "quant_type"):
            weights[key] = dequantize_gguf_tensor(value).to(dtype)


def fill(model_class: Any, weights: dict[str, Any], config: Config, dtype: torch.dtype, keep_fp8: bool = False) -> Any:
    """A network of diffusers with these weights: in their file where it has `dtype` already, else rounded to it.

    As diffusers' own `from_pretrained` does it, layers that a class keeps in float32 are in float32, and what a class
    computes when it is built is computed in `dtype`.
    """
    import torch
    from accelerate import init_empty_weights

    with default_dtype(dtype), init_empty_weights(), without_a_warning():
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
    if tokenizer.held is not None:
        return tokenizer.held(tensor.numpy().tobytes())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spiece.model").write_bytes(tensor.numpy().tobytes())
        made = getattr(transformers, tokenizer.class_name)
        return made.from_pretrained(folder, local_files_only=True, extra_ids=0, **tokenizer.options)

"""The pipeline of a model in parts, read one component after the other."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import ModelFileError
from ....fallback import Signals
from ..small_files import read_json
from . import configurations, flux
from .header import Part, read_part, read_weights
from .plan import beside, configuration

if TYPE_CHECKING:
    import torch

TOKENIZERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tokenizer": ("CLIPTokenizer", "comfy/sd1_tokenizer", {"pad_token": "<|endoftext|>", "model_max_length": 77}),
    "tokenizer_2": ("T5TokenizerFast", "comfy/text_encoders/t5_tokenizer", {"model_max_length": 512}),
}
"""Component -> (class, folder in ComfyUI, what its configuration there leaves out)."""


def read_parts(
    parts: tuple[tuple[str, str], ...], comfyui: str, dtype: torch.dtype, callbacks: Signals
) -> tuple[Any, dict[str, str]]:
    """Read what `locate_parts` found, on the CPU.

    Args:
        comfyui: folder of a ComfyUI, whose tokenizers are used; "" for none.

    Returns:
        the pipeline, and of each component the precision that its file has, and what its tensors do not tell.

    Raises:
        ModelFileError: there is no tokenizer, or a file cannot be read.
    """
    import diffusers

    files = {slot: Path(path) for slot, path in parts}
    chosen = files["transformer"]
    made: dict[str, Any] = {name: _tokenizer(name, chosen, comfyui) for name in TOKENIZERS}
    found: dict[str, str] = {}
    guidance = False
    for number, (slot, path) in enumerate(files.items()):
        callbacks.tick("load", number, len(files), slot)
        part = read_part(path, slot)
        config = configuration(slot, part, chosen)
        found[slot] = part.precision + flux.not_told(slot, config)
        guidance = guidance or "guidance_in.in_layer.weight" in part.shapes
        made[slot] = _read_component(slot, part, config, dtype)
    callbacks.tick("load", len(files), len(files))
    made["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler.from_config(_scheduler_config(chosen, guidance))
    return diffusers.FluxPipeline(**made), found


def _scheduler_config(chosen: Path, guidance: bool) -> dict[str, Any]:
    own = beside(chosen) / "scheduler" / "scheduler_config.json"
    return read_json(own) if own.is_file() else configurations.flux_scheduler(guidance)


def _read_component(slot: str, part: Part, config: dict[str, Any], dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    library, name = flux.CLASSES[slot]
    weights = flux.rename(slot, read_weights(part, dtype), config)
    if library == "diffusers":
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps({**config, "_class_name": name}), encoding="utf-8")
            model_class = getattr(diffusers, name)
            return model_class.from_single_file(weights, config=folder, local_files_only=True, torch_dtype=dtype)
    model_class = getattr(transformers, name)
    # transformers rounds the rest itself, and keeps in float32 what a class says must stay so.
    weights = {key: value.to(dtype) if value.itemsize == 1 else value for key, value in weights.items()}
    settings = model_class.config_class.from_dict(config)
    return model_class.from_pretrained(None, config=settings, state_dict=weights, torch_dtype=dtype).eval()


def _tokenizer(name: str, chosen: Path, comfyui: str) -> Any:
    import transformers

    class_name, inside, options = TOKENIZERS[name]
    own = beside(chosen) / name
    if own.is_dir():
        return getattr(transformers, class_name).from_pretrained(own, local_files_only=True)
    folder = Path(comfyui) / inside
    if comfyui and folder.is_dir():
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True, **options)
    reason = f"there is no {name} for it: neither {own} nor a ComfyUI's {inside}"
    raise ModelFileError("diffusion_model", str(chosen), reason, "name a ComfyUI with COMFYUI_PATH=FOLDER")

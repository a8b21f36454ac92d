"""What the LoRA tests share: adapters of every kind written by PEFT, and layers compared with what diffusers makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastdiffusers.optimizations.lora_layers import LoraLayer, LoraNorm
from fastdiffusers.pipelines.lora import set_loras
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, LoraSpec

A, B = ".lora_A.weight", ".lora_B.weight"

Tensors = dict[str, torch.Tensor]


def loaded(pipeline: Any) -> LoadedPipeline:
    key = LoadKey("tiny:test", device="cpu", dtype="float32")
    return LoadedPipeline(key, pipeline, family_of(pipeline), torch.device("cpu"), torch.float32)


def denoiser_of(pipeline: Any) -> str:
    return "unet" if getattr(pipeline, "unet", None) is not None else "transformer"


def random_values(tensors: Tensors, seed: int = 0, size: float = 0.3) -> Tensors:
    """Tensors of the same names and shapes with values that are large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=generator) * size for key, value in tensors.items()}


def adapter_of(pipeline: Any, part: str, config: Any, seed: int = 0) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a new adapter under PEFT's names, and its configuration; the model is as before."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft import get_peft_model_state_dict, inject_adapter_in_model

    model = getattr(pipeline, part)
    inject_adapter_in_model(config, model, adapter_name="made")
    state = get_peft_model_state_dict(model, adapter_name="made")
    written = model.peft_config["made"].to_dict()
    recurse_remove_peft_layers(model)
    del model.peft_config
    values = random_values(state, seed)
    for key, value in state.items():
        if "magnitude" in key:  # a length: near the layer's own
            values[key] = value * (1 + values[key].abs())
    return values, {key: sorted(value) if isinstance(value, set) else value for key, value in written.items()}


def write(path: Path, tensors: Tensors, settings: dict[str, Any] | None = None) -> Path:
    """A file with the adapter configuration in its header, as diffusers writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    if settings is not None:
        metadata["lora_adapter_metadata"] = json.dumps(settings, default=str)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata=metadata)
    return path


def prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def input_for(layer: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if hasattr(layer, "in_features"):
        return torch.randn(2, 3, layer.in_features, generator=generator)
    if hasattr(layer, "in_channels"):
        return torch.randn(1, layer.in_channels, *(6,) * len(layer.kernel_size), generator=generator)
    return torch.randn(2, 3, layer.weight.shape[0], generator=generator)


def assert_same_layers(pipeline: Any, reference: Any, parts: tuple[str, ...] = ()) -> int:
    """Every layer that PEFT changed in `reference` gives the same in `pipeline`, and no other is changed there.

    Returns:
        The number of layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    count = 0
    for part in parts or (denoiser_of(pipeline),):
        theirs = dict(getattr(reference, part).named_modules())
        changed = {name for name, module in theirs.items() if isinstance(module, BaseTunerLayer)}
        ours = dict(getattr(pipeline, part).named_modules())
        wrapped = {name for name, module in ours.items() if isinstance(module, LoraLayer | LoraNorm)}
        assert wrapped == changed, sorted(wrapped ^ changed)[:6]
        for name in changed:
            base = ours[name].base
            hidden = input_for(base)
            with torch.no_grad():
                expected, result = theirs[name](hidden), ours[name](hidden)
                assert not torch.equal(base(hidden), result), name
            size = float(expected.abs().max())
            torch.testing.assert_close(
                result, expected, rtol=1e-4, atol=1e-5 * max(size, 1), msg=lambda m, n=name: f"{n}: {m}"
            )
        count += len(changed)
    return count


def apply(pipeline: Any, path: Path, strength: float = 1.0) -> Any:
    """Set one file as the only LoRA; returns the record."""
    (record,) = set_loras(loaded(pipeline), (LoraSpec(str(path), strength),))
    return record


def flat(name: str) -> str:
    """A layer's name as kohya writes it."""
    return "lora_unet_" + name.replace(".", "_")


def random_pair(name: str, into: int, out: int, down: str = A, up: str = B) -> Tensors:
    """A low-rank pair of rank 4 under one layer's name."""
    return random_values({name + down: torch.zeros(4, into), name + up: torch.zeros(out, 4)})

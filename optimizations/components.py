"""The parts of a pipeline (denoisers, VAE, attention layers, blocks), and where and in what precision they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

DENOISERS = (
    "transformer",
    "transformer_2",
    "transformer_ref",
    "unconditional_transformer",
    "unet",
    "prior",
    "decoder",
)
"""Attributes under which diffusers pipelines keep what runs once per step. Both experts of Wan 2.2 are in it."""
HIGH_NOISE, LOW_NOISE = "high noise", "low noise"
"""The two experts of Wan 2.2 by what they are for: `transformer` begins, `transformer_2` finishes."""


def modules(pipeline: Any) -> dict[str, nn.Module]:
    """The pipeline's components that have weights, by name; a component that was left out (None) is not in it."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def denoisers(pipeline: Any) -> dict[str, nn.Module]:
    """The models that run once per denoising step, by name, in the order of `DENOISERS`."""
    found = modules(pipeline)
    return {name: found[name] for name in DENOISERS if name in found}


def is_modular_class(pipeline_class: type) -> bool:
    """Whether it is one of Modular Diffusers: blocks around components, without the methods of other pipelines."""
    import diffusers

    modular = getattr(diffusers, "ModularPipeline", None)  # older releases have none
    return isinstance(modular, type) and issubclass(pipeline_class, modular)


def step_experts(pipeline: Any) -> tuple[str, ...]:
    """Which of two noise experts does each step that the scheduler is set for; () for a pipeline with one denoiser.

    diffusers' own rule: steps whose timestep is at or above the boundary are the first expert's.
    """
    boundary = pipeline.config.get("boundary_ratio")
    scheduler: Any = getattr(pipeline, "scheduler", None)  # some have several, each by a name of its own
    timesteps = getattr(scheduler, "timesteps", None)
    if boundary is None or timesteps is None:
        return ()
    limit = boundary * scheduler.config.get("num_train_timesteps", 1000)
    return tuple(HIGH_NOISE if timestep >= limit else LOW_NOISE for timestep in timesteps.tolist())


def vae_of(pipeline: Any) -> nn.Module | None:
    """The VAE or VQ model that decodes the pipeline's latents, or None."""
    found = modules(pipeline)
    return found.get("vae") or found.get("vqgan")


def is_cast_to_decode(model: nn.Module) -> bool:
    """Whether it is a VAE whose float16 weights overflow (SDXL's): it is float32 for every decode and encode."""
    config = getattr(model, "config", None)  # of a text encoder it is no mapping
    overflows = isinstance(config, Mapping) and bool(config.get("force_upcast", False))
    return overflows and device_and_dtype(model)[1] == torch.float16


class VaeOnly:
    """A pipeline seen as if it had nothing but its VAE, for what is done to every component alike."""

    def __init__(self, pipeline: Any) -> None:
        vae = vae_of(pipeline)
        self.components: dict[str, nn.Module] = {} if vae is None else {"vae": vae}


def attention_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Every layer whose attention goes through an exchangeable processor."""
    for module in model.modules():
        if hasattr(module, "set_processor") and getattr(module, "processor", None) is not None:
            yield module


def head_size(layer: Any) -> int:
    """Channels per head of an attention layer; 64 where the layer does not say."""
    size = getattr(layer, "head_dim", None)
    if size is None:
        heads = getattr(layer, "heads", 0) or getattr(layer, "num_heads", 0)
        size = getattr(layer, "inner_dim", 0) // heads if heads else 0
    return int(size) or 64


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that a model repeats, none inside another, in the order of its modules.

    diffusers names their classes for most models (`_repeated_blocks`). For the others they are what stands in the
    outermost lists of at least two modules of one class that hold attention: SD3's joint blocks, say.
    """
    names = set(getattr(model, "_repeated_blocks", None) or ())
    named = _outermost(model, lambda module: type(module).__name__ in names)
    if named:
        return named
    lists = _outermost(model, lambda module: isinstance(module, nn.ModuleList) and _repeats(module))
    return [block for blocks in lists for block in blocks.children()]


def _outermost(model: nn.Module, wanted: Callable[[Any], bool]) -> list[nn.Module]:
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module not in inside and wanted(module):
            found.append(module)
            inside.update(module.modules())
    return found


def _repeats(blocks: nn.ModuleList) -> bool:
    alike = len(blocks) >= 2 and len({type(block) for block in blocks}) == 1
    return alike and any(True for _ in attention_layers(blocks[0]))


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model's weights are and in what type they compute; quantized weights say nothing about the type."""
    device, dtype = torch.device("cpu"), torch.float32
    for index, parameter in enumerate(model.parameters()):
        if index == 0:
            device = parameter.device
        if parameter.is_floating_point() and parameter.element_size() >= 2:
            return device, parameter.dtype
    return device, dtype


def resident_bytes(modules: Iterable[torch.nn.Module], device: torch.device) -> tuple[int, int]:
    """(bytes on `device`, bytes altogether) of the weights and buffers; shared ones count once.

    Weights that offloading put on the meta device count as absent but keep their size.
    """
    seen: set[int] = set()
    resident = total = 0
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size = tensor.numel() * tensor.element_size()
            total += size
            resident += size if tensor.device.type == device.type else 0
    return resident, total


def is_group_offloaded(module: Any) -> bool:
    """Whether diffusers' group offload acts when this very module is called."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None


def decode_dtype(vae: Any) -> torch.dtype:
    """The dtype in which diffusers decodes: the VAE's own, float32 for float16 weights that overflow (SDXL)."""
    own = weights_dtype(vae)
    return torch.float32 if own == torch.float16 and vae.config.get("force_upcast", False) else own


def weights_dtype(module: Any) -> torch.dtype:
    """What `module.dtype` says, without its walk over all submodules: that takes a millisecond, and this every step."""
    dtype: torch.dtype = next(parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return dtype


def execution_device(module: Any, target: torch.device) -> torch.device:
    """Where a module computes: its weights may be elsewhere until an offload hook brings them."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None and getattr(hook, "execution_device", None) is not None:
        return torch.device(hook.execution_device)
    if is_group_offloaded(module):
        return target
    device: torch.device = next(module.parameters()).device
    return device


def has_time_axis(vae: Any) -> bool:
    """Whether a VAE takes [B, C, T, h, w], pictures as T = 1."""
    return vae.config.get("z_dim") is not None or hasattr(vae, "temporal_compression_ratio")


@contextmanager
def unet_with_a_size(unet: Any) -> Iterator[None]:
    """Let classes for Stable Diffusion look, as they are made, at the `sample_size` of a UNet that says none.

    They only ask whether it is below 64; the size of a picture comes from the call.
    """
    missing = unet is not None and unet.config.get("sample_size", 64) is None
    if missing:
        unet.register_to_config(sample_size=64)
    try:
        yield
    finally:
        if missing:
            unet.register_to_config(sample_size=None)

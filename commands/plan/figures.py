"""The sums of a plan: every figure from the functions that decide at a run, on a card that need not be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...comparison.run import with_picture
from ...memory import GIB, MemoryState, Need, shortage
from ...optimizations import compile, offload, vae_memory
from ...optimizations.apply import working_memory
from ...optimizations.components import denoisers, modules, resident_bytes
from ...optimizations.quantization.schemes import quantizable
from ...optimizations.settings import CompileSettings, TilingSettings, Workload
from ...pipelines.generate import workload_of
from ...pipelines.types import LoadedPipeline, LoadKey, SampleRequest
from .skeleton import DTYPE, Model, Skeleton, Stored

DEVICE = torch.device("cuda")
AS_LOADED = "bfloat16"
BITS = {AS_LOADED: 16, "8 bits": 8, "4 bits": 4}
"""How weights are stored -> bits of each weight of a quantized layer."""
AS_STORED = "as stored"
"""In place of the first, for a model of which something is quantized."""
SCHEMES = {"8 bits": ("sdnq-int8", "torchao-int8", "torchao-fp8"), "4 bits": ("sdnq-uint4", "bnb-nf4")}
"""The quantizations that store so, in the denoisers and large text encoders."""


@dataclass(frozen=True)
class Fit:
    """What fits with the weights stored in one way.

    Attributes:
        stored: one of `BITS`, or `AS_STORED`.
        weights: bytes by component.
        mode, why: the memory mode that "auto" takes, and the sum behind it.
        tiling, tiling_why: "off" or the tiles in which "auto" decodes.
        compile: why compiled code would not fit beside that, or "".
    """

    stored: str
    weights: Mapping[str, int]
    mode: str
    why: str
    tiling: str
    tiling_why: str
    compile: str

    @property
    def in_short(self) -> str:
        """ "gpu, compile", "model_offload", "group_offload_block, tiles"."""
        marks = ["tiles" if self.tiling != "off" else "", "" if self.compile else "compile"]
        return ", ".join(filter(None, (self.mode, *marks)))


@dataclass(frozen=True)
class Plan:
    """A model on a card. Attributes: vram, bytes; decode, bytes of the whole decode, None where that is not known;
    working, bytes that "auto" keeps free beside the weights; scores, bytes of one layer's attention scores, which only
    the attention `math` holds, None where they are not known; fits, one for each of `BITS`."""

    model: Model
    workload: Workload
    vram: int
    decode: int | None
    working: int
    scores: int | None
    fits: tuple[Fit, ...]


def plan(model: Model, vram: int) -> Plan:
    """What a card with `vram` bytes, all of them free, holds of the model at its family's recommended size."""
    skeleton = model.skeleton
    key = LoadKey(model.name, identity="", dtype="bfloat16", device="cuda")
    request = with_picture(SampleRequest(""), model.family)
    workload = workload_of(LoadedPipeline(key, skeleton, model.family, DEVICE, DTYPE), request)
    working = working_memory(skeleton, workload)
    vae: Any = skeleton.vae
    decode = None if vae is None or isinstance(vae, Stored) else vae_memory.estimate(vae, workload)
    fits = tuple(_fit(model, stored, vram, working, workload) for stored in BITS if _differs(model, stored))
    return Plan(model, workload, vram, decode, working, _scores(skeleton, workload, model), fits)


def _differs(model: Model, stored: str) -> bool:
    """Whether anything of the model can be stored so: what is quantized already stays as it is."""
    return stored == AS_LOADED or any(not isinstance(part, Stored) for part in _quantizable(model).values())


def _quantizable(model: Model) -> dict[str, nn.Module]:
    found = modules(model.skeleton)
    return {name: found[name] for name in quantizable(dict(model.libraries)) if name in found}


def _fit(model: Model, stored: str, vram: int, working: int, workload: Workload) -> Fit:
    skeleton = model.skeleton.with_weights(_stored_as(model, BITS[stored]))
    weights = {name: resident_bytes([part], DEVICE)[1] for name, part in modules(skeleton).items()}
    mode, why = offload.decide(skeleton, "auto", DEVICE, MemoryState(vram, vram), working)
    everything, largest = sum(weights.values()), max(weights.values(), default=0)
    placed = everything if mode == "gpu" else 0  # what a memory mode leaves on the card between the parts of a run
    left = MemoryState(vram - placed, vram)
    tiling = vae_memory.use(skeleton, TilingSettings(), workload, left)[0]
    vae_memory.restore(skeleton)
    to_come = largest if mode == "model_offload" else 0
    needs = [Need("of weights still to come", to_come), Need("assumed for compiled code", compile.ASSUMED_OVERHEAD)]
    short = shortage(left, needs, keep=int(CompileSettings().headroom_gib * GIB))
    if stored == AS_LOADED and model.quantized:
        stored = AS_STORED
    return Fit(stored, weights, mode, why, tiling.applied, tiling.reason, short)


def _stored_as(model: Model, bits: int) -> dict[str, nn.Module]:
    """The components that a quantization to so many bits changes: the weights of their linear layers shrink."""
    if bits == BITS[AS_LOADED]:
        return {}
    changed: dict[str, nn.Module] = {}
    for name, part in _quantizable(model).items():
        linear = {id(layer.weight): layer.weight for layer in part.modules() if isinstance(layer, nn.Linear)}
        numbers = sum(weight.numel() for weight in linear.values())
        size = sum(weight.numel() * weight.element_size() for weight in linear.values())
        if numbers:
            changed[name] = Stored(resident_bytes([part], DEVICE)[1] - size + numbers * bits // 8)
    return changed


def _scores(skeleton: Skeleton, workload: Workload, model: Model) -> int | None:
    """Bytes of one layer's attention scores over the picture alone: heads x cells x cells, in the weights' type."""
    family = model.family
    models = list(denoisers(skeleton).values())
    config: Any = getattr(models[0], "config", None) if models else None
    heads = config and (config.get("num_attention_heads") or config.get("n_heads"))
    patch = config and (config.get("patch_size") or config.get("all_patch_size"))
    edge = 2 if family.layout == "packed" else patch[-1] if isinstance(patch, tuple | list) else patch
    if not isinstance(heads, int) or not isinstance(edge, int) or not family.latent_stride or not workload.width:
        return None
    cells = (workload.width // family.latent_stride // edge) * (workload.height // family.latent_stride // edge)
    frames = 1 + (workload.frames - 1) // max(1, family.temporal_stride)
    return int(heads * (cells * frames) ** 2 * DTYPE.itemsize)

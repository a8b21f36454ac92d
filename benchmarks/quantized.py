"""An architecture several times on one device, plain and quantized, so that both can be measured in turn.

All are built from the same random weights. Quantizing belongs to loading: there is no way back, hence the second copy.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..callbacks import Callbacks
from ..comparison.architectures import Architecture, build
from ..comparison.choices import PLAIN, parse, settings_of
from ..errors import FastDiffusersError
from ..fallback import describe
from ..optimizations import attention
from ..optimizations.quantization.quantize import quantize_loaded
from ..optimizations.settings import OptimizationSettings
from ..optimizations.tuning.meters import MemoryMeter, PeakMemory, synchronize
from ..pipelines.generate import run_loaded
from ..pipelines.types import LoadedPipeline, LoadKey, PipelineHandle, SampleRequest, SampleResult

QUANTIZATIONS: Mapping[str, str] = {
    "fp8": "torchao-fp8-dynamic",
    "fp8-weights": "torchao-fp8",
    "fp8-layers": "layerwise-fp8",
    "int8": "sdnq-int8",
    "int8-torchao": "torchao-int8",
    "uint4": "sdnq-uint4",
}
"""Names for tables, and the schemes that they stand for."""

HEAD_SIZE = 128
"""Channels of an attention head, in all the architectures."""


def quantization_of(name: str) -> str:
    """What a compared name is quantized to: "fp8" for "fp8+compile", "" for "compile"."""
    first = name.partition("+")[0]
    return first if first in QUANTIZATIONS else ""


def parse_names(text: str, works: Callable[[Iterable[str]], list[str]] = list) -> list[str]:
    """`choices.parse` for a list in which names may begin with a quantization; those come last.

    Raises:
        InputError: as `choices.parse`.
    """
    parts = [part.strip().lower() for part in text.split(",")]
    quantized = list(dict.fromkeys(part for part in parts if quantization_of(part)))
    for name in quantized:
        settings_of(name.partition("+")[2] or PLAIN, OptimizationSettings.plain())
    others = [part for part in parts if part not in quantized]
    return [*(parse(",".join(others), works) if any(others) or not quantized else [PLAIN]), *quantized]


class NotAvailableError(FastDiffusersError):
    """This machine cannot run a row; the message says why."""


class Twins:
    """A plain pipeline and its quantized twins.

    Args:
        architecture: what is built.
        device: "cuda:0", "cpu".
        dtype: of the plain one, "bfloat16", ...
        full: in its published size; else in the small one.
    """

    def __init__(self, architecture: Architecture, device: str, dtype: str, full: bool) -> None:
        self._architecture, self._device, self._dtype, self._full = architecture, device, dtype, full
        self._pipelines: dict[LoadKey, LoadedPipeline | NotAvailableError] = {}
        self._kernels = attention.available(torch.device(device), getattr(torch, dtype), HEAD_SIZE)
        self.sizes: dict[LoadKey, int] = {}
        """Bytes of each pipeline on the device; 0 where the device does not tell."""
        self.facts: dict[str, dict[str, Any]] = {}
        """What was quantized, by name: the scheme, the layers of each component, seconds, or why it could not be."""
        self.running: LoadKey | None = None
        before = self._allocated()
        self.plain = build(architecture, device, dtype, full)
        self._keep(self.plain.key, self.plain, before)

    def add(self, names: Iterable[str]) -> dict[str, PipelineHandle]:
        """Build quantized twins. What this machine cannot do fails with the reason when it is that one's turn.

        Args:
            names: of `QUANTIZATIONS`.
        """
        handles = {}
        for name in names:
            scheme = QUANTIZATIONS[name]
            key = replace(self.plain.key, quantization=scheme)
            handles[name] = PipelineHandle(key, memory_mode="gpu")
            before, started = self._allocated(), time.perf_counter()
            twin: LoadedPipeline | NotAvailableError
            try:
                twin, layers = self._quantized(key)
                self.facts[name] = {"scheme": scheme, "layers": layers, "seconds": time.perf_counter() - started}
            except Exception as error:  # noqa: BLE001 - what cannot be had is a row with the reason
                twin = NotAvailableError(str(error) if isinstance(error, FastDiffusersError) else describe(error))
                self.facts[name] = {"scheme": scheme, "problem": str(twin)}
            self._keep(key, twin, before)
        return handles

    def generate(
        self, handle: PipelineHandle, request: SampleRequest, settings: OptimizationSettings, callbacks: Callbacks
    ) -> SampleResult:
        """One run; what would fall back is refused before it costs one.

        Raises:
            NotAvailableError: the quantization or the attention kernel cannot be had here.
        """
        self.running = handle.key
        pipeline = self._pipelines[handle.key]
        if isinstance(pipeline, NotAvailableError):
            raise NotAvailableError(str(pipeline))
        if refusal := self._kernels.get(settings.attention, ""):
            raise NotAvailableError(refusal)
        return run_loaded(pipeline, handle, request, settings, callbacks)

    def _quantized(self, key: LoadKey) -> tuple[LoadedPipeline, dict[str, str]]:
        twin = build(self._architecture, self._device, self._dtype, self._full)
        layers = quantize_loaded(twin.pipeline, key.quantization, dtype=twin.dtype, device=self._device)
        return replace(twin, key=key), layers

    def _keep(self, key: LoadKey, pipeline: LoadedPipeline | NotAvailableError, before: int) -> None:
        self._pipelines[key] = pipeline
        self.sizes[key] = self._allocated() - before

    def _allocated(self) -> int:
        if torch.device(self._device).type != "cuda":
            return 0
        gc.collect()
        synchronize(torch.device(self._device))
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self._device)


class OwnMemory:
    """Peaks without the pipelines that lie on the device and wait for their turn: what a row would take by itself.

    Main memory is the whole process's.

    Args:
        meter: sees everything.
        twins: tells who runs and how large the others are.
    """

    def __init__(self, meter: MemoryMeter, twins: Twins) -> None:
        self._meter, self._twins = meter, twins

    def empty(self) -> None:
        self._meter.empty()

    def reset(self) -> None:
        self._meter.reset()

    def sample(self) -> None:
        self._meter.sample()

    def peak(self) -> PeakMemory:
        peak = self._meter.peak()
        waiting = sum(size for key, size in self._twins.sizes.items() if key != self._twins.running)
        without = lambda seen: None if seen is None else max(0, seen - waiting)
        return PeakMemory(without(peak.allocated), without(peak.reserved), peak.host)

"""The key under which "auto" finds what was measured of a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ..cache_folder import device_name, software
from ..optimizations.settings import OptimizationSettings, Workload
from ..optimizations.tuning.key import TuningKey, shape_bucket
from .types import PipelineHandle


def tuning_key(handle: PipelineHandle, workload: Workload, settings: OptimizationSettings) -> TuningKey:
    """The key under which measurements of this run are kept."""
    key = handle.key
    files = hashlib.sha256(f"{key.revision} {key.identity}".encode()).hexdigest()[:8]
    loras = f" + {len(handle.loras)} LoRA" if handle.loras else ""
    return TuningKey(
        device=device_name(torch.device(key.device)),
        software=software(),
        model=f"{_name(key.source)}@{files}{loras}",
        dtype=key.dtype,
        quantization=key.quantization,
        memory_mode=handle.placing(settings).memory_mode,
        shape=shape_bucket(workload),
    )


def _name(source: str) -> str:
    """A model's name without the folders around it; Hub ids and tiny pipelines as they are."""
    path = Path(source)
    return path.name if path.is_absolute() else source

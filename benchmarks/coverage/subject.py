"""A pipeline of a case as the pack holds it, and its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...optimizations.settings import OptimizationSettings
from ...pipelines.generate import run_loaded
from ...pipelines.types import LoadedPipeline, PipelineHandle, SampleResult
from .inputs import Translated

PLAIN = OptimizationSettings.plain(memory_mode="gpu")


@dataclass
class Subject:
    """Attributes: loaded, whose family is given what no request carries; handle; asked: the case's inputs."""

    loaded: LoadedPipeline
    handle: PipelineHandle
    asked: Translated

    def run(self, settings: OptimizationSettings = PLAIN, **callbacks: Any) -> SampleResult:
        torch.manual_seed(0)
        return run_loaded(self.loaded, self.handle, self.asked.request, settings, **callbacks)

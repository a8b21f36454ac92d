"""What the results that a run follows were measured with, where the run has something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...optimizations.settings import OptimizationSettings, Workload
    from ...pipelines.types import PipelineHandle, SampleResult

_NAMES = ("model", "LoRA", "dtype", "quantization", "memory mode", "size", "device", "software")


def note_other_measurements(
    path: Path | None, handle: PipelineHandle, settings: OptimizationSettings, result: SampleResult
) -> None:
    """Say in the report of a run in what it differs from the measurement whose recommendation it followed.

    Args:
        path: the results.json that was followed, None for none.
        settings: of the run. Sizes differ where "auto" would not take what was measured at one for the other.
    """
    if path is None:
        return
    from ...optimizations.tuning.key import shape_bucket
    from ...pipelines import lora
    from ...pipelines.loading.small_files import read_json
    from ...pipelines.tuning_key import tuning_key

    facts: Any = read_json(path).get("facts")
    facts = facts if isinstance(facts, dict) else {}
    here = tuning_key(handle, _made(result), settings)
    measured = {name: str(facts.get(name, "none")) for name in _NAMES} | {"size": shape_bucket(_measured(facts))}
    own = {"size": here.shape, "LoRA": lora.names(handle.loras) or "none"}
    ours = {name: own.get(name) or str(getattr(here, name.replace(" ", "_"))) for name in _NAMES}
    others = [f"{name} {measured[name]}, here {ours[name]}" for name in _NAMES if measured[name] != ours[name]]
    if others:
        result.report.note(f"recommended: {path.name} was measured on something else: {'; '.join(others)}.")


def _made(result: SampleResult) -> Workload:
    """What a run made; its width is 0 where its report names no size."""
    from ...optimizations.settings import Workload

    edges = [int(edge) for edge in re.findall(r"\d+", str(result.report.facts.get("size", "")))]
    width, height, frames = (*edges, 1)[:3] if len(edges) > 1 else (0, 0, 1)
    return Workload(width, height, frames, batch=len(result.seeds))


def _measured(facts: dict[str, Any]) -> Workload:
    """What a benchmark made, as it describes its work: "64x64, 5 frames, 2 steps, batch 2"."""
    from ...optimizations.settings import Workload

    def found(pattern: str, otherwise: int) -> int:
        match = re.search(pattern, str(facts.get("work", "")))
        return int(match[1]) if match else otherwise

    size = found(r"(\d+)x\d+", 0), found(r"\d+x(\d+)", 0)
    return Workload(*size, found(r"(\d+) frames", 1), batch=found(r"batch (\d+)", 1))

"""A batch spread over workers: what travels to one of them for an item, what it makes of it, and the items together."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..callbacks import Callbacks
from ..optimizations.settings import OptimizationSettings
from ..pipelines.types import LoadKey, PipelineHandle, SampleRequest, SampleResult
from ..report import OptimizationReport
from ..torchvision_ops import declare_torchvision_ops
from . import parcel
from .places import folder_for, sees

if TYPE_CHECKING:
    import torch

BATCH = "batch.safetensors"
"""In the folder of a run, as `parcel` writes them: handle, request, settings, and the folder of measurements or ""."""
RESULT = "result.safetensors"
"""In the place of an item: its `SampleResult`."""
TRAVELLED = "its pictures came as 16-bit numbers: {} does not share this machine's temporary folder"


@dataclass(frozen=True)
class Errand:
    """One attempt at one item of a batch.

    Attributes:
        index: of the item in the batch, from 0.
        place: folder for its result, beside the batch's file; a worker that shares it (see `places.sees`) reads and
            writes there itself.
        mark: what `place` is known by.
        batch: Ray's reference to the bytes of the batch's file, for workers that do not; None where all do.
    """

    index: int
    place: Path
    mark: str
    batch: Any = None


class BatchWork:
    """What a worker does for an item: the same as ComfyUI's own process would."""

    previews = True

    def __init__(self) -> None:
        declare_torchvision_ops()

    def __call__(
        self, errand: Errand, callbacks: Callbacks, facts: dict[str, Any]
    ) -> tuple[tuple[bytes | None, dict[str, float]], float]:
        """Make an item.

        Returns:
            The bytes of its result's file where this worker does not share the driver's folder, and the seconds of its
            stages; and the seconds that the load took.
        """
        from ..cache_folder import use_folder
        from ..pipelines.generate import generate
        from ..pipelines.loading.loader import family_of_key
        from ..pipelines.requested.item import item_of_batch

        handle, request, settings, measurements = _read_batch(errand)
        if measurements and sees(errand.place, errand.mark):
            use_folder(Path(measurements))
        handle = replace(handle, key=on_this_machine(handle.key))
        item = item_of_batch(family_of_key(handle.key), request, errand.index)
        result = generate(handle, item, settings, callbacks)
        result.report.facts.update(facts)
        seconds: dict[str, float] = dict(result.report.facts.get("seconds", {}))
        with folder_for(errand.place, errand.mark) as (folder, shared):
            if not shared and result.frames is not None:
                result.frames = result.frames.half()
                result.report.note(TRAVELLED.format(facts.get("worker", "the worker")))
            parcel.write(folder / RESULT, result)
            content = None if shared else (folder / RESULT).read_bytes()
        return (content, seconds), seconds.get("load", 0.0)


def on_this_machine(key: LoadKey) -> LoadKey:
    """The key with what "auto" means here."""
    from ..pipelines.loading.devices import resolve_device, resolve_dtype

    device = resolve_device(key.device)
    return replace(key, device=device, dtype=resolve_dtype(key.dtype, device))


def _read_batch(errand: Errand) -> tuple[PipelineHandle, SampleRequest, OptimizationSettings, str]:
    if sees(errand.place, errand.mark):
        found: tuple[PipelineHandle, SampleRequest, OptimizationSettings, str]
        found = parcel.read(errand.place.parent / BATCH)
        return found
    import ray

    with tempfile.TemporaryDirectory(prefix="fastdiffusers_") as name:
        (Path(name) / BATCH).write_bytes(ray.get(errand.batch))
        found = parcel.read(Path(name) / BATCH)
    return found


def joined(items: Sequence[SampleResult], who: Mapping[int, str], cluster: str) -> SampleResult:
    """The items of a batch, in their order, as one result.

    Args:
        who: the worker that made each item.
        cluster: what the user calls it, for the report.
    """
    first = items[0]
    return SampleResult(
        frames=_together([item.frames for item in items]),
        latent=_together([item.latent for item in items]),
        frame_rate=first.frame_rate,
        seeds=tuple(seed for item in items for seed in item.seeds),
        step_seconds=[seconds for item in items for seconds in item.step_seconds],
        stage_seconds=_sums([item.stage_seconds for item in items]),
        report=_reports([item.report for item in items], [item.seeds[0] for item in items], who, cluster),
        audio=_sounds(items),
        step_experts=tuple(expert for item in items for expert in item.step_experts),
    )


def _together(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    import torch

    found = [tensor for tensor in tensors if tensor is not None]
    if len(found) < len(tensors):
        return None
    wide = torch.float32 if any(tensor.dtype == torch.float32 for tensor in found) else found[0].dtype
    return torch.cat([tensor.to(wide) for tensor in found])


def _sounds(items: Sequence[SampleResult]) -> dict[str, Any] | None:
    sounds = [item.audio for item in items if item.audio is not None]
    if len(sounds) < len(items):
        return None
    return {**sounds[0], "waveform": _together([sound["waveform"] for sound in sounds])}


def _sums(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in seconds for name in each)
    return {name: sum(each.get(name, 0.0) for each in seconds) for name in names}


def _reports(
    reports: Sequence[OptimizationReport], seeds: Sequence[int], who: Mapping[int, str], cluster: str
) -> OptimizationReport:
    """The first item's report, with what was otherwise in the others, and which worker made what."""
    first = reports[0]
    whole = OptimizationReport(list(first.records), [], dict(first.facts))
    for index, report in enumerate(reports):
        for note in report.notes:
            everywhere = all(note in each.notes for each in reports)
            whole.note(note if everywhere else f"image {index + 1}: {note}")
        for record in report:
            if record.name not in first or first[record.name].applied != record.applied:
                why = f": {record.reason}" if record.reason else ""
                whole.note(f"image {index + 1} ({who[index]}): {record.name} {record.applied}{why}")
    for name in ("worker", "load_seconds", "loaded_at"):
        whole.facts.pop(name, None)
    whole.facts["cluster"] = cluster
    whole.facts["seeds"] = list(seeds)
    made: dict[str, list[int]] = {}
    for index, worker in sorted(who.items()):
        made.setdefault(worker, []).append(seeds[index])
    whole.facts["seeds by worker"] = made
    loads = Counter(who[index] for index, each in enumerate(reports) if "load" in each.facts.get("seconds", {}))
    whole.facts["loads by worker"] = dict(loads)
    seconds = [sum(report.facts.get("seconds", {}).values()) for report in reports]
    whole.facts["seconds by image"] = [round(each, 4) for each in seconds]
    whole.facts["devices"] = list(dict.fromkeys(str(report.facts.get("device", "")) for report in reports))
    return whole

"""A host's side of one picture over several cards: made by processes of their own, or here where that cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...callbacks import Callbacks
from ...optimizations.settings import OptimizationSettings
from ...pipelines.types import PipelineHandle, SampleRequest, SampleResult
from ...report import OptimizationRecord
from ..child import client
from ..settings import ClusterSettings
from .choice import AUTO, NAME, placed, way_for, without_branches
from .run import WholeRun

if TYPE_CHECKING:
    from ...pipelines.families import Family


def generate_together(
    cluster: ClusterSettings,
    handle: PipelineHandle,
    request: SampleRequest,
    settings: OptimizationSettings,
    callbacks: Callbacks,
    folder: Path,
    alone: Callable[[], SampleResult],
    measurements: Path | None = None,
    make_room: Callable[[], None] = lambda: None,
) -> SampleResult:
    """`pipelines.generate.generate`, each call of the denoiser split over several processes of this machine.

    Args:
        cluster: from `choice.parallel_settings`.
        handle: its device is "auto", or "cpu". A VAE of the host's stays here.
        folder: where temporary files of the run go, results among them.
        alone: makes it in this process, where it cannot be had otherwise.
        measurements: the host's, for the processes.
        make_room: takes what the host has on the cards off them.

    Returns:
        The result. The record "parallel" of its report says what was split, or why nothing was.

    Raises:
        InputError: bad input, before anything starts.
        ClusterError: one of the processes has failed or ended.
        Exception: whatever `callbacks.check_cancel` raises, once all have stopped; they keep the model.
    """
    from ...pipelines.generate import check_before_load
    from ...pipelines.loading.loader import family_of_key
    from ...pipelines.lora import check_loras
    from ...pipelines.requests import ready

    family = family_of_key(handle.key)
    one_branch = without_branches(family, request)
    sized, why = placed(cluster, handle.key, one_branch)
    why = why or _known_not_to_pay(sized, handle, family, request, settings, guided=not one_branch)
    if why:
        result = alone()
        failed = cluster.parallel != AUTO
        result.report.set(OptimizationRecord(NAME, cluster.parallel, "off", why, failed=failed))
        if not failed:  # what "auto" declines is in the table alone, and this one is asked for
            result.report.note(f"parallel auto is off: {why}.")
        return result
    check_before_load(handle.key, ready(family, request), handle.loras)
    check_loras(handle.loras)
    make_room()
    kept = replace(handle, vae=None)
    return client.generate_on(sized, kept, request, settings, callbacks, folder, measurements, WholeRun, cluster)


def _known_not_to_pay(
    cluster: ClusterSettings,
    handle: PipelineHandle,
    family: Family,
    request: SampleRequest,
    settings: OptimizationSettings,
    guided: bool,
) -> str:
    """What "auto" has found here before, where it is that one card is as fast: nothing has to be started to know it."""
    from ...pipelines.loading.described import denoiser_of_key
    from ...pipelines.loading.devices import resolve_device
    from ...pipelines.requests import ready
    from .making import without
    from .remembered import NOT_FASTER, Remembered, because, how_split, on_device

    denoiser = denoiser_of_key(handle.key)
    if cluster.parallel != AUTO or denoiser is None:
        return ""
    count = cluster.workers or 1
    way, why = way_for(AUTO, *denoiser, count)
    if why:
        return ""
    completed = ready(family, request)
    here = on_device(handle, resolve_device(handle.key.device))
    how = how_split(way, count, cluster.cpus is None, guided)
    row = Remembered(here, completed, without(settings), how).row()
    return because(row) if row is not None and row.verdict in NOT_FASTER else ""

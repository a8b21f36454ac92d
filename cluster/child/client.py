"""A host's side of a cluster: its batches, each item made by a worker as `pipelines.generate.generate` makes it here.

The driver's process stays between runs while the same cluster is asked for, and its workers keep their models.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

from ...callbacks import Callbacks
from ...errors import InputError
from ...optimizations.settings import OptimizationSettings
from ...pipelines.types import PipelineHandle, SampleRequest, SampleResult
from ..connection import ClusterError, require_ray
from ..settings import ClusterSettings
from .process import DriverProcess
from .run import LISTEN_SECONDS, DriverEndedError, GoneError, Run

log = logging.getLogger(__name__)

MOST_STARTS = 5
"""Ray gives its own processes half a minute, which a busy machine may not keep to."""
SEVERAL_CARDS = "every worker of a cluster has a card of its own"

_lock = threading.RLock()
_current: DriverProcess | None = None
_wanted: Counter[ClusterSettings] = Counter()


def generate_on(
    cluster: ClusterSettings,
    handle: PipelineHandle,
    request: SampleRequest,
    settings: OptimizationSettings,
    callbacks: Callbacks,
    folder: Path,
    measurements: Path | None = None,
    take: type[Run] = Run,
    asked: ClusterSettings | None = None,
) -> SampleResult:
    """Make a batch on a cluster: item i, with the seed `request.seed` + i, by whichever worker is free.

    Args:
        handle, request: as `check` has found them good. A VAE of the host's stays here.
        folder: where temporary files of the run go, results among them.
        measurements: the host's, for workers of the same machine.
        take: how the batch is sent and taken back.
        asked: the cluster as `keep_while_alive` knows it, where `cluster` says more than that.

    Returns:
        The items in their order, as one result; the report says which worker made what.

    Raises:
        InputError: the cluster cannot be had so.
        ClusterError: an item, or the cluster itself, has failed.
        Exception: whatever `callbacks.check_cancel` raises, once the workers have stopped; they keep their models.
    """
    while not _lock.acquire(timeout=LISTEN_SECONDS):
        callbacks.check_cancel()
    try:
        batch = replace(handle, vae=None), request, settings, str(measurements or "")
        for left in reversed(range(MOST_STARTS)):
            driver = _driver(cluster, folder, asked or cluster)
            try:
                return take(driver, cluster, callbacks).make(batch, request.batch)
            except GoneError:
                log.info("Ray has ended, or was not there in time: %s is started anew", cluster.called)
                end()
                if not left:
                    raise ClusterError(f"{cluster.called} was not there after {MOST_STARTS} starts") from None
            except DriverEndedError:
                end()
                raise
        raise AssertionError("the last start raises")
    finally:
        _lock.release()


def check(handle: PipelineHandle, request: SampleRequest) -> None:
    """Find out before anything starts what cannot be done, from configuration files alone.

    Args:
        handle: its device is a worker's: "auto", or "cpu".

    Raises:
        MissingDependencyError: Ray is not installed.
        InputError: it cannot be done so.
    """
    from ...pipelines.loading.loader import family_of_key
    from ...pipelines.lora import check_loras
    from ...pipelines.requested.before_load import check_before_load
    from ...pipelines.requests import ready

    require_ray()
    if handle.key.device not in ("auto", "cpu"):
        raise InputError("device", handle.key.device, SEVERAL_CARDS, "choose auto where the model is loaded")
    check_before_load(handle.key, ready(family_of_key(handle.key), request), handle.loras)
    check_loras(handle.loras)


def keep_while_alive(settings: ClusterSettings) -> ClusterSettings:
    """Keep the cluster's driver and workers for as long as such an object exists, and return it."""
    with _lock:
        _wanted[settings] += 1
    weakref.finalize(settings, _unwanted, replace(settings)).atexit = False
    return settings


def end(wait: bool = False) -> None:
    """End the driver and its workers, if there are any."""
    global _current
    with _lock:
        driver, _current = _current, None
    if driver is not None:
        driver.leave(wait)


def running() -> DriverProcess | None:
    """The driver that is there."""
    return _current


def _unwanted(settings: ClusterSettings) -> None:
    _wanted[settings] -= 1
    driver = _current
    if _wanted[settings] <= 0 and driver is not None and driver.asked == settings:
        # A finalizer may run anywhere, this lock's holder included: it must not wait.
        threading.Thread(target=_end_unwanted, args=(settings,), daemon=True).start()


def _end_unwanted(settings: ClusterSettings) -> None:
    with _lock:
        if _wanted[settings] <= 0 and _current is not None and _current.asked == settings:
            end()


def _driver(cluster: ClusterSettings, folder: Path, asked: ClusterSettings) -> DriverProcess:
    global _current
    if _current is not None and (_current.settings != cluster or not _current.running):
        end(wait=_current.running)  # another cluster's workers hold the cards
    if _current is None:
        _current = DriverProcess(cluster, folder, asked)
    return _current

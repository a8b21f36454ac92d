"""What "auto" has found on this machine, kept in the store where the verdicts on compiled code are."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from ...optimizations.settings import OptimizationSettings, Workload
from ...optimizations.tuning.decide import settings_label
from ...optimizations.tuning.key import TuningKey
from ...optimizations.tuning.store import Row, Store, default_store
from ...pipelines.loading.devices import resolve_dtype
from ...pipelines.tuning_key import tuning_key
from ...pipelines.types import PipelineHandle, SampleRequest
from .choice import NAME
from .probation import SAID, Probation

NOT_FASTER = ("slower", "noise")
"""Verdicts after which it is made on one card. A failure may be another one's next time, and is not kept."""


class Remembered:
    """The verdict on runs of one kind.

    Args:
        handle: its key's device and dtype are those of the first process.
        request: without gaps.
        settings: as the processes apply them.
        how: what is compared with one process: "cfg over 2 cards, guided", say.
        store: None is the process's own.
    """

    def __init__(
        self,
        handle: PipelineHandle,
        request: SampleRequest,
        settings: OptimizationSettings,
        how: str,
        store: Store | None = None,
    ) -> None:
        size = Workload(request.width or 0, request.height or 0, request.num_frames or 1, request.batch)
        self._key: TuningKey = tuning_key(handle, size, settings)
        self._one = settings_label(settings)
        self._all = tuple(sorted((*self._one, (NAME, how))))
        self._store = store or default_store()

    def row(self) -> Row | None:
        """What is known, if anything is."""
        return next((row for row in self._store.find(self._key) if row.settings == self._all), None)

    def keep(self, probation: Probation) -> None:
        """Keep a verdict that a run has brought."""
        whole, split = probation.whole, probation.split
        if probation.verdict not in ("faster", *NOT_FASTER) or not whole or not split:
            return
        gain = 1 - median(split) / median(whole)
        self._store.add(
            Row(
                self._key,
                self._all,
                probation.verdict,
                gain=gain,
                step_seconds=median(split),
                runs=len(split),
                source="probation",
                reason=probation.figures,
            )
        )


def on_device(handle: PipelineHandle, device: str) -> PipelineHandle:
    """The handle as a process with that device has it."""
    return replace(handle, key=replace(handle.key, device=device, dtype=resolve_dtype(handle.key.dtype, device)))


def how_split(way: str, count: int, cards: bool, guided: bool) -> str:
    """What a verdict is about. A run with guidance and one without take different steps."""
    return f"{way} over {count} {'cards' if cards else 'processes'}{', guided' if guided else ''}"


def because(row: Row) -> str:
    """Why a row leads to what it leads to, in one line."""
    return f"{SAID.get(row.verdict, row.verdict)} on {row.when[:10]}: {row.reason}"

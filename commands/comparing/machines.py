"""`bench --cluster`: the same comparison on every kind of machine, one table for each, what was learnt in one store."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...callbacks import Callbacks, Progress
from ...cluster.connection import connected
from ...cluster.each import ask_each, gather
from ...cluster.fleet import RayFleet
from ...cluster.settings import ClusterSettings
from ...errors import FastDiffusersError
from ..libraries import prepare_libraries
from .job import comparison_run

if TYPE_CHECKING:
    from ...comparison.result import Comparison
    from ...optimizations.tuning.store import Row

Show = Callable[[str, Progress | None], None]
"""Shows how far a worker is, by its name."""


@dataclass(frozen=True)
class Measured:
    """What one kind of machine has shown.

    Attributes:
        kind: as the store names it: "NVIDIA H100, 80 GiB".
        worker: the one that measured.
        comparison: None where nothing was measured.
        rows: for the store.
        problem: why it was not measured, or not to the end; "" where it was.
    """

    kind: str
    worker: str
    comparison: Comparison | None
    rows: tuple[Row, ...] = ()
    problem: str = ""


class ComparingWork:
    """What a worker does: says which kind of machine it is (None), or measures (the options of `bench`)."""

    def __init__(self) -> None:
        prepare_libraries(verbose=False)

    def __call__(
        self, args: argparse.Namespace | None, callbacks: Callbacks, facts: dict[str, Any]
    ) -> tuple[Any, float]:
        """The kind; or the comparison and the rows that were learnt. What was learnt is kept on this machine, too."""
        import torch

        from ...cache_folder import device_name
        from ...optimizations.tuning.store import FILE_NAME, Store, default_store
        from ...pipelines.loading.devices import resolve_device

        if args is None:
            return device_name(torch.device(resolve_device("auto"))), 0.0
        with tempfile.TemporaryDirectory(prefix="fastdiffusers_") as name:
            learnt = Store(Path(name) / FILE_NAME)
            run = comparison_run(args, callbacks, learnt)
            try:
                run.run(callbacks)
            finally:
                rows = tuple(learnt.rows())
                keep(() if args.no_store else rows, default_store())
        return (run.result(), rows), 0.0


def keep(rows: Sequence[Row], store: Any) -> int:
    """Put what was learnt elsewhere into a store, and say how much of it was not there."""
    known = set(store.rows()) if rows else set()
    new = [row for row in rows if row not in known]
    for row in new:
        store.add(row)
    return len(new)


def compare_on_cluster(
    args: argparse.Namespace, settings: ClusterSettings, show: Show, should_stop: Callable[[], bool] = lambda: False
) -> tuple[list[Measured], list[str]]:
    """Measure on one worker of each kind, all kinds at the same time.

    Returns:
        What was found, by kind; and what is to be said of workers that could not be asked.

    Raises:
        ClusterError, InputError, MissingDependencyError: there is no such cluster, or it has no workers.
        KeyboardInterrupt: it was stopped before anything was measured.
    """
    with connected(settings) as ray, closing(RayFleet(ray, settings, ComparingWork)) as fleet:
        return compare_on(fleet, args, settings.patience, show, should_stop)


def compare_on(
    fleet: Any, args: argparse.Namespace, patience: float, show: Show, should_stop: Callable[[], bool]
) -> tuple[list[Measured], list[str]]:
    """The same with the workers of a fleet."""
    notes = gather(fleet, patience, should_stop)
    kinds: dict[str, Any] = {}
    for member, (event, *rest) in ask_each(fleet, dict.fromkeys(fleet.members), should_stop):
        if event == "done":
            kinds.setdefault(rest[0], member)
        elif event == "stopped":
            raise KeyboardInterrupt
        elif event != "tick":
            notes.append(f"{member.name} could not be asked: {rest[-1]}")
    names = {member: kind for kind, member in sorted(kinds.items())}
    found = []
    for member, (event, *rest) in ask_each(fleet, dict.fromkeys(names, args), should_stop):
        kind = names[member]
        if event == "tick":
            show(kind, rest[0])
            continue
        show(kind, None)
        if event == "done":
            comparison, rows = rest[0]
            found.append(Measured(kind, member.name, comparison, rows))
        else:
            found.append(Measured(kind, member.name, None, (), str(rest[-1]) if rest else "it was stopped"))
    return sorted(found, key=lambda each: each.kind), notes


def folder_name(kind: str) -> str:
    """A folder for the results of a kind: "nvidia_h100_80_gib"."""
    return re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")


class KindsProgress:
    """One line on stderr with what each kind of machine is at; nothing where that is no terminal or `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._lines: dict[str, str] = {}

    def __enter__(self) -> Show:
        return self._show

    def __exit__(self, *error: object) -> None:
        if self._lines:
            sys.stderr.write("\n")

    def _show(self, kind: str, progress: Progress | None) -> None:
        if not self._shown:
            return
        step = f"{progress.stage} {progress.done}/{progress.total} {progress.message}" if progress else "ended"
        self._lines[kind] = f"{kind}: {step}".rstrip()
        sys.stderr.write(f"\r\033[K{' | '.join(self._lines.values())}")
        sys.stderr.flush()


class SomeNotMeasuredError(FastDiffusersError):
    """Some kinds of machines could not be measured. What the others have shown is written."""

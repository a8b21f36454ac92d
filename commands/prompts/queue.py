"""`generate --prompts`: a file of prompts, worked through here, on a cluster or by a server, and resumable."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...callbacks import Callbacks, Progress
from ...cluster.settings import ClusterSettings
from ...cluster.worker import as_text
from ...errors import FastDiffusersError, InputError, ModelFileError
from ..libraries import prepare_libraries
from .arguments import LineParser, cluster_settings
from .engine_options import engine_of
from .items import Item, in_good_order, read_items
from .lines import in_line, read_lines
from .make import Maker
from .progress import QueueProgress
from .remote import make_on_cluster
from .results import DiskFullError, Results, disk_full, prepare_folder, results_in
from .served import ServedMaker
from .stopping import Stopping


class SomeFailedError(FastDiffusersError):
    """Some items could not be made. The others are there."""


def work_through(args: argparse.Namespace) -> None:
    """Make every item of `--prompts` that is not there yet.

    Raises:
        InputError: the file, one of its lines, or the output folder; before anything is loaded.
        SomeFailedError: some items failed, and the others are done.
        DiskFullError: there is no room for more.
        KeyboardInterrupt: it was stopped; what is done is done.
    """
    if args.report is not None:
        raise InputError("--report", str(args.report), "every result has its own beside it", "leave it out")
    parser = LineParser()
    items = read_items(args.prompts, read_lines(args.prompts, parser), parser, args)
    prepare_libraries(args.verbose)
    cluster, engine = cluster_settings(args), engine_of(args)
    maker = Maker() if engine is None else ServedMaker(engine)
    for item in items:
        with in_line(args.prompts, item.line), elsewhere(cluster):
            maker.check(item)
    prepare_folder(args.output)
    with (
        Stopping(args.quiet) as stopping,
        results_in(args.output, args.resume, elsewhere=cluster is not None and not cluster.local) as results,
    ):
        todo = in_good_order([item for item in items if not results.has(item)])
        for item in todo:
            with in_line(args.prompts, item.line):
                results.check_targets(item)
        progress = QueueProgress(len(items), len(items) - len(todo), args.quiet)
        with progress:
            try:
                if cluster is None or not todo:
                    make_here(todo, maker, results, progress, stopping)
                else:
                    make_on_cluster(todo, cluster, results, progress, stopping)
            except KeyboardInterrupt:
                left = sum(not results.has(item) for item in items)
                raise KeyboardInterrupt(
                    f"{len(items) - left} of {len(items)} are done; --resume does the rest"
                ) from None
    conclude(args, items, results)


@contextmanager
def elsewhere(cluster: ClusterSettings | None) -> Iterator[None]:
    """Let pass what another machine may be able to read."""
    try:
        yield
    except ModelFileError:
        if cluster is None or cluster.local:
            raise


def make_here(
    items: Sequence[Item], maker: Maker, results: Results, progress: QueueProgress, stopping: Stopping
) -> None:
    """Make items one after the other, in this process. One that fails stops none of the others."""
    unreadable: dict[tuple[str, ...], str] = {}
    for item in items:
        stopping.check()
        if item.model in unreadable:
            progress.finished(item.name, results.give_up(item, None, unreadable[item.model]))
            continue

        def show(tick: Progress, item: Item = item) -> None:
            progress.working("", item.name, tick)

        place = results.place()
        try:
            with disk_full(results.folder):
                made = maker.make(item, place, Callbacks(show, stopping.check, previews=False))
            results.publish(item, made, place)
            if made.missing:
                results.fail(item, made.missing)
            progress.finished(item.name, f"failed: {made.missing}" if made.missing else made.summary)
        except DiskFullError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's, and is said with it
            text = as_text(error)
            if isinstance(error, ModelFileError):
                unreadable[item.model] = text
            progress.finished(item.name, results.give_up(item, place, text))


def conclude(args: argparse.Namespace, items: Sequence[Item], results: Results) -> None:
    """Say what was done. Raises SomeFailedError when some of it was not."""
    if not results.failures:
        if not args.quiet:
            print(f"{len(items)} of {len(items)} items are in {args.output}")
        return
    item, text = results.failures[0]
    count = len(results.failures)
    which = "" if count == 1 else ", the first of them"
    raise SomeFailedError(
        f"{count} of {len(items)} items failed{which} {item.name} ({args.prompts.name} line {item.line}): {text} "
        f"The manifest in {args.output} names {'it' if count == 1 else 'them'}; --resume tries again"
    )

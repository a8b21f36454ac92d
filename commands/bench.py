"""`fastdiffusers bench`: which settings are the fastest here, measured in pairs against the plain run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..comparison.choices import ALL, CHOICES, parse
from ..comparison.presets import PRESETS
from ..errors import InputError
from ..optimizations.settings import COMPILE_BACKENDS
from .comparing.job import compared_names, comparison_run
from .comparing.machines import KindsProgress, SomeNotMeasuredError, compare_on_cluster, folder_name, keep
from .files import check_folder_target, check_writable, make_folder, replacing, write_text
from .libraries import prepare_libraries
from .options import (
    FLOW_SHIFT_HELP,
    MODEL_HELP,
    add_lora_option,
    add_model_options,
    path_argument,
)
from .prompts.arguments import add_cluster_options, cluster_settings
from .prompts.items import make_absolute
from .prompts.stopping import Stopping
from .terminal import TerminalProgress

if TYPE_CHECKING:
    from ..cluster.settings import ClusterSettings
    from ..comparison.result import Comparison
    from ..comparison.run import ComparisonRun
    from ..optimizations.tuning.store import Row, Store

HELP = "measure which settings are the fastest here, and remember it for auto"
PROMPT = "a fox in the snow at dawn, detailed fur, soft light"
_OF_THE_STORE = {"forget": "forgets", "export": "copies", "show": "lists"}
"""Option of what was measured before -> what it does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH_OR_ID", help=MODEL_HELP)
    parser.add_argument(
        "--compare",
        metavar="NAMES",
        help=f"comma-separated, joined with + to combine: {', '.join(CHOICES)}; {ALL} (default): what works here",
    )
    known = "; ".join(f"{preset.name} ({preset.help})" for preset in PRESETS.values())
    parser.add_argument("--preset", metavar="NAME", help=f"a known case, whose work and choices are filled in: {known}")
    parser.add_argument(
        "--output", type=path_argument, metavar="FOLDER", help="for results.json, results.csv, chart.png and report.md"
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--runs", type=int, default=5, metavar="N", help="counted runs of each (default: 5)")
    measuring.add_argument("--time-limit", type=float, metavar="SECONDS", help="for everything after loading")
    measuring.add_argument(
        "--compile-backend", choices=COMPILE_BACKENDS, default="inductor", help="dynamo's backend for compile"
    )
    measuring.add_argument("--no-store", action="store_true", help="do not remember the result for auto")
    work = parser.add_argument_group("work (left out: what the model's family recommends)")
    work.add_argument("--prompt", default=PROMPT, metavar="TEXT")
    work.add_argument("--steps", type=int, metavar="N")
    work.add_argument("--guidance", type=float, metavar="SCALE")
    work.add_argument("--guidance-2", type=float, metavar="SCALE")
    work.add_argument("--width", type=int, metavar="PIXELS")
    work.add_argument("--height", type=int, metavar="PIXELS")
    work.add_argument("--num-frames", type=int, metavar="N")
    work.add_argument("--flow-shift", type=float, metavar="SHIFT", help=FLOW_SHIFT_HELP)
    work.add_argument("--batch", type=int, default=1, metavar="N")
    work.add_argument("--seed", type=int, default=0, metavar="N")
    work.add_argument(
        "--image", type=path_argument, metavar="FILE", help="for models that need one (default: a drawn picture)"
    )
    add_lora_option(parser)
    machines = parser.add_argument_group("several machines")
    add_cluster_options(
        machines, "measure on every kind of card or processor of a cluster: a table for each in --output"
    )
    store = parser.add_argument_group("what was measured before")
    store.add_argument("--show", action="store_true", help="list what is remembered")
    store.add_argument("--forget", action="store_true", help="forget what is remembered")
    store.add_argument("--export", type=path_argument, metavar="FILE", help="copy what is remembered to a file")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    if args.show or args.forget or args.export is not None:
        _store_command(args)
        return
    _check(args)
    cluster = cluster_settings(args)
    prepare_libraries(args.verbose)
    if cluster is not None:
        _run_on_cluster(args, cluster)
        return

    from ..optimizations.tuning.store import default_store
    from ..pipelines.loading.sources import is_local

    with TerminalProgress(args.quiet) as callbacks:
        if not is_local(args.model):
            _check_output(args)  # nothing is downloaded for results that have no place
        comparison = comparison_run(args, callbacks, None if args.no_store else default_store())
        _check_output(args)
        try:
            comparison.run(callbacks)
        finally:  # cancelled or not: what was measured is kept
            _write(comparison, args)


def _run_on_cluster(args: argparse.Namespace, cluster: ClusterSettings) -> None:
    """Measure on every kind of machine of a cluster, each with its folder and its table."""
    from ..comparison.table import as_table
    from ..optimizations.tuning.store import default_store

    _check_output(args)
    make_absolute(args)
    with Stopping(args.quiet) as stopping, KindsProgress(args.quiet) as show:
        found, notes = compare_on_cluster(args, cluster, show, lambda: stopping.asked)
    for each in found:
        if each.comparison is not None:
            make_folder(args.output)
            write_results(each.comparison, args.output / folder_name(each.kind))
            if not args.no_store:
                keep(each.rows, default_store())
            if not args.quiet:
                print(f"{each.kind} ({each.worker})\n\n{as_table(each.comparison)}\n")
    for note in notes:
        sys.stderr.write(f"{note}\n")
    if not args.quiet and any(each.comparison is not None for each in found):
        print(f"written to {args.output}")
    if stopping.asked:
        raise KeyboardInterrupt
    problems = [f"{each.kind} ({each.worker}): {each.problem}" for each in found if each.problem]
    if problems:
        raise SomeNotMeasuredError(f"{len(problems)} of {len(found)} kinds were not measured: {'; '.join(problems)}")


def _check(args: argparse.Namespace) -> None:
    """What can be wrong without a look at the model."""
    if args.model is None:
        raise InputError("model", "", "there is nothing to measure", "give --model PATH, or --show for what is known")
    parse(compared_names(args))


def _check_output(args: argparse.Namespace) -> None:
    if args.output is None:
        raise InputError("output", "", "there is no place for the results", "give --output FOLDER")
    check_folder_target("output", args.output)


def _write(comparison: ComparisonRun, args: argparse.Namespace) -> None:
    """Files and table, if anything was measured at all."""
    if not comparison.started:
        return
    found = comparison.result()
    write_results(found, args.output)
    if not args.quiet:
        from ..comparison.table import as_table

        print(as_table(found))
        print(f"\nwritten to {args.output}")


def write_results(comparison: Comparison, folder: Path) -> list[Path]:
    """Write results.json, results.csv, chart.png and report.md into `folder`, each completely or not at all."""
    from ..comparison.chart import chart
    from ..comparison.table import as_markdown

    make_folder(folder)
    texts = {
        "results.json": comparison.as_json(),
        "results.csv": comparison.as_csv(),
        "report.md": as_markdown(comparison, chart="chart.png"),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    with replacing(folder / "chart.png") as temporary:
        chart(comparison).save(temporary, format="PNG")
    return [folder / name for name in (*texts, "chart.png")]


def _check_alone(args: argparse.Namespace) -> None:
    """Raise InputError for an option beside those of the store, which would seem to say what of it is meant."""
    asked = [name for name in _OF_THE_STORE if getattr(args, name)]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name, usual in vars(parser.parse_args([])).items():
        value = getattr(args, name)
        if name not in _OF_THE_STORE and value != usual:
            reason = f"--{asked[0]} {_OF_THE_STORE[asked[0]]} what is remembered of all models"
            raise InputError(name, value, reason, f"leave out --{name.replace('_', '-')} or --{asked[0]}")


def _store_command(args: argparse.Namespace) -> None:
    from ..optimizations.tuning.store import default_store

    _check_alone(args)
    store = default_store()
    if args.export is not None:
        check_writable("export", args.export)
        if args.export.is_dir():
            raise InputError("export", str(args.export), "it is a folder, not a file", "add a file name")
        with replacing(args.export) as temporary:
            count = store.export(temporary)
        print(f"{count} measurements copied to {args.export}")
    if args.show:
        print(store_text(store))
    if args.forget:
        try:
            print(f"{store.forget()} measurements forgotten ({store.path})")
        except OSError as error:
            raise InputError(
                "forget", str(store.path), f"it cannot be changed ({error.strerror})", "check its permissions"
            ) from None


def store_text(store: Store) -> str:
    """What the store holds: one block per model, size and machine, plain first."""
    measured: dict[object, list[Row]] = {}
    for row in store.rows():
        measured.setdefault(row.key, []).append(row)
    if not measured:
        return f"nothing was measured yet ({store.path})"
    blocks = []
    for rows in measured.values():
        here = rows[0].key
        lines = [f"{here.model}, {here.shape}, {here.dtype}, {here.memory_mode} on {here.device}", f"  {here.software}"]
        lines += [f"  {_row_text(row)}" for row in sorted(rows, key=lambda row: -row.gain)]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, f"{sum(map(len, measured.values()))} measurements in {store.path}"])


def _row_text(row: Row) -> str:
    name = ", ".join(f"{key} {value}" for key, value in row.settings) or "plain"
    seconds = "" if row.run_seconds is None else f"  {row.run_seconds:.3g} s per run"
    step = "" if row.step_seconds is None else f"  {row.step_seconds:.3g} s per step"
    change = "" if row.verdict in ("plain", "failed") else f" {-row.gain:+.0%} time"
    return f"{name}: {row.verdict}{change}{seconds}{step}  ({row.source}, {row.when[:10]}){_reason(row)}"


def _reason(row: Row) -> str:
    return f": {row.reason}" if row.reason else ""

"""`fastdiffusers bench`: which settings are the fastest here, measured in pairs against the plain run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..comparison.choices import ALL, CHOICES, parse
from ..comparison.presets import PRESETS, preset
from ..errors import InputError
from ..optimizations.settings import COMPILE_BACKENDS, CompileSettings, OptimizationSettings
from .files import check_folder_target, check_writable, replacing, write_text
from .libraries import prepare_libraries
from .media import read_picture
from .options import (
    FLOW_SHIFT_HELP,
    MODEL_HELP,
    add_lora_option,
    add_model_options,
    lora_specs,
    path_argument,
    pipeline_handle,
    work_options,
)
from .terminal import TerminalProgress

if TYPE_CHECKING:
    from ..comparison.result import Comparison
    from ..comparison.run import ComparisonRun
    from ..optimizations.tuning.store import Row, Store
    from ..pipelines.types import PipelineHandle, SampleRequest

HELP = "measure which settings are the fastest here, and remember it for auto"
PROMPT = "a fox in the snow at dawn, detailed fur, soft light"


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
    loras = lora_specs(args)
    prepare_libraries(args.verbose)

    from ..comparison.run import ComparisonRun, with_picture
    from ..optimizations.tuning.candidates import Plan
    from ..optimizations.tuning.store import default_store
    from ..pipelines.loading.loader import family_of_key
    from ..pipelines.loading.sources import is_local
    from ..pipelines.requests import ready

    plan = Plan(runs=args.runs, time_limit=args.time_limit)
    chosen = preset(args.preset) if args.preset else None
    names, request = _names(args), _request(args)
    with TerminalProgress(args.quiet) as callbacks:
        if not is_local(args.model):
            _check_output(args)  # nothing is downloaded for results that have no place
        handle = replace(pipeline_handle(args, callbacks), loras=loras)
        family = family_of_key(handle.key)
        if chosen is not None:
            chosen.check(family.name)
        ready(family, with_picture(request, family))
        _check_output(args)
        comparison = ComparisonRun(
            handle,
            request,
            parse(names, lambda wanted: _working(wanted, handle)),
            plan,
            base=OptimizationSettings.plain(compile=CompileSettings(backend=args.compile_backend)),
            store=None if args.no_store else default_store(),
            combine_winners=ALL in names.split(","),
            notes=chosen.notes(loras) if chosen is not None else (),
        )
        try:
            comparison.run(callbacks)
        finally:  # cancelled or not: what was measured is kept
            _write(comparison, args)


def _check(args: argparse.Namespace) -> None:
    """What can be wrong without a look at the model."""
    if args.model is None:
        raise InputError("model", "", "there is nothing to measure", "give --model PATH, or --show for what is known")
    parse(_names(args))


def _check_output(args: argparse.Namespace) -> None:
    if args.output is None:
        raise InputError("output", "", "there is no place for the results", "give --output FOLDER")
    check_folder_target("output", args.output)


def _names(args: argparse.Namespace) -> str:
    if args.compare is None:
        return preset(args.preset).compare if args.preset else ALL
    return str(args.compare)


def _working(names: Iterable[str], handle: PipelineHandle) -> list[str]:
    import torch

    from ..comparison.run import working

    return working(names, torch.device(handle.key.device), getattr(torch, handle.key.dtype))


def _request(args: argparse.Namespace) -> SampleRequest:
    from ..pipelines.types import SampleRequest

    images = () if args.image is None else (read_picture(args.image, alpha=True),)
    request = SampleRequest(**work_options(args), images=images)
    return preset(args.preset).apply(request) if args.preset else request


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

    folder.mkdir(exist_ok=True)
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


def _store_command(args: argparse.Namespace) -> None:
    from ..optimizations.tuning.store import default_store

    store = default_store()
    if args.export is not None:
        check_writable("export", args.export)
        if args.export.is_dir():
            raise InputError("export", str(args.export), "it is a folder, not a file", "add a file name")
        print(f"{store.export(args.export)} measurements copied to {args.export}")
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

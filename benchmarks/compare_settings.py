"""What `flux_dev_1024.py` and `wan22_i2v.py` share: compare settings on an architecture, print the table, store it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch

from ..callbacks import Callbacks
from ..commands.bench import write_results
from ..commands.libraries import prepare_libraries
from ..commands.terminal import TerminalProgress
from ..comparison.choices import parse
from ..comparison.run import ComparisonRun, working
from ..comparison.table import as_table
from ..optimizations.measure import Plan
from ..pipelines.generate import run_loaded
from ..pipelines.loader import resolve_device, resolve_dtype
from ..pipelines.types import PipelineHandle, SampleRequest
from .architectures import NOTE, SMALL_NOTE, Architecture, build
from .common import RESULTS, store


def main(
    benchmark: str, architecture: Architecture, request: SampleRequest, small_request: SampleRequest, compare: str
) -> None:
    """Run as a script.

    Args:
        benchmark: name of the result files.
        architecture: what is built.
        request: the work in full size, on an accelerator.
        small_request: the work where there is none, or with --small.
        compare: the choices by default.
    """
    parser = argparse.ArgumentParser(description=f"{architecture.name}: which settings are the fastest")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compare", default=compare, metavar="NAMES", help=f"as for fastdiffusers bench ({compare})")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--time-limit", type=float, metavar="SECONDS")
    parser.add_argument("--small", action="store_true", help="the small size; always so on a processor")
    parser.add_argument("--output", type=Path, help="also write chart, report and csv into this folder")
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    full = not args.small and device != "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    loaded = build(architecture, device, dtype, full)
    handle = PipelineHandle(loaded.key, memory_mode="gpu")

    names = parse(args.compare, lambda choices: working(choices, torch.device(device), getattr(torch, dtype)))
    plan = Plan(runs=args.runs, time_limit=args.time_limit)
    run = ComparisonRun(
        handle,
        request if full else small_request,
        names,
        plan,
        generate=lambda _, work, settings, callbacks: run_loaded(loaded, handle, work, settings, callbacks),
        borrow=lambda key, callbacks: nullcontext(loaded),
    )
    with TerminalProgress() as callbacks:
        _run(run, callbacks)
    found = run.result()
    print(as_table(found))
    note = NOTE if full else SMALL_NOTE
    folder = RESULTS if full else args.output
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        print(store(benchmark, {"note": note, **found.as_dict()}, device, folder))
    if args.output is not None:
        write_results(found, args.output)


def _run(run: ComparisonRun, callbacks: Callbacks) -> None:
    """Ctrl-C ends the measurement; what was measured is printed and kept all the same."""
    try:
        run.run(callbacks)
    except KeyboardInterrupt:
        if not run.started:
            raise

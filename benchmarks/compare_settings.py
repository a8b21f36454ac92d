"""Which settings are the fastest for a whole model: `python . benchmarks.compare_settings NAME`.

Plain against compiled blocks, attention kernels, step caches, quantized weights and what goes together, in one process,
interleaved, on a full-size architecture; the models are rows of `comparison/presets.py`. On a processor it runs a small
model of the same shape, to try the script itself.

A name in `--compare` may begin with a quantization: "fp8" and "fp8+compile" run on a second pipeline of the same
weights, quantized, with the same noise; both pipelines lie on the device, and a row's memory leaves the other one out.

With random weights the steps of a run are less alike than with trained ones: a step cache may find none to skip. How
many it skipped stands under "active" in the stored rows.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from ..callbacks import Callbacks
from ..commands.bench import write_results
from ..commands.libraries import prepare_libraries
from ..commands.terminal import TerminalProgress
from ..comparison.architectures import ARCHITECTURES, NOTE, SMALL_NOTE
from ..comparison.presets import MODEL_BENCHMARKS
from ..comparison.run import ComparisonRun, working
from ..comparison.table import as_table
from ..optimizations.tuning.candidates import Plan
from ..optimizations.tuning.meters import DeviceMemoryMeter
from ..pipelines.loading.loader import resolve_device, resolve_dtype
from ..pipelines.types import PipelineHandle, SampleRequest
from .common import RESULTS, store
from .quantized import QUANTIZATIONS, OwnMemory, Twins, parse_names, quantization_of

PROMPT = "a lighthouse in the fog"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = "; ".join(f"{one.name}: {one.help}" for one in MODEL_BENCHMARKS.values())
    parser.add_argument("benchmark", choices=MODEL_BENCHMARKS, help=known)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    choices = f"as for the command bench, {', '.join(QUANTIZATIONS)} in front: a quantized pipeline"
    parser.add_argument("--compare", metavar="NAMES", help=choices)
    parser.add_argument("--steps", type=int, help="denoising steps of a run (default: as published)")
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
    benchmark = MODEL_BENCHMARKS[args.benchmark]
    request = SampleRequest(PROMPT)
    work = benchmark.apply(request) if full else benchmark.small(request)
    names = parse_names(
        args.compare or benchmark.compare, lambda choices: working(choices, torch.device(device), getattr(torch, dtype))
    )
    twins = Twins(ARCHITECTURES[benchmark.families[0]], device, dtype, full)
    others = twins.add(dict.fromkeys(filter(None, map(quantization_of, names))))
    run = ComparisonRun(
        PipelineHandle(twins.plain.key, memory_mode="gpu"),
        work if args.steps is None else replace(work, steps=args.steps),
        names,
        Plan(runs=args.runs, time_limit=args.time_limit),
        others=others,
        generate=twins.generate,
        borrow=lambda key, callbacks: nullcontext(twins.plain),
        memory=OwnMemory(DeviceMemoryMeter(torch.device(device)), twins),
    )
    with TerminalProgress() as callbacks:
        _run(run, callbacks)
    found = run.result()
    print(as_table(found))
    note = NOTE if full else SMALL_NOTE
    folder = RESULTS if full else args.output
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        print(store(benchmark.name, {"note": note, "quantized": twins.facts, **found.as_dict()}, device, folder))
    if args.output is not None:
        write_results(found, args.output)


def _run(run: ComparisonRun, callbacks: Callbacks) -> None:
    """Ctrl-C ends the measurement; what was measured is printed and kept all the same."""
    try:
        run.run(callbacks)
    except KeyboardInterrupt:
        if not run.started:
            raise


if __name__ == "__main__":
    main()

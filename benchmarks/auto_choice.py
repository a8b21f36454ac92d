"""How good is the choice that "auto" makes? `python . benchmarks.auto_choice`.

For each tiny family: first what a user does, a comparison of single choices with a time limit, from which "auto" then
decides; then every combination, interleaved, with more runs. What "auto" chose is held against the best of those that
give the same picture: pair by pair, with the interval, because the smallest of several noisy medians is too small.

Target: within 3% of the best, and the probing within its time limit (60 s beyond compile time).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..callbacks import Callbacks
from ..commands.libraries import prepare_libraries
from ..comparison.choices import PLAIN, settings_of
from ..comparison.run import ComparisonRun, with_picture, working
from ..optimizations.settings import OptimizationSettings
from ..optimizations.tuning.candidates import Candidate, Measured, Outcome, Plan
from ..optimizations.tuning.decide import decide
from ..optimizations.tuning.key import label
from ..optimizations.tuning.measure import PairedMeasurement
from ..optimizations.tuning.meters import DeviceMemoryMeter, stopwatch
from ..optimizations.tuning.store import Store
from ..pipelines.cache import CACHE
from ..pipelines.generate import generate, workload_of
from ..pipelines.loading.loader import resolve
from ..pipelines.tiny import TINY_FAMILIES
from ..pipelines.tuning_key import tuning_key
from ..pipelines.types import PipelineHandle, SampleRequest
from .common import store, table

ATTENTION = ("math", "efficient", "flash", "cudnn", "xformers")
TIME_LIMIT = 60.0


def measure_family(family: str, device: str, runs: int) -> dict[str, Any]:
    """One row: what auto chose for `family`, what it costs, and the best of all combinations."""
    handle = PipelineHandle(resolve(f"tiny:{family}", device=device), memory_mode="gpu")
    kind = torch.device(handle.key.device)
    request = SampleRequest("a lighthouse in the fog", steps=4)
    kernels = working(ATTENTION, kind, getattr(torch, handle.key.dtype))
    with tempfile.TemporaryDirectory() as folder, CACHE.use(handle.key) as loaded:
        request = with_picture(request, loaded.family)
        known = Store(Path(folder) / "measurements.jsonl")
        started = time.perf_counter()
        probing = ComparisonRun(
            handle, request, [PLAIN, *kernels, "tiling"], Plan(time_limit=TIME_LIMIT), store=known, combine_winners=True
        )
        probing.run()
        seconds = time.perf_counter() - started

        auto = OptimizationSettings(torch_compile="off", memory_mode="gpu")
        key = tuning_key(handle, workload_of(loaded, request), auto)
        chosen = decide(auto, key, known.rows(), steps=4).settings
        if chosen.attention == "auto":  # where the time limit left nothing to decide by, PyTorch chooses
            chosen = replace(chosen, attention=OptimizationSettings.plain().attention)
        everything = exhaustive(handle, request, [PLAIN, *kernels], runs)
    plain = everything[0]
    same = [one for one in everything if one is plain or (one.quality is not None and one.quality.lossless)]
    best = min(same, key=median_run)
    mine = next(one for one in everything if _label(one.name) == label(chosen))
    behind = mine.against(best)
    return {
        "family": family,
        "auto": mine.name,
        "best": best.name,
        "auto_s": median_run(mine),
        "best_s": median_run(best),
        "plain_s": median_run(plain),
        "behind_percent": (behind.ratio - 1) * 100,
        "at_least_percent": max(0.0, (behind.low - 1) * 100),
        "probing_s": seconds,
    }


def median_run(measured: Measured) -> float:
    return measured.run.median if measured.run is not None else float("inf")


def _label(name: str) -> tuple[tuple[str, str], ...]:
    return label(settings_of(name, OptimizationSettings.plain()))


def exhaustive(handle: PipelineHandle, request: SampleRequest, kernels: list[str], runs: int) -> list[Measured]:
    """Every combination of kernel and tiling, plain first, measured in pairs."""
    names = list(kernels)
    names += ["+".join(part for part in pair if part != PLAIN) for pair in itertools.product(kernels, ("tiling",))]
    base = OptimizationSettings.plain(memory_mode="gpu")

    def runner(name: str) -> Candidate:
        def run(callbacks: Callbacks) -> Outcome:
            result = generate(handle, request, settings_of(name, base), callbacks)
            if result.frames is None:
                raise RuntimeError("nothing was decoded")
            return Outcome(result.frames, result.stage_seconds, tuple(result.step_seconds), result.report)

        return Candidate(name, run)

    kind = torch.device(handle.key.device)
    plan = Plan(runs=runs, precision=0)
    measurement = PairedMeasurement([runner(name) for name in names], plan, stopwatch(kind), DeviceMemoryMeter(kind))
    measurement.run()
    return measurement.measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=11, help="runs of every combination (default: 11)")
    parser.add_argument("--families", nargs="+", choices=TINY_FAMILIES, default=list(TINY_FAMILIES))
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    torch.set_num_threads(1)
    rows = []
    for family in args.families:
        rows.append(measure_family(family, args.device, args.runs))
        print(table(rows[-1:]), flush=True)
    print(table(rows))
    worst = max(row["at_least_percent"] for row in rows)
    print(f"auto is beyond the noise at most {worst:.1f}% behind the best that gives the same picture (target: 3%)")
    path = store("auto_choice", {"runs": args.runs, "time_limit_s": TIME_LIMIT, "rows": rows}, args.device)
    print(path)


if __name__ == "__main__":
    main()

"""How long the first picture takes when it has to be compiled for: `python . benchmarks.cold_start`.

FLUX.1-dev's architecture, each case in a process of its own, as a user meets it: plain; compiled, with nothing kept
from before; compiled, with what the process before has kept on disk (`CompileSettings.keep_artifacts`). A process
builds the model, makes one picture, and then more of the same, which are warm. What counts is how much longer the first
one takes. Plain's first one shows what of that is not compiling: libraries that load, memory that is taken.

Target: compiled blocks at most 10 s at first, and at most 3 s in a second process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..commands.libraries import prepare_libraries
from ..commands.paths import PACK
from ..comparison.architectures import FLUX_DEV, NOTE, SMALL_NOTE, build
from ..comparison.choices import PLAIN, settings_of
from ..comparison.presets import MODEL_BENCHMARKS
from ..comparison.run import check_active
from ..optimizations.compile import CACHE_VARIABLES
from ..optimizations.settings import CompileSettings, OptimizationSettings
from ..pipelines.generate import run_loaded
from ..pipelines.loading.loader import resolve_device, resolve_dtype
from ..pipelines.types import PipelineHandle, SampleRequest
from .common import store, table

WARM = 3
"""Warm pictures of each process; their median counts."""


def first_and_warm(name: str, device: str, dtype: str, full: bool, backend: str, steps: int | None) -> dict[str, Any]:
    """What one process measures: seconds to build, of the first picture and of a warm one, and what was compiled.

    Args:
        name: of the settings, as `choices.settings_of` takes it.
        backend: of torch.compile.
        steps: denoising steps; None = as published.

    Raises:
        FellBackError: it could not be compiled.
    """
    started = time.perf_counter()
    loaded = build(FLUX_DEV, device, dtype, full)
    built = time.perf_counter() - started
    flux, prompt = MODEL_BENCHMARKS["flux_dev_1024"], SampleRequest("a lighthouse in the fog")
    request = flux.apply(prompt) if full else flux.small(prompt)
    request = request if steps is None else replace(request, steps=steps)
    base = OptimizationSettings.plain(memory_mode="gpu", compile=CompileSettings(backend=backend))
    settings = settings_of(name, base)
    handle = PipelineHandle(loaded.key, memory_mode="gpu")

    def picture() -> float:
        before = time.perf_counter()
        check_active(run_loaded(loaded, handle, request, settings), settings)  # its frames are in main memory
        return time.perf_counter() - before

    first = picture()
    warm = median(picture() for _ in range(WARM))
    return {"build_s": built, "first_s": first, "warm_s": warm, "first_extra_s": first - warm, **_found_on_disk()}


def _found_on_disk() -> dict[str, int]:
    """Graphs that inductor found compiled, and those that it had to compile."""
    from torch._dynamo.utils import counters

    inductor, autograd = counters["inductor"], counters["aot_autograd"]
    return {
        "found": max(inductor["fxgraph_cache_hit"], autograd["autograd_cache_hit"]),  # one cache lies in the other
        "compiled": inductor["fxgraph_cache_miss"],
    }


def in_a_process(name: str, artifacts: Path, options: list[str], limit: float | None) -> dict[str, Any]:
    """`first_and_warm` in a process of its own, which keeps compiled code in `artifacts`; or why it failed.

    Args:
        options: of this script, for the process.
        limit: seconds after which it is given up.
    """
    environment = {key: value for key, value in os.environ.items() if key not in CACHE_VARIABLES}
    environment["FASTDIFFUSERS_CACHE"] = str(artifacts)
    command = [sys.executable, str(PACK), "benchmarks.cold_start", "--process", name, *options]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": "out of time"}
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        return {"problem": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]}
    return {"process_s": seconds, **json.loads(done.stdout.splitlines()[-1])}


COLUMNS = ("process_s", "build_s", "first_s", "warm_s", "first_extra_s", "found", "compiled", "problem")


def measure(names: list[str], options: list[str], limit: float | None = None) -> list[dict[str, Any]]:
    """Plain once, then every compiled setting with an empty folder and with what that has left there."""
    deadline = None if limit is None else time.monotonic() + limit
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in (PLAIN, *names):
            for state in ("",) if name == PLAIN else ("nothing kept", "second process"):
                left = None if deadline is None else max(1.0, deadline - time.monotonic())
                found = in_a_process(name, Path(folder) / name, options, left)
                rows.append({"settings": name, "artifacts": state, **dict.fromkeys(COLUMNS, ""), **found})
                print(table(rows[-1:]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="default: compile, and compile-model on a card")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; others keep nothing on disk")
    parser.add_argument("--steps", type=int, help="denoising steps (default: as published)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for all processes together")
    parser.add_argument("--small", action="store_true", help="the small size, stored nowhere; always so on a processor")
    parser.add_argument("--process", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    full = not args.small and device != "cpu"
    if args.process:
        torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
        print(json.dumps(first_and_warm(args.process, device, dtype, full, args.backend, args.steps)))
        return
    options = ["--device", device, "--dtype", dtype, "--backend", args.backend, *(["--small"] if not full else [])]
    options += [] if args.steps is None else ["--steps", str(args.steps)]
    names = args.settings or ["compile", *(["compile-model"] if full else [])]
    rows = measure(names, options, args.time_limit)
    print(table(rows))
    data = {"note": NOTE if full else SMALL_NOTE, "backend": args.backend, "warm_pictures": WARM, "rows": rows}
    print(f"stored: {store('cold_start', data, device)}" if full else "the small size: nothing was stored")


if __name__ == "__main__":
    main()

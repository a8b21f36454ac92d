"""What the pack costs on top of a bare diffusers call: `python . benchmarks.overhead`.

Both sides in one process, on the same random weights, interleaved: (a) the diffusers pipeline called by hand, (b) the
same request through `pipelines.generate` with every optimization off, its cache warm. Once on the tiny embedded model,
where every millisecond shows, and once on one of forty million parameters, where a run is long enough for a
percentage to mean something. Also: importing the pack in a fresh process, and switching a setting that needs no reload.

With `--clock process` the processor time of this process is counted instead of the wall clock: on a machine that is
busy with other things, that is what can still be compared.

Target: at most 1% of a run or 20 ms; a switch at most 50 ms; an import at most 0.2 s.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..callbacks import SILENT, Callbacks
from ..commands.libraries import prepare_libraries
from ..commands.paths import PACK
from ..optimizations.apply import apply
from ..optimizations.settings import OptimizationSettings
from ..optimizations.tuning.candidates import Candidate, Outcome, Plan
from ..optimizations.tuning.measure import PairedMeasurement
from ..optimizations.tuning.meters import DeviceMemoryMeter, Stopwatch, stopwatch
from ..pipelines import tiny
from ..pipelines.cache import CACHE
from ..pipelines.generate import generate
from ..pipelines.loading.loader import resolve
from ..pipelines.types import PipelineHandle, SampleRequest
from .common import store, table

PROMPT = "a lighthouse in the fog"
PLAIN = OptimizationSettings.plain(memory_mode="gpu")


def save_model(size: str, folder: Path) -> Path:
    """Save a Flux pipeline with random weights: "tiny" as embedded, or "mid" with a wider and deeper transformer."""
    if size == "tiny":
        return tiny.save("flux", folder)
    from diffusers import FluxTransformer2DModel

    pipeline: Any = tiny.build("flux")
    torch.manual_seed(0)
    wider = {"num_attention_heads": 24, "num_layers": 4, "num_single_layers": 8}
    pipeline.transformer = FluxTransformer2DModel.from_config({**pipeline.transformer.config, **wider}).eval()
    pipeline.save_pretrained(folder)
    return folder


def bare_call(pipeline: Any, request: SampleRequest) -> torch.Tensor:
    """The request as a diffusers user would write it; frames [1, 1, H, W, 3] on the CPU."""
    images = pipeline(
        prompt=request.prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width,
        height=request.height,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pt",
    ).images
    return images.float().permute(0, 2, 3, 1)[:, None].cpu()


class ProcessStopwatch:
    """Counts the processor time that this process used, in all its threads."""

    ahead = False

    def mark(self) -> float:
        times = os.times()  # not time.process_time: in a virtual machine that also counts what the host took away
        return times.user + times.system

    def between(self, start: float, end: float) -> float:
        return end - start


def measure_size(size: str, device: str, runs: int, clock: Stopwatch) -> dict[str, Any]:
    """One row: the bare call and the pack on a model of `size`, over `runs` interleaved pairs."""
    from diffusers import DiffusionPipeline

    edge, steps = (64, 8) if size == "tiny" else (128, 8)
    request = SampleRequest(PROMPT, steps=steps, guidance=3.5, width=edge, height=edge)
    with tempfile.TemporaryDirectory() as folder:
        source = save_model(size, Path(folder) / size)
        bare = DiffusionPipeline.from_pretrained(source, dtype=torch.float32).to(device)
        bare.set_progress_bar_config(disable=True)
        handle = PipelineHandle(resolve(str(source), dtype="float32", device=device), memory_mode="gpu")

        def by_hand(callbacks: Callbacks) -> Outcome:
            return Outcome(bare_call(bare, request))

        def through_the_pack(callbacks: Callbacks) -> Outcome:
            frames = generate(handle, request, PLAIN, SILENT).frames
            if frames is None:
                raise RuntimeError("nothing was decoded")
            return Outcome(frames)

        candidates = [Candidate("bare diffusers", by_hand), Candidate("fastdiffusers", through_the_pack)]
        kind = torch.device(device)
        measurement = PairedMeasurement(candidates, Plan(runs=runs, precision=0), clock, DeviceMemoryMeter(kind))
        measurement.run()
        plain, pack = measurement.measured
        if plain.run is None or pack.run is None or pack.quality is None:
            raise RuntimeError(pack.problem or "the pack was not measured")
        verdict = pack.against(plain)
        differences = [b.seconds - a.seconds for a, b in zip(plain.runs, pack.runs, strict=True)]
        CACHE.clear()
        return {
            "model": size,
            "parameters_m": round(sum(p.numel() for p in bare.transformer.parameters()) / 1e6, 1),
            "pixels": edge,
            "steps": steps,
            "pairs": verdict.pairs,
            "bare_s": plain.run.median,
            "pack_s": pack.run.median,
            "overhead_ms": median(differences) * 1e3,
            "overhead_percent": (verdict.ratio - 1) * 100,
            "interval_percent": [round((bound - 1) * 100, 3) for bound in (verdict.low, verdict.high)],
            "confidence": verdict.confidence,
            "largest_difference": pack.quality.max_difference or 0.0,
        }


def measure_switch(device: str, runs: int) -> dict[str, float]:
    """Median seconds to switch settings on a cached pipeline, there and back, by what is switched."""
    handle = PipelineHandle(resolve("tiny:flux", dtype="float32", device=device), memory_mode="gpu")
    switches = {
        "attention": OptimizationSettings.plain(memory_mode="gpu", attention="math"),
        "vae_tiling": OptimizationSettings(attention="sdpa", memory_mode="gpu"),
    }
    medians = {}
    with CACHE.use(handle.key, SILENT) as loaded:
        for name, settings in switches.items():
            apply(loaded.pipeline, PLAIN)
            times = []
            for chosen in (settings, PLAIN) * runs:
                start = time.perf_counter()
                apply(loaded.pipeline, chosen)
                times.append(time.perf_counter() - start)
            medians[name] = median(times)
    return medians


def measure_import(runs: int) -> float:
    """Median seconds of importing the pack by its path, as ComfyUI does, in a fresh interpreter."""
    program = """
import importlib.util, sys, time
start = time.perf_counter()
spec = importlib.util.spec_from_file_location("fastdiffusers", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(time.perf_counter() - start)
"""
    command = [sys.executable, "-c", program, str(PACK / "__init__.py")]
    return median(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=15, help="interleaved pairs per model (default: 15)")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "mid"), default=["tiny", "mid"])
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    if args.device == "cpu":
        torch.set_num_threads(1)  # tiny steps on several threads measure the threads, not the pack
    clock = stopwatch(torch.device(args.device)) if args.clock == "wall" else ProcessStopwatch()
    rows = [measure_size(size, args.device, args.runs, clock) for size in args.sizes]
    switches, importing = measure_switch(args.device, args.runs), measure_import(args.runs)
    data = {
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "rows": rows,
        "switch_s": switches,
        "import_s": importing,
    }
    print(table(rows))
    for name, value in switches.items():
        print(f"switch {name}: {value * 1e3:.1f} ms")
    print(f"import fastdiffusers: {importing * 1e3:.1f} ms")
    print(f"stored: {store('overhead', data, args.device)}")


if __name__ == "__main__":
    main()

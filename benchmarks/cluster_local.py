"""Two workers of this machine against one process: `python . benchmarks.cluster_local`, on a processor or on cards.

The same pictures by the embedded Flux, each a run of its own: one after the other in this process with all its threads,
and as one batch on `local:2`. Both are warm, and they take turns. The start of the cluster is told apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ..callbacks import SILENT
from ..cluster.child import client
from ..cluster.settings import parse_cluster
from ..commands.libraries import prepare_libraries
from .common import store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    prepare_libraries(verbose=False)
    found = measure(options)
    print(f"{found}\nwritten to {store('cluster_local', found)}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of either, by rounds, and their ratio."""
    import torch

    from ..optimizations.settings import OptimizationSettings
    from ..pipelines.generate import generate
    from ..pipelines.loading.loader import resolve
    from ..pipelines.types import PipelineHandle, SampleRequest

    key = resolve("tiny:flux")
    here = PipelineHandle(key)
    there = replace(here, key=replace(key, device="cpu" if key.device == "cpu" else "auto"))
    edge, plain = options.edge, OptimizationSettings.plain()
    batch = SampleRequest("a lighthouse", steps=options.steps, width=edge, height=edge, batch=options.pictures)
    cluster = parse_cluster(f"local:{options.workers}", patience=600)

    def alone() -> None:
        for seed in range(options.pictures):
            generate(here, replace(batch, batch=1, seed=seed), plain)

    with tempfile.TemporaryDirectory() as folder:
        spread = lambda: client.generate_on(cluster, there, batch, plain, SILENT, Path(folder))
        load = [round(each, 1) for each in os.getloadavg()]
        try:
            start = seconds(spread)
            alone()
            threads = spread().report.facts.get("threads")
            rounds = [(seconds(alone), seconds(spread)) for _ in range(options.rounds)]
        finally:
            client.end(wait=True)
    ratios = sorted(one / many for one, many in rounds)
    return {
        "pictures": options.pictures,
        "steps": options.steps,
        "edge": edge,
        "workers": options.workers,
        "threads": {"one process": torch.get_num_threads(), "each worker": threads},
        "load_before": load,
        "load_after": [round(each, 1) for each in os.getloadavg()],
        "first_run_with_start_seconds": round(start, 1),
        "one_process_seconds": [round(one, 3) for one, _ in rounds],
        "cluster_seconds": [round(many, 3) for _, many in rounds],
        "ratio": {"median": round(median(ratios), 3), "least": round(ratios[0], 3), "most": round(ratios[-1], 3)},
    }


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

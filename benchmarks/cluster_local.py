"""Two workers of this machine against one process: `python . benchmarks.cluster_local`, on a processor or on cards.

The same pictures by the embedded Flux, each a run of its own: one after the other in this process with all its threads,
and as one batch on `local:2`, whose workers share the threads. Both are warm, and they take turns. The start of the
cluster is told apart. On a processor two workers can be faster for one reason alone: two threads on one small picture
wait for each other, and two pictures with a thread each do not. Nothing else may run meanwhile.

`--write-docs` puts the sentence into docs/figures.md and docs/scaling.md, which a test holds against the data file.
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
from ..cluster.connection import own_threads
from ..cluster.settings import parse_cluster
from ..commands.libraries import prepare_libraries
from ..commands.paths import PACK
from .common import store

DOCUMENTS = (PACK / "docs" / "figures.md", PACK / "docs" / "scaling.md")
BEGIN, END = "<!-- cluster local: begin -->", "<!-- cluster local: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write-docs", action="store_true", help="put the result into the two documents")
    options = parser.parse_args()
    prepare_libraries(verbose=False)
    found = measure(options)
    print(f"{found}\nwritten to {store('cluster_local', found)}")
    if options.write_docs:
        for document in DOCUMENTS:
            write_sentence(document, sentence(found))


def sentence(found: dict[str, Any]) -> str:
    """What the documents say of a result."""
    head = "**Two workers against one process** (`cluster_local`): "
    ratio, threads = found["ratio"], found["threads"]
    many, one = median(found["cluster_seconds"]), median(found["one_process_seconds"])
    run = f"{found['pictures']} pictures of {found['edge']}x{found['edge']} in {found['steps']} steps"
    workers = f"`local:{found['workers']}` with {threads['each worker']} thread(s) a worker"
    faster = f"{ratio['median']:.2f}x as fast ({ratio['least']:.2f} to {ratio['most']:.2f})"
    return (
        f"{head}{run} by the embedded Flux, {len(found['one_process_seconds'])} rounds in turns. {workers} is {faster} "
        f"as one process with {threads['one process']}: {many:.1f} s instead of {one:.1f} s. The first batch took "
        f"{found['first_run_with_start_seconds']:.0f} s, the start of Ray and of the workers with it."
    )


def within(text: str) -> str:
    """What stands between the marks."""
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def write_sentence(document: Path, text: str) -> None:
    """Put a text between the marks of a document."""
    before = document.read_text(encoding="utf-8")
    start, stop = before.index(BEGIN) + len(BEGIN), before.index(END)
    document.write_text(f"{before[:start]}\n{text}\n{before[stop:]}", encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of either, by rounds, and their ratio."""
    import torch

    from ..optimizations.settings import OptimizationSettings
    from ..pipelines.generate import generate
    from ..pipelines.loading.loader import resolve
    from ..pipelines.types import PipelineHandle, SampleRequest

    torch.set_num_threads(own_threads())
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

"""Which model families can cache steps, tried and not assumed: `python . benchmarks.step_cache_support`.

Every family runs as its tiny embedded pipeline: plainly, with each engine and level, plainly again. An engine counts
as working when it skipped steps, gave a finite result that another run repeats bit for bit, and left the plain run bit
for bit as it was. Writes `results/step_cache_support.json` and the table in docs/figures.md.

It says what works, not what it gains: random weights have no picture to lose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..commands.files import write_text
from ..commands.libraries import prepare_libraries
from ..commands.paths import PACK
from ..optimizations.caching import step_cache
from ..optimizations.caching.engine import StepCacheEngine
from ..optimizations.settings import OptimizationSettings
from ..pipelines.cache import CACHE
from ..pipelines.generate import generate
from ..pipelines.loading.loader import resolve
from ..pipelines.tiny import TINY_FAMILIES
from ..pipelines.types import PipelineHandle, SampleRequest, SampleResult
from .common import RESULTS, machine

TARGET = RESULTS / "step_cache_support.json"
FIGURES = PACK / "docs" / "figures.md"
BEGIN, END = "<!-- step cache support: begin -->", "<!-- step cache support: end -->"

STEPS = 10
LOOSE = 0.6
"""Threshold of the trial: random weights change more from step to step than trained ones."""
NEEDS_IMAGE = ("flux-kontext", "qwenimage-edit", "wan22-i2v")
LEVELS = ("balanced", "fast")


def try_all() -> dict[str, dict[str, Any]]:
    """Family -> engine -> "works", with its technique and the steps skipped per level, or why not."""
    found = {}
    for family in TINY_FAMILIES:
        found[family] = {engine.__name__: try_engine(family, engine) for engine in step_cache.ENGINES}
        CACHE.clear()
    return found


def try_engine(family: str, engine: type[StepCacheEngine]) -> dict[str, Any]:
    """Run one family plainly, with one engine at each level twice, and plainly again."""
    with _only(engine):
        plain = _run(family, "off")
        skipped = {}
        for level in LEVELS:
            first, again = _run(family, level), _run(family, level)
            record = first.report["step_cache"]
            if record.failed:
                return {"works": False, "reason": record.reason}
            if not torch.equal(first.outcome, again.outcome) or not bool(first.outcome.isfinite().all()):
                return {"works": False, "reason": "two runs of the same seed differ"}
            skipped[level] = int(re.search(r"(\d+) of \d+ steps", record.applied).group(1))  # type: ignore[union-attr]
            name = record.applied.partition(", ")[2].partition(":")[0]
        if not torch.equal(_run(family, "off").outcome, plain.outcome):
            return {"works": False, "reason": "it leaves a trace in the plain run"}
    if not all(skipped.values()):
        return {"works": False, "reason": "it skips nothing"}
    return {"works": True, "engine": name, "skipped": skipped, "reverts_exactly": True}


def as_markdown(families: dict[str, dict[str, Any]]) -> str:
    """The table of docs/figures.md."""
    engines = {"CacheDitEngine": "with cache-dit", "DiffusersHooksEngine": "without it"}
    lines = [f"| family | {' | '.join(engines.values())} |", "| --- | --- | --- |"]
    for family, found in families.items():
        cells = [found[engine].get("engine", "no") if found[engine]["works"] else "no" for engine in engines]
        lines.append(f"| {family} | {' | '.join('yes' if cell == 'cache-dit' else cell for cell in cells)} |")
    return "\n".join(lines)


def with_table(text: str, block: str) -> str:
    """`text` with the table between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _run(family: str, level: str) -> SampleResult:
    handle = PipelineHandle(resolve(f"tiny:{family}", device="cpu", dtype="float32"))
    images = (torch.linspace(0, 1, 64 * 64 * 3).reshape(64, 64, 3),) if family in NEEDS_IMAGE else ()
    frames = 5 if family.startswith("wan") else None
    request = SampleRequest(
        "a red fox", steps=STEPS, width=64, height=64, num_frames=frames, images=images, seed=1, decode=False
    )
    return generate(handle, request, OptimizationSettings.plain(step_cache=level, memory_mode="gpu"))


@contextmanager
def _only(engine: type[StepCacheEngine]) -> Iterator[None]:
    """Let one engine do the work, with thresholds at which random weights have something to skip."""
    engines, levels = step_cache.ENGINES, dict(step_cache.LEVELS)
    step_cache.ENGINES = (engine,)
    step_cache.LEVELS.update({name: replace(level, threshold=LOOSE) for name, level in levels.items()})
    try:
        yield
    finally:
        step_cache.ENGINES = engines
        step_cache.LEVELS.update(levels)


def main() -> None:
    prepare_libraries(verbose=False)
    torch.set_num_threads(1)
    families = try_all()
    data = {"benchmark": "step_cache_support", "machine": machine("cpu"), "steps": STEPS, "families": families}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(TARGET, json.dumps(data, indent=2, ensure_ascii=False))
    write_text(FIGURES, with_table(FIGURES.read_text(encoding="utf-8"), as_markdown(families)))
    print(as_markdown(families))


if __name__ == "__main__":
    main()

"""What a decode and an encode ask of a card, counted without one: `python . benchmarks.host_side`.

The full-size video VAE in bfloat16, its slices traced as `card_trace` does it: kernels launched, operations of PyTorch,
allocations with their bytes, copies, and what the processor waits for, inside each slice and between slices. Stored as
`benchmarks/results/host_side.json`. A card that sees a size for the first time also measures and compares; that is
left out. Beside it, what the inputs of `rivals` take on a processor in float32 at the most, above weights and output.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from ..commands.files import write_text
from ..vae.dry_run import DryRun, decoding, encoding
from ..vae.network.execution import Layout
from ..vae.processor_layouts import cuts
from .card_trace import Counts, on_a_card
from .common import RESULTS
from .kernels_static import empty_vae, run

FILE = RESULTS / "host_side.json"
CASES = {"decode": (5, 60, 104), "encode": (5, 60, 104)}
"""Latent frames, rows and columns of 17 frames of 832x480, by direction: the first slice holds two latent frames."""


PROCESSOR_CASES = {
    "decode 1x4x4": (16, 1, 4, 4),
    "decode 2x8x8": (16, 2, 8, 8),
    "decode 3x16x16": (16, 3, 16, 16),
    "encode 9x128x128": (3, 9, 128, 128),
}
"""Channels, frames, rows and columns of what goes in."""


def processor_peaks() -> dict[str, float]:
    """MiB that `auto` has alive at once, by case, where every convolution that may work on sums of frames does."""
    vae, found = empty_vae(torch.float32), {}
    for name, shape in PROCESSOR_CASES.items():
        task = decoding(vae.config) if name.startswith("decode") else encoding(vae.config)
        frames = 1 + (shape[1] - 1) // task.frames
        size, layout = next(cuts(vae, frames, 0, 0, 4))
        found[name] = round(DryRun(vae, task, shape, size).peak(layout) / 2**20, 1)
    return found


def told(counts: Counts) -> dict[str, Any]:
    """The counts as data."""
    return {
        "launches": dict(sorted(counts.launches.items())),
        "operations": dict(sorted(counts.operations.items())),
        "allocations": counts.allocations,
        "allocated_mib": round(counts.allocated / 2**20, 1),
        "waits": dict(sorted(counts.waits.items())),
        "queued_copies": counts.queued_copies,
    }


def traced(direction: str) -> dict[str, Any]:
    """One job: {"slices": counts of each, "between": counts of the rest}."""
    vae = empty_vae(torch.bfloat16)
    with on_a_card() as trace:
        parts = run(trace, vae, direction, Layout(), CASES[direction])
    return {"slices": [told(part) for part in parts], "between": told(trace.counts)}


def figures(data: dict[str, Any]) -> list[str]:
    """The rows of the table in docs/figures.md."""
    lines = []
    for direction, job in data["jobs"].items():
        for name, part in (("first", job["slices"][0]), ("steady", job["slices"][1])):
            operations = part["operations"]
            cells = (
                f"{direction}, {name} slice",
                str(sum(part["launches"].values())),
                str(sum(operations.values())),
                str(sum(count for kind, count in operations.items() if kind.startswith("conv"))),
                str(operations.get("copy_", 0)),
                f"{part['allocations']}, {part['allocated_mib'] / 1024:.1f} GiB",
                str(sum(part["waits"].values())),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    jobs = {direction: traced(direction) for direction in CASES}
    for direction, job in jobs.items():
        for index, part in enumerate(job["slices"]):
            launched, queued = sum(part["launches"].values()), sum(part["operations"].values())
            print(
                f"{direction}, slice {index}: {launched} kernels of the pack, {queued} operations of PyTorch, "
                f"{part['allocations']} allocations, waits: {part['waits'] or 'none'}"
            )
        print(f"{direction}, between slices: {job['between']}")
    data = {
        "benchmark": "host_side",
        "versions": {"torch": torch.__version__},
        "latent": {direction: "x".join(map(str, size)) for direction, size in CASES.items()},
        "jobs": jobs,
        "processor_peaks_mib": processor_peaks(),
    }
    write_text(FILE, json.dumps(data, indent=1) + "\n")
    print(f"stored in {FILE}")


if __name__ == "__main__":
    main()

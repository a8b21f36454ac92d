"""What each optimization leaves of the picture: `python . benchmarks.picture_quality`.

The embedded Flux whose weights were trained draws the same prompts with the same noise, plainly and with one thing
changed. PSNR, SSIM and the largest difference are those between the two pictures: for a step cache and for quantized
weights that is another picture of the same scene, so SSIM says more than PSNR. `seam` is the largest mean step, in
levels of 255, that the difference makes between two neighbouring rows or columns: a border of tiles is such a step.
LPIPS is left out, because its weights come from the network.

`--pictures FILE` draws the first prompt by every row, the difference from the plain picture, ten times enlarged, below.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import torch

from ..callbacks import SILENT
from ..commands.libraries import prepare_libraries
from ..commands.media import write_picture
from ..commands.options import path_argument
from ..errors import FastDiffusersError, first_line
from ..optimizations.settings import OptimizationSettings, TilingSettings
from ..optimizations.tuning.quality import quality
from ..pipelines import tiny
from ..pipelines.generate import generate
from ..pipelines.loading.loader import resolve
from ..pipelines.types import PipelineHandle, SampleRequest
from .common import store, table

MODEL = "flux"
PROMPTS = (
    "a red lighthouse at dusk, calm sea",
    "a white house on the hills at noon, clear sky, sun",
    "a blue boat at night, full moon, calm sea",
    "green trees in the snow, dawn",
    "yellow house, desert, sunset",
    "rainy day, hills, red trees",
)
STEPS, CACHED_STEPS = 8, 28
"""Denoising steps; with a step cache so many, because it has none to skip among few."""


@dataclass(frozen=True)
class Row:
    """Attributes:
    settings: beyond the plain ones.
    load: beyond float32 weights.
    steps: of the plain run too.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    load: dict[str, str] = field(default_factory=dict)
    steps: int = STEPS


def tiles(size: int, overlap: int) -> Row:
    tiling = TilingSettings(mode="on", tile_size=size, overlap=overlap, slicing="off")
    return Row(f"tiles of {size}, overlap {overlap}", {"vae_tiling": tiling})


ROWS = (
    Row("step cache balanced", {"step_cache": "balanced"}, steps=CACHED_STEPS),
    Row("step cache fast", {"step_cache": "fast"}, steps=CACHED_STEPS),
    Row("bfloat16", load={"dtype": "bfloat16"}),
    Row("float16", load={"dtype": "float16"}),
    Row("sdnq-int8", load={"quantization": "sdnq-int8"}),
    Row("sdnq-uint4", load={"quantization": "sdnq-uint4"}),
    Row("torchao-int8", load={"quantization": "torchao-int8"}),
    Row("layerwise-fp8", load={"quantization": "layerwise-fp8"}),
    Row("compiled", {"torch_compile": "on"}),
    tiles(64, 16),
    tiles(96, 24),
    tiles(96, 48),
    tiles(128, 32),
    tiles(128, 64),
    tiles(160, 64),
    tiles(160, 96),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--pictures", type=path_argument, metavar="FILE", help="also a sheet of pictures, as png")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    if tiny.trained_folder(MODEL) is None:
        parser.error(f"tiny:{MODEL} has no trained weights here; with random ones a picture's quality means nothing")
    prepare_libraries(verbose=False)
    torch.set_num_threads(1)
    prompts = PROMPTS[: max(1, args.prompts)]
    chosen = [row for row in ROWS if not args.rows or any(part in row.name for part in args.rows)]
    plain = {steps: pictures(Row("plain", steps=steps), prompts)[0] for steps in sorted({row.steps for row in chosen})}
    found, sheet = [], [(frame := next(iter(plain.values()))[0]), torch.zeros_like(frame)]
    for row in chosen:
        measured, made = measure(row, prompts, plain[row.steps])
        found.append(measured)
        if made:
            sheet += [made[0], ((made[0] - plain[row.steps][0]).abs() * 10).clamp(0, 1)]
        print(table([measured]), flush=True)
    if args.pictures:
        rows = [torch.cat(sheet[first::2], dim=1) for first in (0, 1)]
        write_picture(torch.cat(rows), args.pictures)
    if not args.no_store:
        data = {"model": f"tiny:{MODEL}, {tiny.identity(MODEL)}", "size": f"{frame.shape[1]}x{frame.shape[0]}"}
        print(f"stored in {store('picture_quality', {**data, 'prompts': list(prompts), 'rows': found}, 'cpu')}")


def pictures(row: Row, prompts: tuple[str, ...]) -> tuple[list[torch.Tensor], str]:
    """Each prompt's picture [H, W, 3] in 0..1, and what was active in the last run."""
    load: dict[str, Any] = {"dtype": "float32", **row.load}
    handle = PipelineHandle(resolve(f"tiny:{MODEL}", device="cpu", **load))
    made, active = [], ""
    for seed, prompt in enumerate(prompts):
        request = SampleRequest(prompt, steps=row.steps, seed=seed)
        result = generate(handle, request, OptimizationSettings.plain(**row.settings), SILENT)
        assert result.frames is not None  # noqa: S101 - it was asked to decode
        made.append(result.frames[0, 0].float())
        active = "; ".join((result.report.for_speed, *result.report.notes))
    return made, active


def measure(row: Row, prompts: tuple[str, ...], plain: list[torch.Tensor]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """A row against the plain pictures, worst and mean; and its own pictures, none where it cannot run."""
    head: dict[str, Any] = {"row": row.name, "steps": row.steps}
    try:
        made, active = pictures(row, prompts)
    except (FastDiffusersError, RuntimeError) as error:
        return {**head, "problem": first_line(error)}, []
    found = [quality(one, other) for one, other in zip(made, plain, strict=True)]
    noisy = [each.psnr_db for each in found if each.psnr_db is not None]
    return {
        **head,
        "psnr_db": round(mean(noisy), 2) if noisy else None,
        "psnr_db_least": round(min(noisy), 2) if noisy else None,
        "ssim": round(mean(each.ssim or 0.0 for each in found), 4),
        "max_difference": round(max(each.max_difference or 0.0 for each in found), 4),
        "seam": round(max(seam(one - other) for one, other in zip(made, plain, strict=True)), 2),
        "active": active,
    }, made


def seam(difference: torch.Tensor) -> float:
    """The largest mean step between neighbouring rows or columns of [H, W, 3], in levels of 255."""
    steps = (difference.diff(dim=0).mean(dim=(1, 2)).abs(), difference.diff(dim=1).mean(dim=(0, 2)).abs())
    return max(float(each.max()) for each in steps) * 255


if __name__ == "__main__":
    main()

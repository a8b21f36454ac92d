"""What is known of the Triton kernels without a card: `python . benchmarks.kernels_static`.

Every kernel that a decode or encode launches on a card, as Triton specialises it, compiled for seven kinds of cards by
the assembler that Triton brings along: registers, spills, shared memory, how many bits a load or store moves at once;
and the bytes that it moves, in whole sectors of 32, against those it has to. Stored as
`benchmarks/results/kernels_static.json`, with a fingerprint of the kernels' source: a changed kernel needs a new run.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..callbacks import SILENT
from ..commands.files import write_text
from ..vae import VaeConfig, VaeSettings, VideoVAE
from ..vae.engine import Job
from ..vae.network.execution import Layout
from ..vae.planner import Plan, decoding, encoding
from .card_trace import Counts, Launch, Place, Trace, on_a_card
from .common import RESULTS

CARDS = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may have, by compute capability."""
FILE = RESULTS / "kernels_static.json"
DTYPES = ("bfloat16", "float16", "float32")
LAYOUTS = {
    "whole planes": Layout(),
    "2 strips": Layout(rows=2, columns=1, tail_frames=1, keep_kernels=False),
}
LATENTS = {"whole planes": ((3, 90, 156), (5, 60, 104)), "2 strips": ((3, 90, 156),)}
"""Latent frames, rows and columns of 9 frames of 1248x720, and of 17 of 832x480, whose parts merge in other tiles."""
CONSTANTS = (
    "activation", "add", "at_once", "biased", "block_c", "block_g", "block_p", "block_parts", "even", "input_biased",
    "interleaved", "residual", "temporal",
)  # fmt: skip
"""Arguments of the kernels that Triton compiles in."""
SOURCES = ("triton_group_norm", "triton_pixel_shuffle", "triton_put", "triton_rms_norm", "triton_support")


def fingerprint() -> str:
    """Of the source of the kernels and of what launches them: code alone, whatever its comments say."""
    folder = Path(__file__).resolve().parents[1] / "vae" / "kernels"
    found = hashlib.sha256()
    for name in SOURCES:
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
        found.update(ast.dump(tree).encode())
    return found.hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def empty_vae(dtype: torch.dtype) -> VideoVAE:
    """The full-size video VAE without data."""
    with torch.device("meta"):
        return VideoVAE(VaeConfig()).to(dtype).prepare()


def run(trace: Trace, vae: VideoVAE, direction: str, layout: Layout, latent: tuple[int, int, int]) -> list[Counts]:
    """Trace a job on a card, and return what happened inside each slice; the rest is in `trace.counts`.

    Args:
        direction: "decode" or "encode".
        latent: frames, rows, columns.
    """
    config, frames, (_, rows, columns) = vae.config, vae.config.frames(latent[0]), latent
    factor = config.spatial_factor
    pixels = (1, config.in_channels, frames, rows * factor, columns * factor)
    if direction == "decode":
        task, shapes = decoding(config), ((1, config.latent_channels, *latent), pixels)
    else:
        task, shapes = encoding(config), (pixels, (1, 2 * config.latent_channels, *latent))
    x, out = (trace.in_main_memory(torch.empty(shape, device="meta")) for shape in shapes)
    plan = Plan((), layout, 1, offload_state=False, peak=0, budget=0, reason="traced")
    job = Job(vae, task, VaeSettings(), plan, lambda values: values, SILENT)
    network, parts = job.network, []

    def counted(piece: torch.Tensor, execution: Any) -> torch.Tensor:
        with trace.part() as counts:
            made = network(piece, execution)
        parts.append(counts)
        return made

    job.network = counted
    job.run(x, out)
    return parts


def wan_decode(dtype: torch.dtype, channels_last: bool) -> list[Launch]:
    """The launches of Wan 2.1's decoder in the pack's own arithmetic: 9 frames of 832x480."""
    from ..torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()
    from diffusers import AutoencoderKLWan

    from ..pipelines.decoding import wan
    from ..pipelines.decoding.fast_arithmetic import FastArithmetic
    from ..vae.kernels import Kernels

    with torch.device("meta"):
        vae: Any = AutoencoderKLWan()
        vae = vae.to(dtype).eval()
        latents = torch.empty(1, 16, 3, 60, 104, dtype=dtype)
    with on_a_card() as trace:
        for _ in wan.stream(vae, latents, 1, FastArithmetic(Kernels(), channels_last)):
            pass
    return trace.launches


def launches() -> Iterator[tuple[str, Launch]]:
    """(where it comes from, launch) of everything that the pack launches."""
    for name in DTYPES:
        dtype = getattr(torch, name)
        vae = empty_vae(dtype)
        for direction, cut in (("decode", "whole planes"), ("decode", "2 strips"), ("encode", "whole planes")):
            for latent in LATENTS[cut]:
                with on_a_card() as trace:
                    run(trace, vae, direction, LAYOUTS[cut], latent)
                for launch in trace.launches:
                    yield f"video VAE, {direction}, {cut}", launch
        for last in (True, False):
            for launch in wan_decode(dtype, last):
                yield f"Wan, decode, {'channels last' if last else 'contiguous'}", launch


def distinct() -> dict[str, tuple[str, Launch]]:
    """One launch of each kind, the largest."""
    found: dict[str, tuple[str, Launch]] = {}
    for where, launch in launches():
        kind = kind_of(launch)
        if kind not in found or programs(launch) > programs(found[kind][1]):
            found[kind] = (where, launch)
    return found


def kind_of(launch: Launch) -> str:
    """Equal for launches of one kernel that differ in nothing but sizes.

    The kernel, the dtypes, its tile and other constants, which strides are 1, and whether it may move 16 bytes at once.
    """
    told = [launch.module, launch.kernel]
    for name, value in launch.arguments.items():
        if isinstance(value, Place):
            told.append(f"{name}: {str(value.dtype).removeprefix('torch.')}")
        elif name in CONSTANTS or (name.endswith(("_channel", "_column")) and value == 1):
            told.append(f"{name}={value}")
    return ", ".join((*told, f"{launch.options['num_warps']} warps, wide {may_be_wide(launch)}"))


def programs(launch: Launch) -> int:
    return int(torch.Size(launch.grid).numel())


def tile_bytes(launch: Launch) -> tuple[int, int]:
    """Bytes that a program (or a round of its loop) reads and writes of the tensors that matter."""
    given = launch.arguments
    if launch.kernel == "_merge_parts":
        return 4 * given["block_parts"] * given["block_g"] * given["block_c"], 0
    cells = given["block_c"] * given["block_p"] * given["x"].dtype.itemsize
    both = 2 if launch.kernel == "_shuffle" else 1
    return both * cells, 0 if launch.kernel == "_sum_parts" else both * cells


def may_be_wide(launch: Launch) -> tuple[bool, bool]:
    """Whether 16 bytes lie in a row, where 16 begin, in all that is read, and in all that is written."""
    given = launch.arguments
    if launch.kernel == "_merge_parts":
        return bool(given["even"]) and given["block_g"] * given["block_c"] * 4 >= 16, False

    def aligned(place: Place) -> bool:
        item, innermost = place.dtype.itemsize, 1 if place.stride[1] == 1 and place.shape[1] > 1 else 4
        if place.stride[innermost] != 1 or place.offset % 16:
            return False
        if innermost == 4 and given.get("left"):
            return False
        others = [s for d, s in enumerate(place.stride) if d != innermost and place.shape[d] > 1]
        return not any(s * item % 16 for s in others) and place.shape[innermost] * item % 16 == 0

    reads = [given["x"]] + ([given["added"]] if given.get("residual") else [])
    reads += [given["out"]] if given.get("add") else []
    return all(map(aligned, reads)), launch.kernel != "_sum_parts" and aligned(given["out"])


def row(kind: str, where: str, launch: Launch, bytes_moved: dict[str, int]) -> dict[str, Any]:
    """All that is known of a launch."""
    from .kernel_launches import compiled, to_json

    place = launch.arguments.get("x") or launch.arguments["means"]
    cards = {}
    for capability in CARDS:
        found = compiled(launch, capability)
        cards[str(capability)] = found._asdict()
    reads, writes = may_be_wide(launch)
    return {
        "kind": kind,
        "kernel": f"{launch.module}.{launch.kernel}",
        "where": where,
        "dtype": str(place.dtype).removeprefix("torch."),
        "size": "x".join(map(str, place.shape)),
        **bytes_moved,
        "tile_bytes": tile_bytes(launch),
        "may_be_wide": {"loads": reads, "stores": writes},
        "cards": cards,
        "launch": to_json(launch),
    }


def written(data: dict[str, Any]) -> str:
    """As JSON with a line for each row."""
    rows = ",\n".join(json.dumps(one) for one in data["rows"])
    head = json.dumps({name: value for name, value in data.items() if name != "rows"}, indent=2)
    return f'{head[:-2]},\n  "rows": [\n{rows}\n]\n}}\n'


def figures(data: dict[str, Any]) -> list[str]:
    """The rows of the table in docs/figures.md: a line for each kernel, over its dtypes, tiles and cards."""
    lines = []
    for kernel in sorted({row["kernel"] for row in data["rows"]}):
        rows = [row for row in data["rows"] if row["kernel"] == kernel]
        cards = [card for row in rows for card in row["cards"].values()]
        registers = [card["registers"] for card in cards]
        wide = sum(row["may_be_wide"]["loads"] for row in rows)
        moved = max(row["moved"] / row["least"] for row in rows)
        cells = (
            f"`{kernel.removeprefix('triton_').replace('._', ': ')}`",
            str(len(rows)),
            f"{min(registers)} to {max(registers)}",
            str(sum(card["spilled"] for card in cards)),
            f"{max(card['shared'] for card in cards) / 1024:.1f} KiB",
            f"{wide} of {len(rows)}",
            f"{moved:.2f}x",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="what would be compiled, and nothing else")
    args = parser.parse_args()
    found = distinct()
    if args.list:
        for kind, (where, launch) in found.items():
            print(f"{kind} ({where}, {launch.grid})")
        print(len(found))
        return
    import triton

    from .kernel_traffic import moved

    traffic = moved([launch for _, launch in found.values()])
    rows = []
    for (kind, (where, launch)), bytes_moved in zip(found.items(), traffic, strict=True):
        rows.append(row(kind, where, launch, bytes_moved))
        print(f"{len(rows)} of {len(found)}", flush=True)
    rows.sort(key=lambda one: (one["kernel"], one["dtype"], one["where"], one["kind"]))
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    data = {"benchmark": "kernels_static", "versions": versions, "source": fingerprint(), "rows": rows}
    write_text(FILE, written(data))
    print(f"stored in {FILE}")


if __name__ == "__main__":
    main()

"""The video VAE against a plain decoder of the same weights: `python . benchmarks.vae_decode`.

Full-size random weights, one process, everything interleaved: each round decodes once with the plain decoder and once
with every row, so that a busy machine disturbs all alike; what counts is the median of the ratios within a round.
Rows add one optimization to the one before, then come the modes. Each row has its time, its peak memory above weights
and output, and its largest difference from the plain decoder.

On a processor the default is a latent of 3 x 16 x 16; on a card 81 frames of 832x1216 and of 1248x720, where the plain
decoder may run out of memory: it then has no time, and differences are taken from the first row that has a result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from ..memory import LiveBytes
from ..vae import VaeConfig, VaeSettings, VideoVAE, decode_raw, from_state_dict
from ..vae.checkpoint import choose_device, choose_dtype
from ..vae.network import convolution
from ..vae.network.execution import CarriedFrames, Execution
from ..vae.planner import slices
from .common import store, table
from .plain_video_vae import PlainVideoVae, formula_weights
from .top_kernels import seconds_by_class
from .vae_ablation import OPTIMIZATIONS, contiguous_weights, only

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "data" / "video_vae"
CPU_SHAPES = {"3 x 16 x 16 latent": (3, 16, 16)}
CARD_SHAPES = {
    "81 frames 832x1216": (21, 152, 104),
    "81 frames 1248x720": (21, 90, 156),
    "21 frames 1248x720": (6, 90, 156),
}
SMALL_SHAPES = {"2 x 8 x 8 latent": (2, 8, 8)}
Decode = Callable[[torch.Tensor], torch.Tensor]
"""Makes pixels from latents."""


@dataclass
class Row:
    """One way to decode.

    Attributes:
        name: of the row. decode: makes pixels from latents. countable: whether tensors can be counted while it runs;
            compiled code runs out of sight of PyTorch's dispatcher.
        seconds: of each round. peak: bytes above weights and output. difference: from the plain decoder, of its std.
        problem: why it could not run. vae: the one that it decodes with, where that is the pack's.
    """

    name: str
    decode: Decode
    countable: bool = True
    vae: VideoVAE | None = None
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    difference: float = 0.0
    problem: str = ""


def check_plain_decoder() -> float:
    """Largest error of the plain decoder on the golden decodes of the small model, relative to their std."""
    manifest = json.loads((GOLDENS / "manifest.json").read_text())
    worst = 0.0
    for case in manifest["cases"]:
        if case["op"] != "decode" or case["cfg"] == "full" or case["opts"].get("tiled"):
            continue
        shapes = json.loads((GOLDENS / f"keys_{case['cfg']}.json").read_text())
        plain = PlainVideoVae(formula_weights(shapes), manifest["configs"][case["cfg"]]["norm_num_groups"])
        golden = load_file(GOLDENS / f"{case['name']}.safetensors")
        error = (plain.decode(golden["x"]) - golden["y"]).abs().max() / golden["y"].std()
        worst = max(worst, float(error))
    if not worst <= 1e-4:
        raise SystemExit(f"the plain decoder is wrong by {worst:.1e} of std: nothing was measured")
    return worst


def full_size_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the full-size VAE."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in VideoVAE(VaeConfig()).state_dict().items()}


def rows(
    weights: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype, frames: int, *, compiled: bool
) -> list[Row]:
    """The plain decoder, optimizations one by one, and the modes."""
    vae = from_state_dict(weights, dtype=dtype, device=device)
    rowwise = contiguous_weights(from_state_dict(weights, dtype=dtype, device=device))
    plain = PlainVideoVae({key: tensor.to(device, dtype) for key, tensor in weights.items()})

    def own(
        name: str, settings: VaeSettings, on: Collection[str] = tuple(OPTIMIZATIONS), *, countable: bool = True
    ) -> Row:
        used = vae if "channels_last" in on else rowwise

        def decode(z: torch.Tensor) -> torch.Tensor:
            with only(*on):
                return decode_raw(used, z, settings)[0]

        return Row(name, decode, countable, used)

    found = [Row("plain decoder", lambda z: plain.decode(z.to(device, dtype)).float().cpu())]
    whole = VaeSettings(mode="whole", temporal_slice=frames if device.type == "cpu" else 1, kernels="eager")
    found.append(own("this VAE, all off", whole, ()))
    for number, name in enumerate(OPTIMIZATIONS, start=1):
        cut = replace(whole, mode="exact") if name == "chunked_upsampling" else whole
        found.append(own(f"+ {name}", cut, tuple(OPTIMIZATIONS)[:number]))
    if device.type == "cuda":
        found.append(own("+ fused kernels", VaeSettings(mode="whole", temporal_slice=1)))
    found += [
        own("auto", VaeSettings()),
        own("whole, 1 latent frame at a time", VaeSettings(mode="whole", temporal_slice=1)),
        own("exact, 4 x 1 strips", VaeSettings(mode="exact", strips=(4, 1))),
        own("exact, 4 x 2 strips", VaeSettings(mode="exact", strips=(4, 2))),
        own("tiles of 512, overlap 64", VaeSettings(mode="tiles")),
    ]
    slices_of_one = VaeSettings(mode="whole", temporal_slice=1)
    if device.type == "cuda":
        found.append(own("whole, CUDA graphs", replace(slices_of_one, cuda_graphs=True)))
        found.append(own("tiles of 512, two at a time", VaeSettings(mode="tiles", overlap_tiles=True)))
        if dtype == torch.float16:
            found.append(own("whole, float16 sums", replace(slices_of_one, fp16_accumulation=True)))
    if compiled:
        counted = device.type == "cuda"
        code = replace(slices_of_one, compile={}, compile_scope="slice")
        found.append(own("whole, compiled units", replace(slices_of_one, compile={}), countable=counted))
        found.append(own("whole, compiled", code, countable=counted))
        if device.type == "cuda":
            found.append(own("whole, compiled, CUDA graphs", replace(code, cuda_graphs=True)))
    return found


def measure(
    found: list[Row], z: torch.Tensor, device: torch.device, rounds: int, deadline: float = float("inf")
) -> None:
    """Fill the rows: one untimed run each for memory and difference, then the interleaved rounds.

    Args:
        deadline: by `time.monotonic`; after the first round, none is begun that would last beyond it.
    """
    reference: torch.Tensor | None = None
    for row in found:
        if row.vae is not None:  # kernels that the row before has kept are not this one's
            row.vae.transformed.drop()
        try:
            with peak_memory(device) if row.countable else nullcontext(lambda: 0) as peak:
                y = row.decode(z)
            # On the processor the output is among what was counted.
            row.peak = max(0, peak() - (y.numel() * y.element_size() if device.type == "cpu" else 0))
        except torch.OutOfMemoryError:
            row.problem = "out of memory"
            torch.cuda.empty_cache()
            continue
        reference = y if reference is None else reference
        row.difference = float((y - reference).abs().max() / reference.std())
        print(f"  {row.name}: {row.peak / 2**20:.0f} MiB, difference {row.difference:.1e}", flush=True)
    for left in reversed(range(rounds)):
        started = time.monotonic()
        for row in found:
            if not row.problem:
                row.seconds.append(seconds(row.decode, z, device))
        if left and 2 * time.monotonic() - started > deadline:
            print(f"  time is up: {left} of {rounds} rounds are left out", flush=True)
            break


def seconds(decode: Decode, z: torch.Tensor, device: torch.device) -> float:
    """Wall time of one decode, the result in main memory."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    decode(z)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """What the block has in use at most, above what was in use before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveBytes(device) as live:
            yield lambda: live.peak


def as_table(found: list[Row]) -> list[dict[str, Any]]:
    """The rows as data. Times are medians; "faster" is the median of the ratios within a round."""
    plain = found[0]
    data = []
    for row in found:
        ratios = [p / s for p, s in zip(plain.seconds, row.seconds, strict=False)]
        data.append(
            {
                "row": row.name,
                "seconds": round(statistics.median(row.seconds), 3) if row.seconds else row.problem,
                "times_faster": round(statistics.median(ratios), 3) if ratios else "",
                "peak_mib": round(row.peak / 2**20, 1) if row.peak else "",
                "peak_ratio": round(row.peak / plain.peak, 3) if plain.peak and row.peak else "",
                "max_difference": float(f"{row.difference:.2e}") if not row.problem else "",
            }
        )
    return data


def work(decode: Decode, z: torch.Tensor) -> float:
    """TFLOP of the convolutions and matrix products of one decode, counted on tensors without data."""
    with FlopCounterMode(display=False) as counter, patch.object(convolution, "without_data", _conv3d):
        decode(torch.empty(z.shape, device="meta"))
    return round(counter.get_total_flops() / 1e12, 3)


def _conv3d(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """An operation that is counted, where a dry run makes do with its result's shape."""
    return F.conv3d(x, weight, stride=stride)


def stream(vae: VideoVAE, z: torch.Tensor) -> torch.Tensor:
    """A decode one latent frame at a time, by the networks alone."""
    state, parts = CarriedFrames(), slices(z.shape[2], 1)
    made = [vae.decode_slice(z[:, :, start:stop], Execution(state, carry=stop < z.shape[2])) for start, stop in parts]
    return torch.cat(made, dim=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--small", action="store_true", help="a tiny latent and one round: does it run at all")
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name contains one of these")
    parser.add_argument("--cases", default="", metavar="TEXT", help="only clips whose name contains this")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for everything, one round at the least")
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile; always so on a card")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    shapes = SMALL_SHAPES if args.small else CPU_SHAPES if device.type == "cpu" else CARD_SHAPES
    shapes = {name: shape for name, shape in shapes.items() if args.cases in name}
    begun, limit = time.monotonic(), args.time_limit or float("inf")
    with torch.inference_mode():
        golden_error = check_plain_decoder()
        weights = formula_weights(full_size_shapes())
        shapes_only = {key: torch.empty(shape, device="meta") for key, shape in full_size_shapes().items()}
        plain, streamed = PlainVideoVae(shapes_only), from_state_dict(shapes_only)
        results = []
        for number, (name, (frames, height, width)) in enumerate(shapes.items(), start=1):
            z = torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(0))
            found = rows(weights, device, dtype, frames, compiled=args.compiled or device.type == "cuda")
            if args.rows:
                found = [row for row in found if row is found[0] or any(part in row.name for part in args.rows)]
            print(f"{name}, {dtype}, {device}", flush=True)
            measure(found, z, device, 1 if args.small else args.rounds, begun + limit * number / len(shapes))
            data = as_table(found)
            print(table(data), flush=True)
            last = next((row for row in found if row.name == "auto"), found[-1])
            profiled = [row for row in (found[0], last) if not row.problem]
            time_by_class = {row.name: seconds_by_class(partial(row.decode, z), device) for row in profiled}
            tflop = {"plain decoder": work(plain.decode, z), "auto": work(partial(stream, streamed), z)}
            print(json.dumps({"seconds by class": time_by_class, "TFLOP": tflop}, indent=2), flush=True)
            results.append(
                {"case": name, "dtype": str(dtype), "rows": data, "seconds_by_class": time_by_class, "tflop": tflop}
            )
            if not (args.no_store or args.small):  # after each: an interrupted run keeps those before
                everything = {"golden_error": golden_error, "threads": args.threads, "cases": results}
                print(f"stored in {store('vae_decode', everything, str(device))}")


if __name__ == "__main__":
    main()

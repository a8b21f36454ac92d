"""The video VAE's decode against the plain one: `python -m fastdiffusers.benchmarks.vae_decode`.

Both sides in one process, on the same random weights of full size, interleaved: (a) the decoder as its specification
reads (`plain_video_vae.py`), (b) this pack's, first with every optimization off, then with one more of them row by row,
then in each mode. A row says seconds (median), peak memory above weights and output, and the largest difference from
the plain result. On a CPU memory is the sum of live tensors; on a card it is what the allocator reports.

Ends with a profile: the share of each kind of operation, plain and optimized.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

import torch

from ..optimizations.decode_memory import LiveElements
from ..vae import Optimizations, VaeConfig, VaeSettings, VideoVAE, decode_raw, from_state_dict
from .common import store, table
from .plain_video_vae import PlainVideoVae

Decode = Callable[[torch.Tensor], torch.Tensor]
KINDS = {
    "convolution": ("conv", "mkldnn", "cudnn"),
    "attention": ("attention", "matmul", "mm", "softmax", "addmm", "linear"),
    "norm": ("norm", "var_mean", "addcmul", "sum", "square", "mean"),
    "activation": ("silu", "sigmoid"),
    "copy": ("copy", "cat", "clone", "pad", "fill", "zero", "contiguous", "empty"),
}
"""What an operation counts as, by a part of its name; the first match wins."""


@dataclass
class Row:
    """One way to decode. Attributes: name; decode; seconds of each counted run; peak bytes; difference from plain."""

    name: str
    decode: Decode
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    difference: float = 0.0


def random_weights(device: torch.device) -> dict[str, torch.Tensor]:
    """A full-size checkpoint with random weights, scaled so that activations neither grow nor vanish."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in VideoVAE(VaeConfig()).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if key.endswith("bias"):
            values *= 0.05
        elif "norm" in key:
            values = 1 + 0.1 * values
        else:
            values *= shape[1:].numel() ** -0.5
        weights[key] = values.to(device)
    return weights


def candidates(vae: VideoVAE, plain: PlainVideoVae) -> Iterator[Row]:
    """The rows of the table, in its order."""

    def by(**chosen: Any) -> Decode:
        settings = VaeSettings(**chosen)
        return lambda z: decode_raw(vae, z, settings, output_device=vae.device)[0]

    yield Row("plain (specification)", plain.decode)
    switched: dict[str, bool] = {}
    off = {"mode": "whole", "kernels": "plain", "temporal_slice": 1 << 20}
    yield Row("this VAE, everything off", by(**off, optimizations=Optimizations.none()))
    for item in fields(Optimizations):
        switched[item.name] = True
        yield Row(f"+ {item.name}", by(**{**off, "kernels": "eager"}, optimizations=Optimizations.none(**switched)))
    yield Row("mode whole, streamed", by(mode="whole", temporal_slice=1))
    yield Row("mode exact", by(mode="exact"))
    yield Row("mode tiles of 96 px", by(mode="tiles", tile_size=96, tile_overlap=32))


def seconds_of(row: Row, z: torch.Tensor) -> float:
    synchronize(z.device)
    start = time.perf_counter()
    with torch.inference_mode():
        row.decode(z)
    synchronize(z.device)
    return time.perf_counter() - start


def peak_of(row: Row, z: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Bytes alive at once above weights and output, and the result."""
    if z.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.inference_mode():
            result = row.decode(z)
        return torch.cuda.max_memory_allocated() - before - result.nbytes, result
    with torch.no_grad(), LiveElements() as live:
        result = row.decode(z)
    return live.peak * z.element_size() - result.nbytes, result


def profile_of(row: Row, z: torch.Tensor) -> dict[str, float]:
    """Share of each kind of operation in the time of all operations, 0..1."""
    from torch.profiler import ProfilerActivity, profile

    card = z.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card else [])]
    with torch.inference_mode(), profile(activities=activities) as profiler:
        row.decode(z)
    totals = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if card else event.self_cpu_time_total
        kind = next((k for k, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
        totals[kind] += own
    whole = sum(totals.values()) or 1.0
    return {kind: round(share / whole, 4) for kind, share in totals.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(rows: list[Row], z: torch.Tensor, runs: int) -> None:
    """Memory and difference of every row once, which also warms it up; then `runs` rounds through all of them."""
    reference: torch.Tensor | None = None
    for row in rows:
        row.peak, result = peak_of(row, z)
        if reference is None:
            reference = result.float()
        row.difference = float((result.float() - reference).abs().max() / reference.std())
        del result
    for _ in range(runs):
        for row in rows:
            row.seconds.append(seconds_of(row, z))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--latent", type=int, nargs=3, default=None, metavar=("T", "H", "W"), help="latent cells")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--rows", default="", help="only rows whose name contains one of these, comma-separated")
    parser.add_argument("--name", default="vae_decode", help="of the result file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    size = args.latent or ([21, 152, 104] if device.type == "cuda" else [3, 16, 16])
    dtype = getattr(torch, args.dtype)
    weights = {key: value.to(dtype) for key, value in random_weights(device).items()}
    vae = from_state_dict(weights, dtype=dtype, device=device)
    z = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    wanted = [part for part in args.rows.split(",") if part]
    rows = [
        row
        for number, row in enumerate(candidates(vae, PlainVideoVae(weights)))
        if not wanted or number == 0 or any(part in row.name for part in wanted)
    ]
    measure(rows, z, args.runs)
    plain = rows[0]
    shown = [
        {
            "row": row.name,
            "seconds": round(median(row.seconds), 3),
            "speedup": round(median([a / b for a, b in zip(plain.seconds, row.seconds, strict=True)]), 3),
            "peak_mib": round(row.peak / 2**20, 1),
            "peak_ratio": round(row.peak / plain.peak, 3),
            "difference": float(f"{row.difference:.2e}"),
        }
        for row in rows
    ]
    print(table(shown))
    profiles = {row.name: profile_of(row, z) for row in (plain, rows[-2] if len(rows) > 2 else rows[-1])}
    for name, shares in profiles.items():
        print(f"{name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()))
    frames = [vae.config.frames(size[0]), 8 * size[1], 8 * size[2]]
    setup = {"latent": size, "frames_height_width": frames, "dtype": args.dtype, "runs": args.runs}
    threads = torch.get_num_threads() if device.type == "cpu" else None
    data = {**setup, "threads": threads, "rows": shown, "profiles": profiles}
    print(f"stored in {store(args.name, data, args.device)}")


if __name__ == "__main__":
    main()

"""What compiling the full-size video VAE takes, in a first and in a second process: `python . benchmarks.vae_compile`.

By repeated units, as is the default. Each process decodes three latent frames with random weights, plain and then
compiled; the first begins with nothing on disk, the second with what the first has left: code, and what was found of
it. A latent of 4 x 4 cells, because code for units serves every size; of what is compiled here nothing depends on it,
while the runs that compare compiled with plain code grow with the clip.

What the second process still takes is hardly the VAE's: importing inductor, hashing the sources of torch and Triton
for the cache's key, trying in child processes which instruction sets the processor has, and tracing the units once,
because dynamo keeps no guards on disk. `torch._dynamo.config.caching_precompile` would, but drops guards for it.

Beside the clock's seconds stand the processor's, of child processes (g++) too, which a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..commands.paths import PACK
from ..compile_clock import Compilations, counted
from ..vae import VaeConfig, VaeSettings, VideoVAE, decode_raw, remember_in
from ..vae.embedded import RANDOM_CONFIG as NARROW
from .common import store, table
from .usual_advice.compiling import processor_seconds

TARGET = 180.0
"""Seconds that the first process may take to compile on two cores; the second a tenth of it."""


def one_process(folder: Path, threads: int, *, narrow: bool, scope: str) -> dict[str, Any]:
    """What one process measures. `folder`: where code and what was found of it is kept."""
    torch.set_num_threads(threads)
    remember_in(folder)
    vae = random_vae(NARROW if narrow else VaeConfig())
    z = torch.randn(1, vae.config.latent_channels, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = VaeSettings(mode="whole", temporal_slice=1)
    chosen = VaeSettings(mode="whole", temporal_slice=1, compile={}, compile_scope=scope, compile_trial=False)
    decode_raw(vae, z, plain)
    expected, _ = decode_raw(vae, z, plain)
    made = Compilations()
    with counted(made), processor_of_compiling() as processor, stopwatch() as first:
        result, report = decode_raw(vae, z, chosen)
    with stopwatch() as warm:
        decode_raw(vae, z, chosen)
    if report["torch_compile"].applied == "off":
        raise SystemExit(f"it was not compiled: {report['torch_compile'].reason}")
    from torch._dynamo.utils import counters

    return {
        "compiled_times": made.count,
        "compiling_s": round(made.seconds, 1),
        "compiling_cpu_s": round(processor(), 1),
        "first_s": round(first["wall"], 1),
        "first_cpu_s": round(first["processor"], 1),
        "warm_s": round(warm["wall"], 1),
        "warm_cpu_s": round(warm["processor"], 1),
        "from_disk": counters["aot_autograd"]["autograd_cache_hit"],
        "compared": "checking it" in report["torch_compile"].cost,
        "max_difference": float(f"{float((result - expected).abs().max() / expected.std()):.1e}"),
    }


def random_vae(config: VaeConfig) -> VideoVAE:
    """A VAE with random weights, of a size that keeps values finite."""
    with torch.device("meta"):
        vae = VideoVAE(config)
    vae = vae.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weight in vae.parameters():
        if weight.dim() > 1:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.fill_(1.0)
    return vae


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds of the block, by the clock ("wall") and of the processor ("processor")."""
    taken: dict[str, float] = {}
    wall, processor = time.perf_counter(), processor_seconds()
    yield taken
    taken.update(wall=time.perf_counter() - wall, processor=processor_seconds() - processor)


@contextmanager
def processor_of_compiling() -> Iterator[Callable[[], float]]:
    """The processor's seconds of all that is compiled in the block."""
    from torch._dynamo.callback import callback_handler

    started: list[float] = []
    spent = [0.0]

    def begin(_: object) -> None:
        started.append(processor_seconds())

    def end(_: object) -> None:
        spent[0] += processor_seconds() - started.pop()

    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield lambda: spent[0]
    finally:
        callback_handler.remove_start_callback(begin)
        callback_handler.remove_end_callback(end)


def in_a_process(folder: Path, options: list[str]) -> dict[str, Any]:
    """`one_process` in a process of its own, which keeps everything in `folder`."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    command = [sys.executable, str(PACK), "benchmarks.vae_compile", "--process", str(folder), *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--small", action="store_true", help="a narrow VAE, stored nowhere")
    parser.add_argument("--slice", action="store_true", help="whole slices instead of units, stored nowhere")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    parser.add_argument("--process", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process:
        scope = "slice" if args.slice else "blocks"
        with torch.no_grad():
            print(json.dumps(one_process(Path(args.process), args.threads, narrow=args.small, scope=scope)))
        return
    chosen = [flag for flag, on in (("--small", args.small), ("--slice", args.slice)) if on]
    options = ["--threads", str(args.threads), *chosen]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for process in ("first process", "second process"):
            rows.append({"row": process, **in_a_process(Path(folder), options)})
            print(table(rows[-1:]), flush=True)
    ratio = rows[0]["compiling_cpu_s"] / max(rows[1]["compiling_cpu_s"], 0.1)
    seconds = [row["compiling_s"] for row in rows]
    target = {"first_s": TARGET, "second_s": TARGET / 10, "met": seconds[0] <= TARGET and seconds[1] <= TARGET / 10}
    data = {"threads": args.threads, "rows": rows, "second_times_faster": round(ratio, 2), "target": target}
    print(json.dumps({name: data[name] for name in ("second_times_faster", "target")}))
    if not (args.no_store or chosen):
        print(f"stored in {store('vae_compile', data, 'cpu')}")


if __name__ == "__main__":
    main()

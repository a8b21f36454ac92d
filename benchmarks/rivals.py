"""The video VAE against what a user would run instead: `COMFYUI_PATH=folder python . benchmarks.rivals`.

The same full-size random weights in one process, decode and encode, in float32 on a processor. Each round runs every
implementation once, so that a busy machine disturbs all alike; what counts is the median of the ratios within a round,
and the least and the largest of them are its spread. Time is that on the clock, and that of the process's threads. The
peak is that of live tensors above weights and output, counted in a run that is not timed.

Rivals are the class in ComfyUI's own folder, where that has one, and whatever `--rival MODULE:FACTORY` names: a
function of a state dict that returns an object with `decode(z)`, unscaled latents [1, 16, T', H', W'] to pixels, and
`encode(x)`, pixels in -1..1 to means of unscaled latents, or only one of them. `--busy N` keeps so many other processes
at work meanwhile. `--bfloat16` adds this VAE in bfloat16 with its fast convolutions, for processors that compute in it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..memory import LiveBytes
from ..vae import VaeConfig, VaeSettings, VideoVAE, decode_raw, encode_raw, from_state_dict
from ..vae.network.convolution import onednn_takes
from .common import store, table
from .plain_video_vae import formula_weights
from .vae_decode import full_size_shapes

Weights = dict[str, torch.Tensor]
Run = Callable[[torch.Tensor], torch.Tensor]
DECODES = ((1, 4, 4), (2, 8, 8), (3, 16, 16))
"""Latents: frames, height, width."""
ENCODES = ((9, 128, 128),)
"""Clips: frames, height, width."""
OURS = "this VAE, auto"
FAST = "this VAE, bfloat16, fast"


@dataclass
class Row:
    """One implementation on one input.

    Attributes:
        seconds, cpu_seconds: of each round. peak: bytes. difference: from this VAE's plain code, of its std.
        problem: why it could not run.
    """

    name: str
    run: Run
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: int = 0
    difference: float = 0.0
    problem: str = ""


class OfComfyUI:
    """The class of ComfyUI's own folder, which scales latents itself.

    Args:
        folder: of ComfyUI.
        weights: of the VAE.

    Raises:
        ImportError: this ComfyUI has none, or its requirements are not installed.
    """

    def __init__(self, folder: str, weights: Weights) -> None:
        sys.path.insert(0, folder)
        importlib.import_module("comfy.cli_args").args.cpu = True
        module = importlib.import_module("comfy.ldm.seedvr.vae")
        self._vae = module.VideoAutoencoderKLWrapper()
        self._vae.load_state_dict(weights)
        self._vae = self._vae.float().eval().requires_grad_(False)
        self._scale, self._shift = module.BYTEDANCE_VAE_SCALING_FACTOR, module.BYTEDANCE_VAE_SHIFTING_FACTOR

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._vae.decode((z - self._shift) * self._scale)
        return made if made.ndim == 5 else made[:, :, None]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._vae.encode(x)
        return made if made.ndim == 5 else made[:, :, None]


def named_rival(name: str, weights: Weights) -> Any:
    """What MODULE:FACTORY makes of the weights."""
    module, _, factory = name.partition(":")
    return getattr(importlib.import_module(module), factory)(weights)


def rivals(weights: Weights, comfyui: str, named: list[str]) -> dict[str, Any]:
    """The rivals by name; one that cannot be had is named on the terminal, with the reason."""
    found: dict[str, Any] = {}
    makers: dict[str, Callable[[], Any]] = {}
    for folder in filter(None, comfyui.split(os.pathsep)):
        makers[f"ComfyUI {os.path.basename(folder.rstrip('/'))}"] = partial(OfComfyUI, folder, weights)
    for name in named:
        makers[name] = partial(named_rival, name, weights)
    for name, make in makers.items():
        try:
            found[name] = make()
        except (ImportError, AttributeError) as error:
            print(f"{name}: left out: {error}", flush=True)
    return found


def rows(vae: VideoVAE, half: VideoVAE | None, others: dict[str, Any], direction: str) -> tuple[Run, list[Row]]:
    """This VAE's plain code, and every implementation of a direction, ours first. `half`: the same VAE in bfloat16."""
    means = vae.config.latent_channels

    def own(settings: VaeSettings, vae: VideoVAE = vae) -> Run:
        if direction == "decode":
            return lambda z: decode_raw(vae, z, settings)[0]
        return lambda x: encode_raw(vae, x, settings)[0][:, :means]

    found = [Row(OURS, own(VaeSettings()))]
    if half is not None:
        found.append(Row(FAST, own(VaeSettings(convolution="fast"), half)))
    found += [Row(name, getattr(other, direction)) for name, other in others.items() if hasattr(other, direction)]
    return own(VaeSettings(mode="whole", kernels="plain")), found


def measure(found: list[Row], plain: Run, x: torch.Tensor, rounds: int) -> None:
    """Fill the rows: one run each for peak and difference, which also chooses what is chosen, then the rounds."""
    expected = plain(x)
    for row in found:
        try:
            with LiveBytes(x.device) as live:
                made = row.run(x)
            row.peak = max(0, live.peak - made.nbytes)
            row.difference = float((made - expected).abs().max() / expected.std())
        except Exception as error:  # noqa: BLE001 - other people's code; the others are measured all the same
            row.problem = f"{type(error).__name__}: {error}".splitlines()[0]
    for _ in range(rounds):
        for row in found:
            if not row.problem:
                clock, worked = time.perf_counter(), time.process_time()
                row.run(x)
                row.seconds.append(time.perf_counter() - clock)
                row.cpu_seconds.append(time.process_time() - worked)


def as_table(found: list[Row]) -> list[dict[str, Any]]:
    """The rows as data. The ratios are their time over ours: above 1, this VAE is faster."""
    ours, data = found[0], []
    fast = next((row for row in found if row.name == FAST), None)
    for row in found:
        ratios = [theirs / own for theirs, own in zip(row.seconds, ours.seconds, strict=False)] or [float("nan")]
        worked = [theirs / own for theirs, own in zip(row.cpu_seconds, ours.cpu_seconds, strict=False)]
        more: dict[str, Any] = {"problem": row.problem} if row.problem else {}
        if fast is not None:
            over = [theirs / quick for theirs, quick in zip(row.seconds, fast.seconds, strict=False)]
            more["time_over_fast"] = round(statistics.median(over), 3) if over else ""
        data.append(
            {
                "implementation": row.name,
                "seconds": round(statistics.median(row.seconds), 3) if row.seconds else "",
                "cpu_seconds": round(statistics.median(row.cpu_seconds), 3) if row.seconds else "",
                "time_over_ours": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "largest": round(max(ratios), 3),
                "cpu_time_over_ours": round(statistics.median(worked), 3) if worked else "",
                "peak_mib": round(row.peak / 2**20, 1),
                "max_difference": float(f"{row.difference:.2e}"),
                **more,
            }
        )
    return data


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many other processes at work inside the `with` block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def shape(text: str) -> tuple[int, int, int]:
    """ "3x16x16" as numbers."""
    frames, height, width = (int(part) for part in text.split("x"))
    return frames, height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH", ""), help="its folder (COMFYUI_PATH)")
    parser.add_argument("--rival", action="append", default=[], metavar="MODULE:FACTORY")
    parser.add_argument("--decode", nargs="*", type=shape, default=DECODES, metavar="TxHxW", help="latents")
    parser.add_argument("--encode", nargs="*", type=shape, default=ENCODES, metavar="TxHxW", help="clips, 4n + 1 long")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="other processes at work meanwhile")
    parser.add_argument("--bfloat16", action="store_true", help="also this VAE in bfloat16, convolutions fast")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    if args.bfloat16 and not onednn_takes(torch.bfloat16):
        parser.error("--bfloat16: this processor does not convolve in bfloat16")
    torch.set_num_threads(args.threads)
    weights = formula_weights(full_size_shapes())
    vae = from_state_dict(weights, dtype=torch.float32)
    half = from_state_dict(weights, dtype=torch.bfloat16) if args.bfloat16 else None
    others = rivals(weights, args.comfyui, args.rival)
    loads = [[round(load, 2) for load in os.getloadavg()]] if hasattr(os, "getloadavg") else []
    cases: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), busy(args.busy):
        for direction, sizes in (("decode", args.decode), ("encode", args.encode)):
            for size in sizes:
                if direction == "decode":
                    x = torch.randn((1, VaeConfig().latent_channels, *size), generator=generator)
                else:
                    x = torch.rand((1, 3, *size), generator=generator) * 2 - 1
                plain, found = rows(vae, half, others, direction)
                measure(found, plain, x, args.rounds)
                case = f"{direction} {'x'.join(map(str, size))}"
                data = as_table(found)
                cases.append({"case": case, "rows": data})
                shown = [{key: value for key, value in row.items() if key != "problem"} for row in data]
                print(f"{case}\n{table(shown)}", flush=True)
                if hasattr(os, "getloadavg"):
                    loads.append([round(load, 2) for load in os.getloadavg()])
    if not args.no_store:
        everything = {
            "threads": args.threads,
            "rounds": args.rounds,
            "busy_processes": args.busy,
            "load_averages": loads,
            "cases": cases,
        }
        name = "rivals" + ("_bfloat16" if args.bfloat16 else "") + (f"_busy_{args.busy}" if args.busy else "")
        print(f"stored in {store(name, everything, 'cpu')}")


if __name__ == "__main__":
    main()

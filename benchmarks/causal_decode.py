"""Long decodes of diffusers' VAEs, diffusers' own and streamed: `python . benchmarks.causal_decode`.

Memory: full-size VAEs and full-size clips, decoded with tensors that have no data: every allocation is counted, nothing
is computed, so no card is needed. What is reported is the peak of live activations on the decoding device, without
weights and without what a convolution's algorithm takes beside its tensors. Streamed frames leave the device as they
are made.

Time: full-size VAEs with random weights and small clips, each way of decoding in turn, round after round; the median of
each, and the largest difference of a pixel in 0..1 from diffusers' own decode. On a card (`--device cuda`) clips have
their full size, the dtype is bfloat16, and each way's real peak stands beside its time; nothing is counted then.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from ..commands.libraries import prepare_libraries
from ..memory import LiveBytes
from ..pipelines.decoding.exactness import LATENT_FRAMES_PER_STEP
from ..pipelines.decoding.fast_arithmetic import FastArithmetic, most_frames
from ..pipelines.decoding.streaming import decode_streaming, stream_frames
from ..vae.kernels import Kernels
from .common import store, table

# Class, latent channels, pixels and frames per latent element, latent size of the timed clip; every other size is the
# class's own default: the released model's.
MODELS: dict[str, tuple[str, int, int, int, tuple[int, int, int]]] = {
    "Wan 2.1": ("AutoencoderKLWan", 16, 8, 4, (5, 12, 12)),
    "HunyuanVideo 1.5": ("AutoencoderKLHunyuanVideo15", 32, 16, 4, (3, 12, 12)),
    "LTX-2": ("AutoencoderKLLTX2Video", 128, 32, 8, (4, 12, 12)),
}
CARD_CLIPS = {"Wan 2.1": ((21, 60, 104), (21, 90, 160)), "HunyuanVideo 1.5": ((21, 30, 52),), "LTX-2": ((11, 15, 26),)}
"""Latent sizes of the clips that are timed on a card: 81 frames of 832x480, and Wan's of 1280x720 too."""
BYTES_PER_ELEMENT = 2
"""bfloat16."""
Stream = Callable[[Any, torch.Tensor], Iterator[torch.Tensor]]


def build(class_name: str) -> Any:
    """The VAE without data."""
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, class_name)().eval()


def diffusers_peak(vae: Any, latents: torch.Tensor) -> int:
    """Peak of live elements of `vae.decode`."""
    with torch.no_grad(), LiveBytes() as live:
        vae.decode(latents, return_dict=False)
    return live.peak // latents.element_size()


def streamed_peak(vae: Any, latents: torch.Tensor, stream: Stream) -> int:
    """Peak of live elements when every run of frames is dropped from the device before the next one is made."""
    with torch.no_grad(), LiveBytes() as live:
        for run in stream(vae, latents):
            del run
    return live.peak // latents.element_size()


def fast_stream(channels_last: bool) -> Stream:
    """Fast arithmetic, as VAE Decode (Fast) runs it."""
    fast = FastArithmetic(Kernels(), channels_last)
    return partial(stream_frames, latent_frames_per_step=LATENT_FRAMES_PER_STEP, fast=fast)


def memory_rows(width: int, height: int, frames: list[int]) -> list[dict[str, Any]]:
    """One row per model and clip length; gibibytes in bfloat16."""
    found = []
    for name, (class_name, channels, ratio, temporal, _) in MODELS.items():
        for count in frames:
            shape = (1, channels, 1 + (count - 1) // temporal, height // ratio, width // ratio)
            latents = torch.empty(shape, device="meta")
            peaks = {
                "diffusers_gib": diffusers_peak(build(class_name), latents),
                "streamed_gib": streamed_peak(build(class_name), latents, stream_frames),
                "fast_gib": streamed_peak(build(class_name), latents, fast_stream(channels_last=True)),
            }
            sizes = {key: round(peak * BYTES_PER_ELEMENT / 2**30, 3) for key, peak in peaks.items()}
            found.append({"vae": name, "frames": count, "size": f"{width}x{height}", **sizes})
    return found


def time_rows(rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One row per clip and way of decoding: median seconds, times faster than diffusers, difference from it."""
    found = []
    for name, (class_name, channels, ratio, temporal, small) in MODELS.items():
        for frames, height, width in CARD_CLIPS[name] if device.type == "cuda" else (small,):
            ways = _ways(class_name, (1, channels, frames, height, width), device)
            clip = f"{1 + (frames - 1) * temporal} frames {width * ratio}x{height * ratio}"
            found += [{"vae": name, "clip": clip, **row} for row in _interleaved(ways, rounds, device)]
            print(table(found), flush=True)
    return found


def _ways(class_name: str, shape: tuple[int, ...], device: torch.device) -> dict[str, Callable[[], torch.Tensor]]:
    """Diffusers' own decode of random latents by random weights, and the pack's; all give frames in main memory."""
    import diffusers

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae = getattr(diffusers, class_name)().eval().to(device, dtype)
    latents = torch.randn(shape).to(device, dtype)
    decode = partial(decode_streaming, vae, latents)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "diffusers": lambda: vae.decode(latents, return_dict=False)[0].cpu(),
        "streamed": decode,
    }
    for layout, channels_last in (("fast", False), ("fast, channels-last", True)):
        fast = FastArithmetic(Kernels(), channels_last, most_frames(latents, channels_last=channels_last))
        ways[layout] = partial(decode, latent_frames_per_step=LATENT_FRAMES_PER_STEP, fast=fast)
    return ways


def _interleaved(
    ways: dict[str, Callable[[], torch.Tensor]], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Every way once per round; the first round is not counted. The frames end in main memory, so a card has ended."""
    peaks: dict[str, int] = {}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    differences: dict[str, float] = {}
    expected = torch.empty(0)
    with torch.no_grad():
        for turn in range(rounds + 1):
            for way, decode in ways.items():
                with _peak(device, peaks, way):
                    before = time.perf_counter()
                    frames = decode()
                    taken = time.perf_counter() - before
                if turn:
                    seconds[way].append(taken)
                    continue
                frames = frames.float().cpu().clamp(-1, 1)
                expected = frames if way == "diffusers" else expected
                differences[way] = float((frames - expected).abs().max()) / 2
    plain = median(seconds["diffusers"])
    return [
        {
            "way": way,
            "seconds": round(median(taken), 3),
            "times_faster": round(plain / median(taken), 3),
            "largest_difference": differences[way],
            **({"peak_gib": round(peaks[way] / 2**30, 3)} if way in peaks else {}),
        }
        for way, taken in seconds.items()
    ]


@contextmanager
def _peak(device: torch.device, peaks: dict[str, int], way: str) -> Iterator[None]:
    """Note what a way takes of a card's memory above what was in use before; of a processor nothing is noted."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    peaks[way] = torch.cuda.max_memory_allocated(device) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the times on a card alone")
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 81])
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; 0 leaves the timing out")
    parser.add_argument("--no-store", action="store_true", help="do not write benchmarks/results")
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    device, result = torch.device(args.device), {}
    if device.type == "cpu":
        result["rows"] = memory_rows(args.width, args.height, args.frames)
        print(table(result["rows"]))
    if args.rounds:
        result["time"] = time_rows(args.rounds, device)
    if not args.no_store:
        print(f"stored in {store('causal_decode', result, str(device))}")


if __name__ == "__main__":
    main()

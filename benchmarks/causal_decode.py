"""Memory of a long decode, diffusers' and streamed: `python -m fastdiffusers.benchmarks.causal_decode`.

Full-size VAEs and full-size clips, decoded with tensors that have no data: every allocation is counted, nothing is
computed, so no card is needed. What is reported is the peak of live activations on the decoding device, without weights
and without what a convolution's algorithm takes beside its tensors. Streamed frames leave the device as they are made.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..commands.libraries import prepare_libraries
from ..optimizations.decode_memory import LiveElements
from ..pipelines.video_decode import stream_frames
from .common import store, table

# Class, latent channels, pixels per latent element; every other size is the class's own default: the released model's.
MODELS = {
    "Wan 2.1": ("AutoencoderKLWan", 16, 8),
    "HunyuanVideo 1.5": ("AutoencoderKLHunyuanVideo15", 32, 16),
}
BYTES_PER_ELEMENT = 2
"""bfloat16."""


def build(class_name: str) -> Any:
    """The VAE without data."""
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, class_name)().eval()


def diffusers_peak(vae: Any, latents: torch.Tensor) -> int:
    """Peak of live elements of `vae.decode`."""
    with torch.no_grad(), LiveElements() as live:
        vae.decode(latents, return_dict=False)
    return live.peak


def streamed_peak(vae: Any, latents: torch.Tensor) -> int:
    """Peak of live elements when every run of frames is dropped from the device before the next one is made."""
    with torch.no_grad(), LiveElements() as live:
        for run in stream_frames(vae, latents):
            del run
    return live.peak


def rows(width: int, height: int, frames: list[int]) -> list[dict[str, Any]]:
    """One row per model and clip length; gibibytes in bfloat16."""
    found = []
    for name, (class_name, channels, ratio) in MODELS.items():
        for count in frames:
            latents = torch.empty((1, channels, 1 + (count - 1) // 4, height // ratio, width // ratio), device="meta")
            plain, streamed = diffusers_peak(build(class_name), latents), streamed_peak(build(class_name), latents)
            found.append(
                {
                    "vae": name,
                    "frames": count,
                    "size": f"{width}x{height}",
                    "diffusers_gib": round(plain * BYTES_PER_ELEMENT / 2**30, 3),
                    "streamed_gib": round(streamed * BYTES_PER_ELEMENT / 2**30, 3),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 81])
    args = parser.parse_args()
    prepare_libraries(verbose=False)
    measured = rows(args.width, args.height, args.frames)
    print(table(measured))
    print(f"stored in {store('causal_decode', {'rows': measured}, 'cpu')}")


if __name__ == "__main__":
    main()

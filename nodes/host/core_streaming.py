"""ComfyUI's own Wan-family VAEs, streamed: every run of frames leaves the card as soon as the decoder has made it.

ComfyUI's networks decode in runs already, and gather the runs on the card. Here a shallow copy of the network, with the
same weights, carries another `decoder` attribute: one that takes each run away and hands back an empty one in its
place. ComfyUI's own code around the decoder drives it that way, and then, once more, finishes the gathered frames (it
joins them, and unpacks the patches of Wan 2.2). So the arithmetic is ComfyUI's in every version of it, and the network
that the graph shares is never written to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ...vae.streams import Gathering

MODULES = ("comfy.ldm.wan.vae", "comfy.ldm.wan.vae2_2")
"""Where ComfyUI has the networks whose code around the decoder gathers runs of frames and nothing else."""


def streams(network: Any) -> bool:
    """Whether this is one of ComfyUI's Wan-family networks: Wan 2.1, Wan 2.2, Qwen-Image."""
    return type(network).__module__ in MODULES and isinstance(getattr(network, "decoder", None), torch.nn.Module)


def decode(network: Any, latents: torch.Tensor, frames: int, on_frames: Callable[[int], None]) -> torch.Tensor:
    """What `network.decode(latents)` gives, on the CPU, without the frames ever being on the card together.

    Args:
        network: one for which `streams` holds.
        latents: [B, C, T, h, w], where and as the network computes.
        frames: frames that the decoder will make.
        on_frames: called before the first run and after each with the number of frames so far; it stops the decode by
            raising.

    Returns:
        [B, 3, frames, H, W].
    """
    on_frames(0)
    gathered = _GatheringDecoder(network.decoder, frames, on_frames)
    _with_decoder(network, gathered).decode(latents)
    return _with_decoder(network, _GatheredFrames(gathered.frames())).decode(latents[:, :, :1])


def _with_decoder(network: Any, decoder: torch.nn.Module) -> Any:
    """A copy of the network with the same weights and another decoder."""
    worker = copy.copy(network)
    worker._modules = {**network._modules, "decoder": decoder}
    return worker


class _GatheringDecoder(torch.nn.Module):
    """The decoder, with its frames gathered on the CPU; what it returns has all axes but is empty."""

    def __init__(self, decoder: torch.nn.Module, total: int, on_frames: Callable[[int], None]) -> None:
        super().__init__()
        self.decoder = decoder
        self._on_frames, self._gathering = on_frames, Gathering(total)
        self._several = False

    def forward(self, *arguments: Any, **options: Any) -> Any:
        made = self.decoder(*arguments, **options)
        self._several = isinstance(made, list)
        runs = made if self._several else [made]
        empty = [self._take(runs.pop(0)) for _ in range(len(runs))]
        self._on_frames(self._gathering.written)
        return empty if self._several else empty[0]

    def _take(self, run: torch.Tensor) -> torch.Tensor:
        self._gathering.add(run)
        return run.new_empty((*run.shape[:3], 0, 0))

    def frames(self) -> Any:
        """All frames, in the form in which the decoder gives a run."""
        whole = self._gathering.frames()
        assert whole is not None, "decode calls its decoder"  # noqa: S101 - for the type checker
        return [whole] if self._several else whole


class _GatheredFrames(torch.nn.Module):
    """In the place of the decoder: returns all frames that it has made."""

    def __init__(self, frames: Any) -> None:
        super().__init__()
        self._frames = frames

    def modules(self, remove_duplicate: bool = True) -> Any:  # ComfyUI counts the cached layers of its decoder
        return iter(())

    def forward(self, *_arguments: Any, **_options: Any) -> Any:
        return self._frames

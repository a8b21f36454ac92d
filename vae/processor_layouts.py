"""How a processor cuts a job, fastest first: few large slices and strips where memory is plenty, many small ones where
it is short.

Convolutions over time work on blocks of 4 frames, so slices hold at least 4 frames at full resolution as long as memory
allows. Whether strips that caches hold are faster than whole planes depends on the processor: it is measured once, on a
residual block of the very VAE, and remembered. Small jobs do without: they would not earn it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from ..cache_folder import device_name
from .kernels import Kernels
from .kernels.saved_choices import SAVED, SavedChoices
from .kernels.temporal_choice import processor_seconds
from .network.execution import CarriedFrames, Execution, Layout
from .network.model import VideoVAE
from .network.temporal import LARGEST_BLOCK, Temporal

SLICES = (4, 2, 1)
"""Latent frames of a slice."""
TAIL = 4
"""Frames at a time at full resolution where not all of a slice fit: one block."""
WORKSPACES = (64 << 20, 256 << 20, 16 << 20)
"""Bytes of temporaries per strip. The first is taken where nothing is measured: on a Xeon with 2 MiB of cache per core,
whole planes of 128x128 take 1.2 times as long."""
MARGIN = 0.03
"""Others must be faster than the first by this fraction."""
MEASURED_PLANE = (48, 128)
"""Rows and columns of what is measured."""
WORTH_MEASURING = 30
"""A job must be as large as so many of the measured pieces for its strips to be measured."""


class Cut(NamedTuple):
    """One way to cut a job. Attributes: size: latent frames per slice."""

    size: int
    layout: Layout


def cuts(vae: VideoVAE, frames: int, cells: int, asked: int, most: int) -> Iterator[Cut]:
    """Ways to cut a job, fastest first; those that need the least memory, in blocks of one frame, are not among them.

    Args:
        frames: latent frames of the clip.
        cells: of all its frames at full resolution.
        asked: latent frames per slice as the settings say, 0 to choose.
        most: frames of the largest block of a convolution over time, 0 for none.
    """
    longest = max(1, frames - 1)
    sizes = [asked] if asked else sorted({min(size, longest) for size in SLICES}, reverse=True)
    rows, columns = MEASURED_PLANE
    measured = cells >= WORTH_MEASURING * TAIL * rows * columns
    best = WORKSPACE.best(vae, most) if measured else WORKSPACES[0]
    for workspace in (best, *sorted((other for other in WORKSPACES if other < best), reverse=True)):
        yield Cut(sizes[0], Layout(workspace=workspace, block_frames=most))
    for size in sizes:
        for keep in (True, False) if most else (True,):
            yield Cut(size, Layout(workspace=WORKSPACES[-1], tail_frames=TAIL, block_frames=most, keep_kernels=keep))


class WorkspaceChoice:
    """The fastest of `WORKSPACES` for a residual block at full resolution.

    Args:
        timer: seconds of a function.
        saved: where choices outlive the process.
    """

    def __init__(
        self,
        timer: Callable[[Callable[[], object]], float] = processor_seconds,
        saved: SavedChoices | None = None,
    ) -> None:
        self._timer = timer
        self._saved = saved
        self._chosen: dict[tuple[object, ...], int] = {}
        self._guard = threading.Lock()

    def best(self, vae: VideoVAE, most: int) -> int:
        """Bytes of temporaries per strip."""
        channels = vae.config.block_out_channels[0]
        key = ("workspace", device_name(vae.device), str(vae.dtype), channels, most)
        with self._guard:
            if key not in self._chosen:
                self._chosen[key] = self._choose(key, vae, most)
            return self._chosen[key]

    def _choose(self, key: tuple[object, ...], vae: VideoVAE, most: int) -> int:
        names = {str(workspace): workspace for workspace in WORKSPACES}
        saved = self._saved.get(key) if self._saved else None
        if saved in names:
            return names[saved]
        block = vae.decoder.last_residual_block
        shape = (1, vae.config.block_out_channels[0], TAIL + 1, *MEASURED_PLANE)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device, vae.dtype)
        x = x.contiguous(memory_format=torch.channels_last_3d)

        def run(workspace: int) -> None:
            temporal = Temporal(most, vae.transformed)
            layout = Layout(workspace=workspace, block_frames=most)
            block(x.clone(), Execution(CarriedFrames(), layout=layout, kernels=Kernels(), temporal=temporal))

        with torch.inference_mode():
            run(WORKSPACES[-1])
            seconds = {workspace: self._timer(partial(run, workspace)) for workspace in WORKSPACES}
        best = WORKSPACES[0]
        for workspace in WORKSPACES[1:]:
            if seconds[workspace] < seconds[best] * (1 - MARGIN):
                best = workspace
        if self._saved:
            self._saved.put(key, str(best))
        return best


WORKSPACE = WorkspaceChoice(saved=SAVED)
"""The strips chosen in this process."""


def block_frames(vae: VideoVAE, kernels: str, convolution: str) -> int:
    """Frames of the largest block of a convolution over time that the settings allow on the VAE's device.

    Args:
        kernels, convolution: of the settings.
    """
    if vae.device.type != "cpu" or kernels != "auto" or convolution == "conv3d":
        return 0
    if vae.dtype != torch.float32 and convolution != "fast":
        return 0
    return LARGEST_BLOCK.get(vae.dtype, 0)

"""How convolutions over time are computed: conv3d, or fewer plane convolutions on sums of frames (see `winograd`).

Which of them is decided for each kind of convolution by measuring (`kernels.temporal_choice`), within what the plan
allows. The transformed kernels are made once and kept beside the weights where memory allows; otherwise for each use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..kernels.saved_choices import SAVED
from ..kernels.temporal_choice import TemporalChoice
from . import winograd
from .convolution import torch_conv3d

LARGEST_BLOCK = {torch.float32: 4, torch.bfloat16: 4, torch.float16: 2}
"""Frames. In bfloat16 a block of 4 rounds three times as much as conv3d, one of 2 twice as much; of that a decode shows
little, as it rounds elsewhere too (`benchmarks/clip_quality.py`). In float16 sums of a block of 4 could overflow."""
FEWEST_CHANNELS = 96
"""Below that, sums of frames cost about as much as the multiplications they save."""
FEWEST_CELLS = 4096
"""Cells that a convolution must make, of all its frames. Below that, transforming its kernels costs about what they
save, and keeping them takes many times the memory of all it reads and makes: 54 MiB for 512 channels."""
CELLS_TO_KEEP = 8192
"""Cells that it must make for its transformed kernels to be kept. Transforming them moves about ten times the bytes of
the weights, by that a tenth of such a convolution; kept, those for small planes are most of what a decode holds."""
CHOICE = TemporalChoice(torch_conv3d, winograd.convolution, saved=SAVED)
"""The ways chosen in this process, by kind of convolution."""


class TransformedKernels:
    """The transformed kernels of some convolutions, by name.

    Args:
        keep: whether to keep them for the next use.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self._kept: dict[tuple[str, int], list[torch.Tensor]] = {}

    def get(self, name: str, weight: torch.Tensor, most: int, *, keep: bool = True) -> Iterable[torch.Tensor]:
        """Those of F(most, taps) of a weight [O, I, taps, kh, kw], kept unless `keep` says no; then made one by one."""
        kernels = self._kept.get((name, most))
        if kernels is None:
            made = winograd.transformed(weight, most)
            if not (self.keep and keep):
                return made
            kernels = self._kept[name, most] = list(made)
        return kernels

    def nbytes(self, prefix: str = "") -> int:
        """Bytes kept of the convolutions whose names begin so."""
        kept = [kernels for (name, _), kernels in list(self._kept.items()) if name.startswith(prefix)]
        return sum(kernel.nbytes for kernels in kept for kernel in kernels)

    def drop(self) -> None:
        """Forget them: the weights change, or memory is short."""
        self._kept.clear()


@dataclass
class Temporal:
    """What one job may do.

    Attributes:
        most: frames of the largest block allowed; 0 for conv3d alone.
        kernels: the transformed kernels.
        used: how often each convolution with a choice ran, by (name, taps, frames of the largest block; 0: conv3d).
    """

    most: int = 0
    kernels: TransformedKernels = field(default_factory=TransformedKernels)
    used: Counter[tuple[str, int, int]] = field(default_factory=Counter)

    def may(
        self, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, ...], frames: int, cells: int, *, head: bool
    ) -> bool:
        """Return whether there is a choice.

        Args:
            x: what is convolved, or what has its memory layout.
            frames: of the buffer that is convolved.
            cells: of each frame that is made.
            head: whether it begins with the first frame of a clip.
        """
        if torch.compiler.is_compiling() or not self.most:
            return False
        outputs, inputs, taps, _, _ = weight.shape
        # Of the beginning, one frame is made as it is anyway; blocks of one frame save nothing.
        made = frames - 1 if head else frames - taps + 1
        return (
            made >= 2
            and made * cells >= FEWEST_CELLS
            and taps in (2, 3)
            and min(outputs, inputs) >= FEWEST_CHANNELS
            and tuple(stride) == (1, 1, 1)
            and x.shape[0] == 1
            and x.stride(1) == 1  # channels last in memory
        )

    def cell_bytes(self, x: torch.Tensor, weight: torch.Tensor, frames: int, *, head: bool) -> int:
        """Bytes of sums of frames per output cell: those that are convolved, and their results, twice for a moment."""
        outputs, inputs, taps, _, _ = weight.shape
        sums = len(winograd.scheme(taps, frames, self.most, head=head, dtype=x.dtype).inputs)
        return sums * max(inputs + outputs, 2 * outputs) * x.element_size()

    def convolve(
        self,
        name: str,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        *,
        head: bool,
        add: bool = False,
        cells: int,
    ) -> bool:
        """Convolve a buffer [1, I, T, H, W] into `out` [1, O, T', h, w] by blocks of frames, where that is chosen.

        Args:
            name: of the weight.
            head: the buffer begins with a clip's first frame, which stands in for those before it.
            add: add the result to `out` instead of storing it there.
            cells: of each frame of the whole plane that `out` is a part of.

        Returns:
            False where conv3d is chosen: nothing was done then.
        """
        most = self.most if x.device.type == "meta" else CHOICE.most(x, weight, self.most)
        self.used[name, weight.shape[2], most] += 1
        if not most:
            return False
        how = winograd.scheme(weight.shape[2], x.shape[2], most, head=head, dtype=x.dtype)
        kernels = self.kernels.get(name, weight, most, keep=out.shape[2] * cells >= CELLS_TO_KEEP)
        winograd.convolve(x, kernels, bias, how, out, add=add)
        return True

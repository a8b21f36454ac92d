"""Upsampling without the upsampled tensor: 1x1x1 convolution, pixel shuffle and 3x3x3 convolution in one.

All three are linear, so together they are one linear map. Seen from one output phase (even or odd row, even or odd
column, first or second frame), the 27 taps of the 3x3x3 convolution fall on 2 coarse rows and 2 coarse columns, and,
where frames double, on 2 coarse frames. Taps that fall on the same coarse cell are summed when the model is loaded.
What remains is, per phase, a convolution with 2x2x2 = 8 taps (3x2x2 = 12 where frames do not double) on the coarse
grid: 0.30 (0.44) of the multiplications, no upscaled tensor, and carried frames at a quarter of the size.

Along one axis, tap d of output phase a lands on fine offset a + d - 1, which is phase (a + d - 1) mod 2 of the coarse
cell (a + d - 1) div 2; the causal time axis has k + d - 2 in its place.

The bias of the 1x1x1 convolution counts once per tap, but not for taps in the zero padding around the fine plane: the
outermost row and column get their own bias.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import nn

from ..kernels import Kernels
from .causal_conv import Kernel, causal_kernels
from .convolution import bias_is_a_pass, bias_of, conv3d
from .execution import Execution, empty
from .sources import TensorSource, carry_frames, gather
from .strips import Axis, Block
from .temporal import Temporal

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(row, column) phases, in the order of the stored weights."""


class PolyphaseConv(nn.Module):
    """The composed convolution [B, C, T, H, W] -> [B, C, z T, 2 H, 2 W]. Its weights are derived, never loaded.

    Args:
        upscale: the 1x1x1 convolution, C -> 4 z C.
        conv: the causal 3x3x3 convolution, C -> C.
        temporal: z, frames per frame: 1 or 2.
    """

    biases: torch.Tensor
    weight_0: torch.Tensor

    def __init__(self, upscale: nn.Conv3d, conv: nn.Conv3d, temporal: int) -> None:
        super().__init__()
        self.name = ""
        """Unique in its network: the key of its carried frames."""
        self.temporal = temporal
        self.taps = 2 if temporal == 2 else 3
        weights, biases = compose(upscale, conv, temporal)
        for phase, weight in enumerate(weights):
            last = torch.channels_last_3d if conv.weight.stride(1) == 1 else torch.contiguous_format
            self.register_buffer(f"weight_{phase}", weight.contiguous(memory_format=last), persistent=False)
        self.register_buffer("biases", biases, persistent=False)

    @property
    def carried(self) -> int:
        """Coarse frames carried to the next slice."""
        return self.taps - 1

    def forward(self, x: torch.Tensor, run: Execution, out: torch.Tensor, *, follows: bool = False) -> torch.Tensor:
        """Upsample into `out`.

        Args:
            x: [B, C, T, H, W].
            out: [B, C, z T', 2 H, 2 W].
            follows: the first frame of `x` is context only, already upsampled: T' = T - 1.
        """
        source = TensorSource(x, run.kernels)
        memory = run.state.get(self.name)
        _, channels, frames, height, width = x.shape
        rows, columns = Axis(height, 3, 1, 1, 1), Axis(width, 3, 1, 1, 1)
        front = 0 if memory is None else self.carried
        continued = bool(front or follows)
        kernels = [self._kernels(phase, front + frames, continued=continued) for phase in range(len(PHASES))]
        temporal = run.temporal
        reads, cells, head = front + frames, height * width, not continued
        if temporal is not None and not temporal.may(x, self.weight_0, (1, 1, 1), reads, cells, head=head):
            temporal = None
        kept = run.state.keep(self.name, self.carried, source.shape, x) if run.carry else None
        cell_bytes = channels * (frames * (1 + self.temporal) + self.carried) * x.element_size()
        if temporal is not None:
            cell_bytes += temporal.cell_bytes(x, self.weight_0, front + frames, head=not continued)
        for block in run.blocks(rows, columns, cell_bytes):
            run.may_stop()
            buffer = gather(source, memory, front, block, run.kernels)
            for phase in range(len(PHASES)):
                if temporal is not None and self._in_blocks(
                    temporal, phase, buffer, block, out, run.kernels, head=head, cells=cells
                ):
                    continue
                for kernel in kernels[phase]:
                    self._phase(phase, buffer, kernel, block, out, run.kernels)
            if kept is not None:
                carry_frames(buffer, kept, block, run.kernels)
            del buffer
        return out

    def _kernels(self, phase: int, frames: int, *, continued: bool) -> list[Kernel]:
        weight = getattr(self, f"weight_{phase}")
        if not continued:
            return causal_kernels(weight, 1, frames)
        return [Kernel(weight)] if frames >= self.taps else []

    def _phase(
        self, phase: int, buffer: torch.Tensor, kernel: Kernel, block: Block, out: torch.Tensor, kernels: Kernels
    ) -> None:
        """Convolve one phase of one block, and put its cells between those of the other phases."""
        window = self._window(phase, buffer[:, :, : kernel.reads], block)
        inner = self.biases[phase][0]
        later = bias_is_a_pass(window)
        result = conv3d(window, kernel.weight, None if later else inner)
        self._place(phase, result, kernel.frame, block, out, inner if later else None, kernels)

    def _in_blocks(
        self,
        temporal: Temporal,
        phase: int,
        buffer: torch.Tensor,
        block: Block,
        out: torch.Tensor,
        kernels: Kernels,
        *,
        head: bool,
        cells: int,
    ) -> bool:
        """The same for all frames, from sums of frames. False where conv3d is chosen instead: nothing was done then."""
        window, weight = self._window(phase, buffer, block), getattr(self, f"weight_{phase}")
        made = window.shape[2] if head else window.shape[2] - self.taps + 1
        shape = (1, weight.shape[0], made, window.shape[3] - 1, window.shape[4] - 1)
        result = empty(shape, buffer)
        name = f"{self.name}.{phase}"
        if not temporal.convolve(name, window, weight, self.biases[phase][0], result, head=head, cells=cells):
            return False
        self._place(phase, result, 0, block, out, None, kernels)
        return True

    @staticmethod
    def _window(phase: int, buffer: torch.Tensor, block: Block) -> torch.Tensor:
        """What a phase reads of a block's buffer."""
        a, b = PHASES[phase]
        rows, columns = block
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return buffer[:, :, :, a : a + height + 1, b : b + width + 1]

    def _place(
        self,
        phase: int,
        result: torch.Tensor,
        frame: int,
        block: Block,
        out: torch.Tensor,
        bias: torch.Tensor | None,
        kernels: Kernels,
    ) -> None:
        """Put a phase's frames, from `frame` on, between those of the other phases; a bias is added on the way."""
        a, b = PHASES[phase]
        rows, columns = block
        _, row, column, corner = self.biases[phase]
        at_row = rows.before if a == 0 else rows.after
        at_column = columns.before if b == 0 else columns.after
        if at_row:
            result[..., -a, :].sub_(row[:, None, None])
        if at_column:
            result[..., -b].sub_(column[:, None, None])
        if at_row and at_column:
            result[..., -a, -b].add_(corner[:, None])
        frames, z = result.shape[2], self.temporal
        target = out[:, :, z * frame : z * (frame + frames)]
        target = target[..., 2 * rows.start + a : 2 * rows.stop : 2, 2 * columns.start + b : 2 * columns.stop : 2]
        shifts = [None] * z if bias is None else bias.chunk(z)
        for k, (part, shift) in enumerate(zip(result.chunk(z, dim=1), shifts, strict=True)):
            kernels.put(part, out=target[:, :, k::z], bias=shift)


@torch.no_grad()
def compose(upscale: nn.Conv3d, conv: nn.Conv3d, temporal: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Weights and biases of the composed convolution, summed in float32.

    Returns:
        per phase a weight [z C, C, taps, 2, 2], output channels ordered frame first; and biases [4, 4, z C]: per phase
        that of inner cells, and what the outermost row, the outermost column and the corner (taken off twice) lose.
    """
    channels = conv.in_channels
    weight = conv.weight.float()  # [O, I, 3, 3, 3]
    mixing = upscale.weight.float().view(2, 2, temporal, channels, channels)  # [a, b, k, I, C]
    offsets = bias_of(upscale).float().view(2, 2, temporal, channels)
    taps = 2 if temporal == 2 else 3
    weights = weight.new_zeros(len(PHASES), temporal, taps, 2, 2, channels, channels)
    biases = weight.new_zeros(len(PHASES), 4, temporal, channels)
    biases[:, 0] = bias_of(conv).float()
    for dt, dy, dx in product(range(3), repeat=3):
        tap = weight[:, :, dt, dy, dx]
        for (phase, (a, b)), k in product(enumerate(PHASES), range(temporal)):
            (y, from_a), (x, from_b) = divmod(a + dy - 1, 2), divmod(b + dx - 1, 2)
            t, from_k = divmod(k + dt - 2, 2) if temporal == 2 else (dt - 2, 0)
            weights[phase, k, t + taps - 1, y + 1 - a, x + 1 - b].addmm_(tap, mixing[from_a, from_b, from_k])
            shift = tap @ offsets[from_a, from_b, from_k]
            beyond_row, beyond_column = dy == 2 * a, dx == 2 * b
            counts = (1, beyond_row, beyond_column, beyond_row and beyond_column)
            biases[phase, :, k] += torch.stack([shift * count for count in counts])
    dtype = conv.weight.dtype
    return [w.permute(0, 4, 5, 1, 2, 3).flatten(0, 1).to(dtype) for w in weights], biases.flatten(2).to(dtype)

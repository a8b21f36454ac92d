"""Running a job by its plan: items, tiles, slices, each written to the output as soon as it is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import torch

from ..callbacks import Callbacks
from ..compile_clock import Compilations
from ..errors import FastDiffusersError
from ..processor_threads import Look, helpful_threads
from .compiled import CompileTime, CompileWatch, compiled_network
from .cuda_graphs import CudaBackend, GraphedNetwork
from .kernels import Kernels
from .kernels.conv_choice import rules
from .network.execution import CarriedFrames, Execution, Network
from .network.model import VideoVAE
from .network.temporal import Temporal, TransformedKernels
from .planner import Plan, Task, slices
from .reference_blending import ReferenceCanvas, reference_axis
from .settings import VaeSettings, pair
from .streams import copier_for, copy_stream, read_later, tile_streams
from .tiling import Canvas, TileAxis, smooth_axis


class HalfPrecisionOverflowError(FastDiffusersError):
    """Finite input gave NaN or Inf: float16 ran out of range."""


class Piece(NamedTuple):
    """One slice of one tile: frames [C', T', h, w] from output frame `frame` on."""

    row: int
    column: int
    frame: int
    made: torch.Tensor


class FiniteCheck:
    """Finds NaN and Inf in slices of float16: each flag is read a slice later, when the card is busy with the next."""

    def __init__(self, device: torch.device) -> None:
        self._stream = copy_stream(device)
        self._finite: Callable[[], bool] | None = None

    def see(self, made: torch.Tensor | None) -> None:
        """Look at a new slice, None after the last one. Raises HalfPrecisionOverflowError for the slice before."""
        former, self._finite = self._finite, None
        if made is not None and made.dtype == torch.float16:
            self._finite = read_later(torch.isfinite(made).all(), self._stream)
        if former is not None and not former():
            raise HalfPrecisionOverflowError("the VAE's values do not fit float16: load it in bfloat16")


@dataclass
class Job:
    """One decode or encode. All its state lives in here and in what it hands down, so it ends with the job.

    Attributes:
        vae, task, settings, plan: what runs, in which direction, and how.
        read: the caller's values to the network's (scaling), on a slice in float32.
        callbacks: told between slices; asked there, and within slices on a processor, which can take minutes for one.
        kernels: the operations with more than one implementation.
        temporal: how convolutions over time are computed.
        compile_time: what compiling took before, where it compiles.
        watch: of its compiled code, where it compiles.
        network: one slice through the VAE, compiled and recorded where the settings ask for it.
        notes: what had to be changed about the settings.
        compilations: what compiling has taken, in the attempts before this one too.
        look: called often, so that as many threads of a processor compute as help; None where it does not choose.
    """

    vae: VideoVAE
    task: Task
    settings: VaeSettings
    plan: Plan
    read: Callable[[torch.Tensor], torch.Tensor]
    callbacks: Callbacks
    kernels: Kernels = field(init=False)
    temporal: Temporal = field(init=False)
    network: Network = field(init=False)
    compile_time: CompileTime | None = field(init=False, default=None)
    watch: CompileWatch | None = field(init=False, default=None)
    notes: list[str] = field(default_factory=list)
    compilations: Compilations = field(default_factory=Compilations)
    look: Look | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        settings, device = self.settings, self.vae.device
        self.kernels = Kernels(settings.kernels)
        self.temporal = Temporal(self.plan.layout.block_frames, self._transformed_kernels())
        self.network = self.task.network(self.vae)
        scope = settings.compile_scope
        if settings.compile is not None and (self.plan.layout.uncut or scope == "blocks"):
            self.compile_time = CompileTime(self.task.stage, settings, self.vae.device)
            last, trial = self.compile_time.last, settings.compile_trial
            self.watch = CompileWatch(self.callbacks, self.compilations, last, trial=trial)
            self.network = compiled_network(self.vae, self.task, settings.compile, self.watch, scope)
        if settings.cuda_graphs and device.type == "cuda":
            self.network = GraphedNetwork(self.network, CudaBackend(device), needed=self.plan.peak)

    def run(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Fill `out` [B, C', T', H', W'], float32 on any device and with any strides, from `x` [B, C, T, H, W]."""
        fused = self.settings.kernels == "auto"
        # Compiled code has its number of threads in it.
        plain_processor = self.vae.device.type == "cpu" and self.settings.compile is None
        threads = helpful_threads() if plain_processor else nullcontext(self.look)
        half_sums = fused and self.settings.fp16_accumulation
        try:
            with torch.inference_mode(), rules(alternatives=fused, half_sums=half_sums), threads as self.look:
                self._run(x, out)
            if self.look is not None and self.look.fewest < self.look.given:
                chosen = f"{self.look.fewest} of {self.look.given} threads"
                self.notes.append(f"{chosen} for a time: other programs keep the processor busy, and more were slower")
        finally:
            if isinstance(self.network, GraphedNetwork):
                self.network.drop()

    def _transformed_kernels(self) -> TransformedKernels:
        """Those that the VAE keeps; where memory is short for them, new ones for each use."""
        if self.plan.layout.keep_kernels:
            return self.vae.transformed
        self.vae.transformed.drop()
        return TransformedKernels(keep=False)

    def _run(self, x: torch.Tensor, out: torch.Tensor) -> None:
        rows, columns = self._tile_axis(0, x, out), self._tile_axis(1, x, out)
        total, done = x.shape[0] * len(rows) * len(columns) * len(self._slices(x)), 0
        self.callbacks.tick(self.task.stage, done, total)
        check = FiniteCheck(self.vae.device)
        for item, target in zip(x, out, strict=True):
            canvas = self._canvas(target, rows, columns)
            for row, column, frame, made in self._pieces(item, rows, columns):
                check.see(made)
                canvas.write(row, column, frame, made)
                done += 1
                self.callbacks.tick(self.task.stage, done, total)
            check.see(None)
            canvas.finish()

    def _pieces(self, item: torch.Tensor, rows: TileAxis, columns: TileAxis) -> Iterator[Piece]:
        """All slices of all tiles of a clip [C, T, H, W]; with two streams one is made while another is handed out."""
        streams = tile_streams(self.vae.device, self.plan.tiles_at_a_time)
        tiles = product(range(len(rows)), range(len(columns)))  # shared: a stream takes the next one when it is free
        at_work = deque((stream, self._tiles(item, rows, columns, tiles)) for stream in range(streams.count))
        under_way: deque[tuple[int, Piece]] = deque()
        while at_work or under_way:
            if at_work and len(under_way) < streams.count:
                stream, pieces = at_work.popleft()
                with streams.queue(stream):
                    piece = next(pieces, None)
                if piece is not None:
                    at_work.append((stream, pieces))
                    under_way.append((stream, piece))
            else:
                stream, piece = under_way.popleft()
                streams.fetch(stream, piece.made)
                yield piece

    def _tiles(
        self, item: torch.Tensor, rows: TileAxis, columns: TileAxis, tiles: Iterator[tuple[int, int]]
    ) -> Iterator[Piece]:
        """The slices of one tile after the other."""
        for row, column in tiles:
            for frame, made in self._stream(self._crop(item, rows, row, columns, column)):
                yield Piece(row, column, frame, made)

    def _stream(self, clip: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """(first frame, frames [C', T', H', W']) of each temporal slice of a clip [C, T, H, W]."""
        state = CarriedFrames(torch.device("cpu") if self.plan.offload_state else None)
        parts = self._slices(clip[None])
        frame = 0
        for index, (start, stop) in enumerate(parts):
            piece = self.read(clip[None, :, start:stop].to(self.vae.device, torch.float32)).to(self.vae.dtype)
            piece = piece.contiguous()  # the strides of a view would tell compiled code how long the clip is
            carry = index < len(parts) - 1
            run = Execution(state, carry, self.plan.layout, self.kernels, self.temporal, self._check_cancel())
            made = self.network(piece, run)[0]
            yield frame, made
            frame += made.shape[1]

    def _check_cancel(self) -> Callable[[], None] | None:
        """What is asked within a slice. A card is given all of a slice's work long before it has done it."""
        if self.vae.device.type != "cpu":
            return None
        check = self.callbacks.check_cancel if self.watch is None else self.watch.signals.check_cancel
        if (look := self.look) is None:
            return check

        def look_and_check() -> None:
            look()
            check()

        return look_and_check

    def _slices(self, x: torch.Tensor) -> list[tuple[int, int]]:
        return slices(x.shape[2], self.plan.temporal_slice, self.task.frames)

    def _tile_axis(self, axis: int, x: torch.Tensor, out: torch.Tensor) -> TileAxis:
        """The tiles along height (0) or width (1)."""
        factor, place = self.vae.config.spatial_factor, self.task.place
        overlap = pair(self.settings.tile_overlap)[axis]
        extent = out.shape[3 + axis] // place
        tile = self.plan.tiles[axis] if self.plan.tiles else extent * factor
        if self.settings.blending == "reference":
            extent = -(-x.shape[3 + axis] // self.task.crop)
            decoding = self.task.stage == "decode"
            return reference_axis(extent, tile, overlap, factor, decoding=decoding, dtype=self.vae.dtype)
        chosen = smooth_axis(extent, tile, overlap, factor, place)
        if chosen.note:
            self.notes.append(f"{('height', 'width')[axis]}: {chosen.note}")
        return chosen

    def _canvas(self, out: torch.Tensor, rows: TileAxis, columns: TileAxis) -> Canvas:
        if self.settings.blending == "reference":
            return ReferenceCanvas(out, rows, columns, self.task.place, self.vae.dtype)
        return Canvas(out, rows, columns, self.task.place, copier_for(self.vae.device, out.device))

    def _crop(self, clip: torch.Tensor, rows: TileAxis, row: int, columns: TileAxis, column: int) -> torch.Tensor:
        """Return what a tile sees of a clip [C, T, H, W]; the last tile sees everything up to the border."""
        bounds = []
        for axis, index, size in ((rows, row, clip.shape[2]), (columns, column, clip.shape[3])):
            stop = size if index == len(axis) - 1 else axis.stops[index] * self.task.crop
            bounds.append(slice(axis.starts[index] * self.task.crop, stop))
        return clip[..., bounds[0], bounds[1]]

"""ComfyUI's own VAE objects, decoded and encoded with progress, cancelling, and tiles that shrink until they fit.

The VAE that comes out of a socket is shared by the whole graph, so nothing here ever writes to it: a whole run works on
a shallow copy, whose weights are the same and whose attributes are its own. A whole run gives exactly what ComfyUI's
VAE Decode and VAE Encode give; the clips of Wan-family VAEs leave the card run by run on the way (`core_streaming.py`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch

from ...callbacks import Callbacks
from ...errors import InputError
from ...fallback import is_out_of_memory
from ...pipelines.decoding.exactness import BIT_IDENTICAL, FAST, RECORD
from ...report import OptimizationRecord, OptimizationReport
from ..vae_choices import VaeChoices
from . import core_streaming
from .core_tiles import TILE_EDGES, Tiles, plan_tiles


def decode(
    vae: Any, samples: torch.Tensor, choices: VaeChoices, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Decode a latent.

    Args:
        vae: `comfy.sd.VAE`.
        samples: [B, C, H, W] or [B, C, T, H, W].
        choices: whole or tiles; "exact" is "auto" here.
        callbacks: told of every batch item or tile, and asked before each whether to stop.

    Returns:
        Frames [B, H, W, 3] or [B, T, H, W, 3] in 0..1 on the CPU, and what was done.

    Raises:
        InputError: a latent that this VAE cannot take.
        torch.OutOfMemoryError: even the smallest tile does not fit.
    """
    vae.throw_exception_if_invalid()
    if vae.latent_dim == 1:
        raise InputError("vae", "an audio VAE", "this node decodes images and video", "use VAE Decode Audio")
    if samples.ndim not in (4, 5) or samples.shape[1] != vae.latent_channels:
        reason = f"this VAE takes latents of {vae.latent_channels} channels"
        raise InputError("samples", list(samples.shape), reason, "connect the VAE that belongs to the model")
    if vae.latent_dim == 2 and samples.ndim == 5:
        samples = samples[:, :, 0]  # as ComfyUI's VAE Decode does with a video latent and an image VAE
    return _run(_Decode(vae, samples, callbacks), choices)


def encode(
    vae: Any, pixels: torch.Tensor, choices: VaeChoices, callbacks: Callbacks
) -> tuple[torch.Tensor, OptimizationReport]:
    """Encode images, or the frames of one video where the VAE is a video VAE.

    Args:
        vae: `comfy.sd.VAE`.
        pixels: [B, H, W, C] in 0..1.
        choices: whole or tiles; "exact" is "auto" here.
        callbacks: told of every batch item or tile, and asked before each whether to stop.

    Returns:
        Latent [B, C, h, w] or [1, C, t, h, w] on the CPU, and what was done.

    Raises:
        InputError: an audio VAE.
        torch.OutOfMemoryError: even the smallest tile does not fit.
    """
    vae.throw_exception_if_invalid()
    if vae.latent_dim == 1:
        raise InputError("vae", "an audio VAE", "this node encodes images and video", "use VAE Encode Audio")
    return _run(_Encode(vae, pixels, callbacks), choices)


class _Job:
    """One decode or encode of `data` ([B, C, H, W] or [B, C, T, H, W]), whole or in tiles.

    Attributes:
        unit: pixels per element of `data` in height and width.
        frames_per_unit: frames per element of `data` in time.
        grain: what tile edges must be multiples of, in elements of `data`.
    """

    stage: str
    unit: int
    frames_per_unit: int
    grain: int

    def __init__(self, vae: Any, data: torch.Tensor, callbacks: Callbacks) -> None:
        self.vae, self.data, self.callbacks = vae, data, callbacks

    def memory(self, shape: tuple[int, ...]) -> int:
        """Bytes that a run over one item of `shape` is expected to take, by ComfyUI's own formula."""
        raise NotImplementedError

    def whole_batch(self, worker: Any) -> torch.Tensor:
        """Everything through `worker`, a copy of the VAE."""
        raise NotImplementedError

    def tiled(self, tiles: Tiles) -> torch.Tensor:
        raise NotImplementedError

    def whole(self) -> torch.Tensor:
        """As ComfyUI does it, in batches of its choice, except that an OOM does not start its own tiles."""
        worker = copy.copy(self.vae)
        worker.output_device = torch.device("cpu")
        worker.decode_tiled_ = worker.decode_tiled_3d = worker.encode_tiled_ = worker.encode_tiled_3d = _out_of_memory
        worker.first_stage_model = _Observed(self.vae.first_stage_model, self)
        return self.whole_batch(worker)

    def streamed_frames(self, batch: torch.Tensor) -> int:
        """Frames of a clip that is decoded with its frames leaving the device one by one; 0 for everything else."""
        return 0

    def load(self, shape: tuple[int, ...]) -> int:
        """Have ComfyUI put the weights on the device with room for a run over `shape`; returns the free bytes."""
        full = getattr(self.vae, "disable_offload", False)
        mm.load_models_gpu([self.vae.patcher], memory_required=self.memory(shape), force_full_load=full)
        return int(mm.get_free_memory(self.vae.device))

    def ticking(self, run: Callable[[torch.Tensor], torch.Tensor], tiles: Tiles) -> Callable[..., torch.Tensor]:
        """`run` on the device for one tile: asks for a cancel before it, brings the result back, reports it."""
        total, done = tiles.count * self.data.shape[0], 0

        def run_tile(tile: torch.Tensor) -> torch.Tensor:
            nonlocal done
            self.callbacks.check_cancel()
            result = run(tile.to(self.vae.vae_dtype).to(self.vae.device)).float().cpu()
            done += 1
            self.callbacks.tick(self.stage, min(done, total), total, f"tile {done}")
            return result

        return run_tile


class _Decode(_Job):
    stage = "decode"
    grain = 1

    def __init__(self, vae: Any, samples: torch.Tensor, callbacks: Callbacks) -> None:
        super().__init__(vae, samples, callbacks)
        self.unit = vae.spacial_compression_decode()
        self.frames_per_unit = vae.temporal_compression_decode() or 1

    def memory(self, shape: tuple[int, ...]) -> int:
        return int(self.vae.memory_used_decode(shape, self.vae.vae_dtype))

    def whole_batch(self, worker: Any) -> torch.Tensor:
        frames: torch.Tensor = worker.decode(self.data)
        return frames

    def streamed_frames(self, batch: torch.Tensor) -> int:
        clip = batch.ndim == 5 and batch.shape[2] > 1 and core_streaming.streams(self.vae.first_stage_model)
        return 1 + (batch.shape[2] - 1) * self.frames_per_unit if clip else 0

    def tiled(self, tiles: Tiles) -> torch.Tensor:
        self.load(tiles.shape(self.data))
        frames = comfy.utils.tiled_scale_multidim(
            self.data,
            self.ticking(self.vae.first_stage_model.decode, tiles),
            tile=tiles.sizes,
            overlap=tiles.overlaps,
            upscale_amount=self.vae.upscale_ratio,
            out_channels=self.vae.output_channels,
            index_formulas=self.vae.upscale_index_formula,
            output_device="cpu",
        )
        images: torch.Tensor = self.vae.process_output(frames).movedim(1, -1)
        return images


class _Encode(_Job):
    stage = "encode"
    unit = 1
    frames_per_unit = 1

    def __init__(self, vae: Any, pixels: torch.Tensor, callbacks: Callbacks) -> None:
        self.pixels = pixels
        self.grain = vae.spacial_compression_encode()
        self.video = vae.latent_dim == 3 and not vae.not_video
        data = vae.vae_encode_crop_pixels(pixels).movedim(-1, 1)
        if self.video:
            data = data.movedim(1, 0).unsqueeze(0)
        elif vae.latent_dim == 3:
            data = data.unsqueeze(2)
        super().__init__(vae, data, callbacks)

    def memory(self, shape: tuple[int, ...]) -> int:
        return int(self.vae.memory_used_encode(shape, self.vae.vae_dtype))

    def whole_batch(self, worker: Any) -> torch.Tensor:
        latent: torch.Tensor = worker.encode(self.pixels)
        return latent

    def tiled(self, tiles: Tiles) -> torch.Tensor:
        self.load(tiles.shape(self.data))
        vae, data = self.vae, self.data
        if self.video and callable(vae.downscale_ratio[0]):
            data = data[:, :, : vae.upscale_ratio[0](vae.downscale_ratio[0](data.shape[2]))]
        latent: torch.Tensor = comfy.utils.tiled_scale_multidim(
            data,
            self.ticking(lambda tile: vae.first_stage_model.encode(vae.process_input(tile)), tiles),
            tile=tiles.sizes,
            overlap=tiles.overlaps,
            upscale_amount=vae.downscale_ratio if vae.latent_dim == 3 else 1 / vae.downscale_ratio,
            out_channels=vae.latent_channels,
            downscale=vae.latent_dim == 3,
            index_formulas=vae.downscale_index_formula,
            output_device="cpu",
        )
        return latent


class _Observed:
    """A VAE's network that asks for a cancel before each batch and reports it afterwards; all else is the network's."""

    def __init__(self, network: Any, job: _Job) -> None:
        self._network, self._job, self._done = network, job, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def decode(self, batch: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        frames = self._job.streamed_frames(batch)
        if not frames or args or options:
            return self._observe(self._network.decode, batch, *args, **options)
        items, total = batch.shape[0], self._job.data.shape[0] * frames
        before = self._done * frames
        told = lambda made: self._job.callbacks.tick(self._job.stage, before + items * made, total)
        result = core_streaming.decode(self._network, batch, frames, told)
        self._done += items
        return result

    def encode(self, batch: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return self._observe(self._network.encode, batch, *args, **options)

    def _observe(
        self, run: Callable[..., torch.Tensor], batch: torch.Tensor, *args: Any, **options: Any
    ) -> torch.Tensor:
        self._job.callbacks.check_cancel()
        result = run(batch, *args, **options)
        self._done += batch.shape[0]
        self._job.callbacks.tick(self._job.stage, self._done, self._job.data.shape[0])
        return result


def _out_of_memory(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("the whole image does not fit")


def _run(job: _Job, choices: VaeChoices) -> tuple[torch.Tensor, OptimizationReport]:
    """Try the whole, then ever smaller tiles, until one fits."""
    started = time.perf_counter()
    too_large: list[str] = []
    for tiles in _attempts(job, choices):
        text = str(tiles) if tiles else "whole"
        try:
            result = job.tiled(tiles) if tiles else job.whole()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            break
        # Only here, outside the except block, is the failed attempt's memory given back.
        too_large.append(text)
        mm.soft_empty_cache()
    else:
        raise torch.OutOfMemoryError(f"VAE {job.stage}: out of memory with {', then '.join(too_large)}.")
    reason = f"out of memory with {', '.join(too_large)}" if too_large else ""
    report = OptimizationReport()
    report.set(OptimizationRecord("vae_tiling", choices.tiling, text, reason, failed=bool(too_large)))
    if job.streamed_frames(job.data) and text == "whole":
        report.set(OptimizationRecord("streaming", "auto", "frames leave the card as they are made"))
    if choices.exactness == FAST:
        reason = "this is one of ComfyUI's own VAEs, which runs ComfyUI's own arithmetic"
        report.set(OptimizationRecord(RECORD, FAST, BIT_IDENTICAL, reason, failed=True))
    report.facts |= {
        "vae": f"ComfyUI {type(job.vae.first_stage_model).__name__}",
        "device": str(job.vae.device),
        "dtype": str(job.vae.vae_dtype).removeprefix("torch."),
        f"{job.stage} seconds": round(time.perf_counter() - started, 3),
    }
    return result, report


def _attempts(job: _Job, choices: VaeChoices) -> Iterator[Tiles | None]:
    """What to try, in this order; None is the whole."""
    item = (1, *job.data.shape[1:])
    if choices.tiling == "whole" or (choices.tiling != "tiles" and job.memory(item) <= job.load(item)):
        yield None
    free = mm.get_free_memory(job.vae.device)
    asked = choices.tile_size
    previous: Tiles | None = None
    for edge in [asked, *(e for e in TILE_EDGES if e < asked)] if asked else TILE_EDGES:
        tiles = plan_tiles(
            job.data.shape[2:],
            edge,
            choices.overlap,
            choices.temporal_slice,
            unit=job.unit,
            frames_per_unit=job.frames_per_unit,
            grain=job.grain,
        )
        worth_it = tiles.count > 1 and job.memory(tiles.shape(job.data)) <= free
        if tiles != previous and (worth_it or edge in (asked, TILE_EDGES[-1])):
            previous = tiles
            yield tiles

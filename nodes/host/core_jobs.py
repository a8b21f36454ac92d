"""One decode or one encode by one of ComfyUI's VAE objects, whole or in tiles, with progress and cancelling.

The VAE that comes out of a socket is shared by the whole graph, so nothing here ever writes to it: a run works on a
shallow copy, whose weights are the same and whose attributes are its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch

from ...callbacks import Callbacks
from . import core_changes, core_streaming, core_tae
from .core_tiles import Tiles, plan_tiles
from .observed_network import ObservedNetwork


@dataclass(frozen=True)
class OwnTiles(Tiles):
    """Tiles that the VAE cuts itself: what it is asked for, and in `sizes` an estimate of a tile for the memory.

    Attributes:
        edge, overlap: in pixels.
        frames: in a tile; 0 = no cut in time.
    """

    edge: int = 0
    overlap: int = 0
    frames: int = 0


class Job:
    """One decode or encode of `data` ([B, C, H, W] or [B, C, T, H, W]), whole or in tiles.

    Attributes:
        stage: "decode" or "encode", which is the name of the VAE's method too.
        unit: pixels per element of `data` in height and width.
        frames_per_unit: frames per element of `data` in time.
        grain: what tile edges must be multiples of, in elements of `data`.
        time_grain: the same of the frames in a tile.
        replaced: another node has replaced the VAE's `decode` or `encode`, which then runs first, as in ComfyUI's node.
        own_tiles: the VAE cuts into tiles by itself, or another node has replaced how it does.
        not_cut: why it cannot be cut into tiles; "" where it can.
        whole_in_time: it can be cut in height and width only.
    """

    stage: str
    unit: int
    frames_per_unit: int
    grain: int
    time_grain: int = 1

    def __init__(self, vae: Any, data: torch.Tensor, callbacks: Callbacks) -> None:
        self.vae, self.data, self.callbacks = vae, data, callbacks
        tiled = [name for name in dir(type(vae)) if f"{self.stage}_tiled" in name]
        self.replaced = core_changes.replaced(vae, self.stage)
        self.own_tiles = getattr(vae, "handles_tiling", False) or core_changes.replaced(vae, *tiled)
        self.not_cut = "" if self.own_tiles else core_tae.not_cut(vae)
        self.whole_in_time = not self.own_tiles and core_tae.not_cut_in_time(vae)

    def cut_data(self) -> torch.Tensor:
        """The part of `data` that tiles are cut from."""
        return self.data

    def memory(self, shape: tuple[int, ...]) -> int:
        """Bytes that a run over one item of `shape` is expected to take, by ComfyUI's own formula."""
        raise NotImplementedError

    def run_whole(self, worker: Any) -> torch.Tensor:
        """Run all of `data` through `worker`, a copy of the VAE."""
        raise NotImplementedError

    def run_tiles(self, tiles: Tiles) -> torch.Tensor:
        """Run all of `data` through the VAE's network, tile by tile."""
        raise NotImplementedError

    def run_own_tiles(self, worker: Any, edge: int, overlap: int, frames: int) -> torch.Tensor:
        """Run all of `data` through the tiled method of `worker`, with the arguments of ComfyUI's tiled node.

        Args:
            edge, overlap: of tiles, in pixels.
            frames: in a tile; 0 = no cut in time.
        """
        raise NotImplementedError

    def plan(self, edge: int, overlap: int, frames: int) -> Tiles:
        """Return tiles of at most `edge` pixels that share `overlap` (0 = a quarter), of at most `frames` (0 = all)."""
        tiles = plan_tiles(
            self.cut_data().shape[2:],
            edge,
            overlap,
            0 if self.whole_in_time else frames,
            unit=self.unit,
            frames_per_unit=self.frames_per_unit,
            grain=self.grain,
            time_grain=self.time_grain,
        )
        if self.own_tiles and tiles.count > 1:
            shared = min(overlap or edge // 4, edge // 4)  # at most, as in ComfyUI's tiled nodes
            text = f"its own tiles of {edge} px, overlap {shared} px"
            return OwnTiles(tiles.sizes, tiles.overlaps, tiles.count, text, edge, shared, frames)
        return tiles

    def whole(self) -> torch.Tensor:
        """Run in ComfyUI's own batches. Out of memory is raised and does not start ComfyUI's own tiles."""
        worker = self._worker()
        for name in dir(type(worker)):
            if "code_tiled" in name:  # decode_tiled_, decode_tiled_1d, _encode_tiled_owned, ... of every version
                setattr(worker, name, _out_of_memory)
        return self.run_whole(worker)

    def tiled(self, tiles: Tiles) -> torch.Tensor:
        """Run in tiles that `plan` gave."""
        self.load(tiles.shape(self.data))
        if not isinstance(tiles, OwnTiles):
            return self.run_tiles(tiles)
        self.callbacks.check_cancel()
        result = self.run_own_tiles(self._worker(), tiles.edge, tiles.overlap, tiles.frames)
        self.callbacks.tick(self.stage, 1, 1)
        return result

    def streamed_frames(self, batch: torch.Tensor) -> int:
        """Return the frames of a clip that is streamed off the device; 0 for everything else."""
        return 0

    def free(self) -> int:
        """Return the free bytes, with those that ComfyUI's allocator can evict for this VAE where its patcher tells."""
        device = self.vae.device
        by_patcher = getattr(self.vae.patcher, "get_free_memory", None)
        return int(by_patcher(device) if by_patcher else mm.get_free_memory(device))

    def load(self, shape: tuple[int, ...]) -> int:
        """Have ComfyUI put the weights on the device with room for a run over `shape`; returns the free bytes."""
        full = getattr(self.vae, "disable_offload", False)
        mm.load_models_gpu([self.vae.patcher], memory_required=self.memory(shape), force_full_load=full)
        return self.free()

    def ticking(self, run: Callable[[torch.Tensor], torch.Tensor], tiles: Tiles) -> Callable[..., torch.Tensor]:
        """Return `run` for one tile on the device, with a check for a cancel before and progress after it."""
        total, done = tiles.count * self.data.shape[0], 0

        def run_tile(tile: torch.Tensor) -> torch.Tensor:
            nonlocal done
            self.callbacks.check_cancel()
            result = run(tile.to(self.vae.vae_dtype).to(self.vae.device)).float().cpu()
            done += 1
            self.callbacks.tick(self.stage, min(done, total), total, f"tile {done}")
            return result

        return run_tile

    def _worker(self) -> Any:
        """Return a copy of the VAE that gathers results on the CPU and whose network is an `ObservedNetwork`."""
        worker = copy.copy(self.vae)
        worker.output_device = torch.device("cpu")
        worker.first_stage_model = ObservedNetwork(self.vae.first_stage_model, self)
        return worker


class Decode(Job):
    """A latent to frames [B, H, W, C] or [B, T, H, W, C] in 0..1 on the CPU."""

    stage = "decode"
    grain = 1

    def __init__(self, vae: Any, samples: torch.Tensor, callbacks: Callbacks) -> None:
        super().__init__(vae, samples, callbacks)
        self.unit = vae.spacial_compression_decode()
        self.frames_per_unit = vae.temporal_compression_decode() or 1

    def memory(self, shape: tuple[int, ...]) -> int:
        return int(self.vae.memory_used_decode(shape, self.vae.vae_dtype))

    def run_whole(self, worker: Any) -> torch.Tensor:
        frames: torch.Tensor = worker.decode(self.data)
        return frames

    def streamed_frames(self, batch: torch.Tensor) -> int:
        network = self.vae.first_stage_model
        clip = batch.ndim == 5 and batch.shape[2] > 1 and not self.replaced
        if not clip or not core_streaming.streams(network) or core_changes.network_replaced(network, "decode"):
            return 0
        return 1 + (batch.shape[2] - 1) * self.frames_per_unit

    def run_tiles(self, tiles: Tiles) -> torch.Tensor:
        frames = comfy.utils.tiled_scale_multidim(
            self.data,
            self.ticking(self.vae.first_stage_model.decode, tiles),
            tile=tiles.sizes,
            overlap=tiles.overlaps,
            upscale_amount=self.vae.upscale_ratio,
            # ComfyUI's Wan VAEs may give other channels than they take: four pixels of a picture of twice the size.
            out_channels=getattr(self.vae, "conv_out_channels", self.vae.output_channels),
            index_formulas=self.vae.upscale_index_formula,
            output_device="cpu",
        )
        images: torch.Tensor = self.vae.process_output(frames).movedim(1, -1)
        return images

    def run_own_tiles(self, worker: Any, edge: int, overlap: int, frames: int) -> torch.Tensor:
        length = max(2, frames // self.frames_per_unit) if frames else None
        shared = max(1, length // 4) if length else None
        size = edge // self.unit
        images: torch.Tensor = worker.decode_tiled(
            self.data, tile_x=size, tile_y=size, overlap=overlap // self.unit, tile_t=length, overlap_t=shared
        )
        return images


class Encode(Job):
    """Pictures [B, H, W, C] or clips [B, T, H, W, C] to a latent on the CPU.

    Attributes:
        pixels: [B, H, W, C] pictures or the frames of one clip, or [B, T, H, W, C] clips.
        video: whether the pictures are the frames of a clip.
    """

    stage = "encode"
    unit = 1
    frames_per_unit = 1

    def __init__(self, vae: Any, pixels: torch.Tensor, callbacks: Callbacks) -> None:
        self.grain = vae.spacial_compression_encode()
        self.video = vae.latent_dim == 3 and not vae.not_video
        strides = vae.downscale_index_formula
        if self.video and isinstance(strides, tuple) and isinstance(strides[0], int):
            self.time_grain = strides[0]
        if pixels.ndim == 5 and not self.video:
            pixels = pixels.flatten(0, 1)
        self.pixels = pixels
        clips = list(pixels) if pixels.ndim == 5 else [pixels]
        cropped = [vae.vae_encode_crop_pixels(clip).movedim(-1, 1) for clip in clips]
        data = torch.stack(cropped) if len(cropped) > 1 else cropped[0][None]
        pictures = data[0].unsqueeze(2) if vae.latent_dim == 3 else data[0]
        super().__init__(vae, data.movedim(2, 1) if self.video else pictures, callbacks)

    def memory(self, shape: tuple[int, ...]) -> int:
        return int(self.vae.memory_used_encode(shape, self.vae.vae_dtype))

    def run_whole(self, worker: Any) -> torch.Tensor:
        return self._each_clip(worker.encode)

    def _each_clip(self, encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Encode clip by clip: ComfyUI 0.19 takes one only, later ones crop the time axis of several."""
        return torch.cat([encode(clip) for clip in self.pixels]) if self.pixels.ndim == 5 else encode(self.pixels)

    def cut_data(self) -> torch.Tensor:
        vae, frames = self.vae, self.data.shape[2]
        if self.video and callable(vae.downscale_ratio[0]):
            frames = vae.upscale_ratio[0](vae.downscale_ratio[0](frames))
            return self.data[:, :, :frames]
        return self.data

    def run_tiles(self, tiles: Tiles) -> torch.Tensor:
        vae, data = self.vae, self.cut_data()
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
        finish = getattr(vae, "format_encoded", None)
        return latent if finish is None else finish(latent)

    def run_own_tiles(self, worker: Any, edge: int, overlap: int, frames: int) -> torch.Tensor:
        options = {"tile_x": edge, "tile_y": edge, "overlap": overlap}
        if frames:
            options |= {"tile_t": frames, "overlap_t": max(1, frames // 4)}
        return self._each_clip(lambda clip: worker.encode_tiled(clip, **options))


def _out_of_memory(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("the whole image does not fit")

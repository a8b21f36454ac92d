"""What `kernels.py` measures: each operation of the video VAE at the sizes of a full decode, in every way it can run.

Inputs are made when a case's turn comes, and packages are imported then: what is missing becomes a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from ..vae.kernels import eager, plain
from ..vae.kernels.conv_choice import conv2d_sum
from ..vae.network import winograd
from ..vae.network.convolution import torch_conv3d

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One operation at one size, in one way.

    Attributes:
        operation, size, way: for the table.
        prepare: makes the inputs and gives the function to time; called just before, so that one case's tensors
            are gone before the next one's are made.
        bytes: read and written at the least. flops: multiplications and additions, 0 where bytes are what counts.
    """

    operation: str
    size: str
    way: str
    prepare: Callable[[], Run]
    bytes: int
    flops: int = 0


class Random:
    """Random tensors on a device, in a layout."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def __call__(self, *shape: int, last: bool = True) -> torch.Tensor:
        layout = torch.channels_last_3d if last and len(shape) == 5 else torch.contiguous_format
        return torch.empty(shape, device=self.device, dtype=self.dtype, memory_format=layout).normal_()


def norm_cases(random: Random, shape: tuple[int, ...], groups: int) -> Iterator[Case]:
    """GroupNorm + SiLU: the least is to read once and write once; a separate statistics pass reads once more."""
    for last in (True, False):
        name = f"{'x'.join(map(str, shape))} {'channels_last' if last else 'contiguous'}"
        moved = 2 * torch.Size(shape).numel() * random.dtype.itemsize
        case = Case("group_norm_silu", name, "", lambda: lambda: None, moved)

        def prepare(function: Callable[..., object], last: bool = last) -> Run:
            x, weight, bias = random(*shape, last=last), random(shape[1]), random(shape[1])
            out = torch.empty_like(x)
            return lambda: function(x, weight, bias, groups, 1e-6, out=out)

        yield replace(case, way="plain", prepare=partial(prepare, plain.group_norm_silu))
        yield replace(case, way="eager", prepare=partial(prepare, eager.group_norm_silu))
        for way, function in fused_norms().items():
            yield replace(case, way=way, prepare=partial(prepare, function))


def fused_norms() -> dict[str, Callable[..., object]]:
    """The fused kernels by name."""

    def triton(*arguments: Any, **options: Any) -> object:
        from ..vae.kernels import triton_group_norm

        return triton_group_norm.group_norm_silu(*arguments, **options)

    def given(x: torch.Tensor, *arguments: Any, **options: Any) -> object:
        from ..vae.kernels import Statistics

        ones = torch.ones(x.shape[0], x.shape[2], arguments[2], device=x.device)
        return triton(x, *arguments, statistics=Statistics(ones, ones), **options)

    def kitchen(*arguments: Any, **options: Any) -> object:
        from ..vae.kernels import comfy_kitchen

        return comfy_kitchen.group_norm_silu(*arguments, **options)

    return {
        "triton": triton,
        "triton, 1 frame per pass": partial(triton, frames_per_pass=1),
        "triton, 2 frames per pass": partial(triton, frames_per_pass=2),
        "triton, statistics given": given,
        "comfy-kitchen": kitchen,
    }


def tile_cases(random: Random, shape: tuple[int, ...], groups: int) -> Iterator[Case]:
    """The normalising pass with other tiles than the chosen one."""
    moved = 2 * torch.Size(shape).numel() * random.dtype.itemsize

    def prepare(channels: int, cells: int, warps: int) -> Run:
        from ..vae.kernels import triton_group_norm
        from ..vae.kernels.triton_support import ProgramShape

        x, weight = random(*shape), random(shape[1])
        given = triton_group_norm.group_norm_statistics(x, groups).statistics(1e-6)
        out = torch.empty_like(x)
        tile = ProgramShape(channels, cells, warps)
        return lambda: triton_group_norm.group_norm_silu(
            x, weight, weight, groups, 1e-6, statistics=given, out=out, shape=tile
        )

    for channels, cells, warps in ((64, 64, 4), (128, 16, 4), (128, 32, 4), (128, 32, 8), (128, 64, 4), (128, 64, 8)):
        way = f"tile {channels} channels x {cells} cells, {warps} warps"
        size = "x".join(map(str, shape))
        yield Case("normalise only", size, way, partial(prepare, channels, cells, warps), moved)


def statistics_cases(random: Random, shape: tuple[int, ...], groups: int) -> Iterator[Case]:
    """The summing pass alone, with other tiles than the chosen one too."""
    moved = torch.Size(shape).numel() * random.dtype.itemsize

    def prepare(tile: tuple[int, int, int] | None) -> Run:
        from ..vae.kernels import triton_group_norm
        from ..vae.kernels.triton_support import ProgramShape

        x = random(*shape)
        used = None if tile is None else ProgramShape(*tile)
        return lambda: triton_group_norm.group_norm_statistics(x, groups, shape=used)

    tiles = ((64, 64, 4), (128, 16, 4), (128, 16, 8), (128, 32, 4), (128, 32, 8), (128, 64, 8), (128, 64, 16))
    for tile in (None, *tiles):
        way = "tile {} channels x {} cells, {} warps".format(*tile) if tile else "triton"
        yield Case("statistics only", "x".join(map(str, shape)), way, partial(prepare, tile), moved)


def put_cases(random: Random, shape: tuple[int, ...]) -> Iterator[Case]:
    """What is written to where it belongs: two carried frames into a padded buffer, a sum with a bias over what lies
    there, one phase of a plane of twice the size."""
    from ..vae.kernels import Border, Padded

    batch, channels, frames, height, width = shape
    moved = torch.Size(shape).numel() * random.dtype.itemsize

    def prepare(module: str, how: str) -> Run:
        function = import_module(f"..vae.kernels.{module}", __package__).put
        x, bias = random(*shape), random(channels)
        if how == "a sum with a bias":
            out = random(*shape)
            return lambda: function(x, out=out, bias=bias, add=True)
        if how == "a phase with a bias":
            out = random(batch, channels, frames, 2 * height, 2 * width)[..., ::2, 1::2]
            return lambda: function(x, out=out, bias=bias)
        carried = x[:, :, :2]
        buffer = Padded(random(batch, channels, frames + 2, height + 2, width + 2)[:, :, :2], Border(1, 1, 1, 1))
        if module == "triton_put":
            return lambda: function(carried, out=buffer)

        def copy() -> None:
            function(carried, out=buffer.inside)
            buffer.surround()

        return copy

    sizes = {"carried frames": 4 * moved // frames, "a sum with a bias": 3 * moved, "a phase with a bias": 2 * moved}
    for how, least in sizes.items():
        for module in ("eager", "triton_put"):
            yield Case("put", f"{'x'.join(map(str, shape))}, {how}", module, partial(prepare, module, how), least)


def rms_cases(random: Random, shape: tuple[int, ...]) -> Iterator[Case]:
    moved = 2 * torch.Size(shape).numel() * random.dtype.itemsize

    def prepare(module: str, last: bool) -> Run:
        function = import_module(f"..vae.kernels.{module}", __package__).rms_norm_silu
        x, weight = random(*shape, last=last), random(shape[1], 1, 1, 1)
        out = torch.empty_like(x)
        return lambda: function(x, weight, out=out)

    for last in (True, False):
        size = f"{'x'.join(map(str, shape))} {'channels_last' if last else 'contiguous'}"
        for module in ("plain", "eager", "triton_rms_norm"):
            yield Case("rms_norm_silu", size, module, partial(prepare, module, last), moved)


def shuffle_cases(random: Random, shape: tuple[int, ...], temporal: int) -> Iterator[Case]:
    moved = 2 * torch.Size(shape).numel() * random.dtype.itemsize

    def prepare(module: str, last: bool) -> Run:
        function = import_module(f"..vae.kernels.{module}", __package__).pixel_shuffle_3d
        x = random(*shape, last=last)
        out = torch.empty_like(function(x, temporal))
        return lambda: function(x, temporal, out=out)

    for last in (True, False):
        size = f"{'x'.join(map(str, shape))} z={temporal} {'channels_last' if last else 'contiguous'}"
        for module in ("plain", "eager", "triton_pixel_shuffle"):
            yield Case("pixel_shuffle_3d", size, module, partial(prepare, module, last), moved)


def conv_cases(random: Random, channels: int, frames: int, height: int, width: int, taps: int) -> Iterator[Case]:
    """A causal convolution on its padded buffer, in every way the pack may choose, and contiguous for comparison."""
    flops = 2 * channels * channels * taps * 9 * frames * height * width
    moved = 2 * channels * frames * height * width * random.dtype.itemsize
    half = Random(random.device, torch.float16)

    def kitchen(*arguments: Any) -> object:
        from ..vae.kernels import comfy_kitchen

        return comfy_kitchen.fp16_conv3d(*arguments)

    def prepare(function: Callable[..., object], make: Random, last: bool) -> Run:
        x = make(1, channels, frames + taps - 1, height + 2, width + 2, last=last)
        weight, bias = make(channels, channels, taps, 3, 3, last=last), make(channels)
        return lambda: function(x, weight, bias, (1, 1, 1))

    size = f"{channels} channels, {frames}x{height}x{width}, {taps}x3x3"
    ways: list[tuple[str, Callable[..., object], Random, bool]] = [
        ("conv3d, channels_last", torch_conv3d, random, True),
        ("conv3d, contiguous", torch_conv3d, random, False),
        ("conv2d sum, channels_last", conv2d_sum, random, True),
        ("conv3d float16, channels_last", torch_conv3d, half, True),
        ("comfy-kitchen, float16 sums", kitchen, half, True),
    ]
    for way, function, make, last in ways:
        yield Case("causal conv", size, way, partial(prepare, function, make, last), moved, flops)
    if taps == 3 and frames > 1:
        shape = (1, channels, frames + taps - 1, height + 2, width + 2)
        for way, alone in (("blocks of 2 frames", False), ("blocks of 2 frames, their convolutions alone", True)):
            yield Case("causal conv", size, way, partial(_blocks, random, shape, alone), moved, flops)


def _blocks(random: Random, shape: tuple[int, ...], alone: bool) -> Run:
    """F(2, 3) along time: 4 plane convolutions in place of 6, on sums of frames of a padded buffer of that shape; alone
    without the sums before and behind them, which is what no fused kernel can go below."""
    x, weight = random(*shape), random(shape[1], shape[1], 3, 3, 3)
    how = winograd.scheme(3, shape[2], 2, head=False, dtype=random.dtype)
    kernels = list(winograd.transformed(weight, 2))
    read = winograd.planes(x, how)
    out = random(1, shape[1], shape[2] - 2, shape[3] - 2, shape[4] - 2)
    if not alone:
        return lambda: winograd.convolved(winograd.planes(x, how), kernels, None, how, out, add=False)
    parts = list(zip(read.split(how.counts), kernels, strict=True))
    return lambda: [F.conv2d(planes, kernel) for planes, kernel in parts]


def attention_cases(random: Random, positions: int, channels: int) -> Iterator[Case]:
    """The mid block's one wide head over the positions of one frame."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def prepare(backend: SDPBackend | None) -> Run:
        q, k, v = (random(1, 1, positions, channels, last=False) for _ in range(3))

        def run() -> object:
            if backend is None:
                return F.scaled_dot_product_attention(q, k, v)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return run

    flops, moved = 4 * positions**2 * channels, 4 * positions * channels * random.dtype.itemsize
    kernels = {
        "PyTorch's choice": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    for way, backend in kernels.items():
        yield Case("attention", f"{positions} positions, 1x{channels}", way, partial(prepare, backend), moved, flops)


def all_cases(device: torch.device, dtype: torch.dtype, small: bool) -> Iterator[Case]:
    """Everything, at the sizes of a 1248x720 decode in slices of one latent frame (four frames at full resolution)."""
    random = Random(device, dtype)
    height, width = (16, 24) if small else (720, 1248)
    frames = 2 if small else 4
    yield from norm_cases(random, (1, 32, 2, 16, 16) if small else (1, 128, 20, 256, 256), 32)
    yield from norm_cases(random, (1, 32, frames, height, width) if small else (1, 128, frames, height, width), 32)
    if not small:
        yield from norm_cases(random, (1, 512, 1, height // 8, width // 8), 32)
        yield from tile_cases(random, (1, 128, 20, 256, 256), 32)
        yield from statistics_cases(random, (1, 128, 20, 256, 256), 32)
    yield from put_cases(random, (1, 32 if small else 128, frames, height, width))
    yield from rms_cases(random, (1, 32 if small else 96, frames, height, width))
    for channels, z in ((64, 1), (64, 2)) if small else ((1024, 1), (4096, 2)):
        cut = 2 if z == 1 else 4
        yield from shuffle_cases(random, (1, channels, 2, height // cut, width // cut), z)
    for channels, made, cut in ((16, 2, 1),) if small else ((128, 4, 1), (256, 4, 2), (512, 2, 4), (512, 1, 8)):
        for taps in (3, 1):
            yield from conv_cases(random, channels, made, height // cut, width // cut, taps)
    yield from attention_cases(random, (height // 8) * (width // 8), 64 if small else 512)

"""The Triton kernels compiled for real cards, which needs no card: the launches of full-size tensors, down to PTX."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton only interprets in this process", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdiffusers.benchmarks import kernels_static
from fastdiffusers.benchmarks.card_trace import on_a_card
from fastdiffusers.benchmarks.kernel_launches import specialised
from fastdiffusers.memory import LiveBytes
from fastdiffusers.vae.kernels import (
    Border,
    Padded,
    triton_group_norm,
    triton_pixel_shuffle,
    triton_put,
    triton_rms_norm,
)
from fastdiffusers.vae.network.execution import Layout

WIDE = re.compile(r"(ld|st)\.global\.v4\.b32")
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Launches:
    """Stands in for a kernel: keeps what it was launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(grid), f"an empty grid: {grid}"
        assert all(size <= 65535 for size in grid[1:]), f"too large for a card: {grid}"
        return lambda *arguments, **options: self.calls.append((arguments, options))

    def ptx(self, capability: int) -> Iterator[str]:
        """The machine code of each launch, specialised as Triton does it at the launch."""
        for arguments, options in self.calls:
            launch = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            signature, constants, hints = {}, {}, {}
            for index, (name, parameter) in enumerate(zip(self.kernel.arg_names, self.kernel.params, strict=True)):
                value = launch[name]
                typed = bool(parameter.annotation_type)  # of such, Triton makes no constant
                if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not typed):
                    signature[name], constants[(index,)] = "constexpr", value
                    continue
                if isinstance(value, torch.Tensor):
                    signature[name] = TYPES[value.dtype]
                    aligned = value.storage_offset() * value.element_size() % 16 == 0
                elif isinstance(value, float):
                    signature[name], aligned = "fp32", False
                else:
                    signature[name] = parameter.annotation_type or ("i32" if abs(value) < 2**31 else "i64")
                    aligned = value % 16 == 0
                if aligned:
                    hints[(index,)] = [["tt.divisibility", 16]]
            source = ASTSource(self.kernel, signature, constexprs=constants, attrs=hints)
            options = {"num_warps": launch["num_warps"]}
            yield triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """A context in which the named kernels of a module only record."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    @contextmanager
    def record(module: Any, *names: str) -> Iterator[dict[str, Launches]]:
        stand_ins = {name: Launches(getattr(module, name)) for name in names}
        with monkeypatch.context() as patch:
            for name, stand_in in stand_ins.items():
                patch.setattr(module, name, stand_in)
            yield stand_ins

    return record


def activation(dtype: torch.dtype, *, last: bool, channels: int = 128) -> torch.Tensor:
    """A large activation that takes no memory."""
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(1, channels, 20, 256, 256, dtype=dtype, device="meta", memory_format=layout)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("last", [False, True])
def test_group_norm_moves_sixteen_bytes_at_a_time(recorded: Any, last: bool, capability: int) -> None:
    x = activation(torch.bfloat16, last=last)
    weight = torch.empty(128, dtype=torch.bfloat16, device="meta")
    with recorded(triton_group_norm, "_sum_parts", "_merge_parts", "_normalise") as kernels:
        triton_group_norm.group_norm_silu(x, weight, weight, 32, 1e-6)
    assert [len(kernel.calls) for kernel in kernels.values()] == [1, 1, 1]
    [summing], [_], [writing] = (list(kernel.ptx(capability)) for kernel in kernels.values())
    assert "ld" in {m.group(1) for m in WIDE.finditer(summing)}
    assert {m.group(1) for m in WIDE.finditer(writing)} == {"ld", "st"}


def test_a_padded_channels_last_buffer_is_written_sixteen_bytes_at_a_time(recorded: Any) -> None:
    x = activation(torch.float16, last=True)
    buffer = torch.empty(1, 128, 22, 258, 258, dtype=x.dtype, device="meta", memory_format=torch.channels_last_3d)
    weight = torch.empty(128, device="meta")
    with recorded(triton_group_norm, "_sum_parts", "_merge_parts", "_normalise") as kernels:
        triton_group_norm.group_norm_silu(x, weight, weight, 32, 1e-6, out=Padded(buffer, Border(1, 1, 1, 1), 2))
    [writing] = kernels["_normalise"].ptx(90)
    assert {m.group(1) for m in WIDE.finditer(writing)} == {"ld", "st"}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [384, 2048])
def test_rms_norm_moves_sixteen_bytes_at_a_time(recorded: Any, channels: int, last: bool) -> None:
    x = activation(torch.bfloat16, last=last, channels=channels)
    with recorded(triton_rms_norm, "_normalise") as kernels:
        triton_rms_norm.rms_norm_silu(x, torch.empty(channels, 1, 1, 1, device="meta"))
    [code] = kernels["_normalise"].ptx(90)
    assert {m.group(1) for m in WIDE.finditer(code)} == {"ld", "st"}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("temporal", [1, 2])
def test_the_pixel_shuffle_moves_sixteen_bytes_at_a_time(recorded: Any, temporal: int, last: bool) -> None:
    x = activation(torch.bfloat16, last=last, channels=4 * temporal * 128)
    with recorded(triton_pixel_shuffle, "_shuffle") as kernels:
        triton_pixel_shuffle.pixel_shuffle_3d(x, temporal, drop_head=True)
    [code] = kernels["_shuffle"].ptx(90)
    assert {m.group(1) for m in WIDE.finditer(code)} == {"ld", "st"}


def test_a_padded_channels_last_buffer_is_shuffled_into_sixteen_bytes_at_a_time(recorded: Any) -> None:
    x = activation(torch.bfloat16, last=True, channels=512)
    buffer = torch.empty(1, 128, 20, 514, 514, dtype=x.dtype, device="meta", memory_format=torch.channels_last_3d)
    with recorded(triton_pixel_shuffle, "_shuffle") as kernels:
        triton_pixel_shuffle.pixel_shuffle_3d(x, 1, out=Padded(buffer, Border(1, 1, 1, 1)))
    [code] = kernels["_shuffle"].ptx(90)
    assert {m.group(1) for m in WIDE.finditer(code)} == {"ld", "st"}


def test_the_pixel_shuffle_compiles_with_bias_and_residual(recorded: Any) -> None:
    for last in (False, True):
        x = activation(torch.float16, last=last, channels=512)
        residual = torch.empty(1, 128, 20, 512, 512, dtype=torch.float16, device="meta")
        with recorded(triton_pixel_shuffle, "_shuffle") as kernels:
            bias = torch.empty(512, device="meta")
            triton_pixel_shuffle.pixel_shuffle_3d(x, 1, bias=bias, residual=residual)
        [code] = kernels["_shuffle"].ptx(90)
        assert "add.f32" in code


@pytest.mark.parametrize("how", ["carried frames", "a sum", "a phase"])
def test_what_is_put_somewhere_moves_sixteen_bytes_at_a_time(recorded: Any, how: str) -> None:
    x = activation(torch.bfloat16, last=True)
    bias = torch.empty(128, dtype=x.dtype, device="meta")
    last = {"dtype": x.dtype, "device": "meta", "memory_format": torch.channels_last_3d}
    with recorded(triton_put, "_put") as kernels:
        if how == "carried frames":
            buffer = torch.empty(1, 128, 22, 258, 258, **last)
            triton_put.put(x, out=Padded(buffer[:, :, 1:21], Border(1, 1, 1, 1)))
        elif how == "a sum":
            triton_put.put(x, out=torch.empty_like(x), bias=bias, add=True)
        else:
            triton_put.put(x, out=torch.empty(1, 128, 20, 512, 512, **last)[..., ::2, 1::2], bias=bias)
    [code] = kernels["_put"].ptx(90)
    assert {m.group(1) for m in WIDE.finditer(code)} == {"ld", "st"}


@pytest.mark.parametrize("last", [False, True])
def test_nothing_is_allocated_beside_the_result_but_sums(recorded: Any, last: bool) -> None:
    """A full-size frame's moments per channel and part, a hundredth of the input; the others take nothing at all."""
    x, weight = activation(torch.bfloat16, last=last), torch.empty(128, dtype=torch.bfloat16, device="meta")
    out, large = torch.empty_like(x), x.new_empty(1, 32, 20, 512, 512)
    runs: list[tuple[Any, Callable[[], object], float]] = [
        (triton_group_norm, lambda: triton_group_norm.group_norm_silu(x, weight, weight, 32, 1e-6, out=out), 0.01),
        (triton_rms_norm, lambda: triton_rms_norm.rms_norm_silu(x, weight, out=out), 0),
        (triton_pixel_shuffle, lambda: triton_pixel_shuffle.pixel_shuffle_3d(x, 1, out=large), 0),
        (triton_put, lambda: triton_put.put(x, out=out, bias=weight, add=True), 0),
    ]
    for module, run, share in runs:
        kernels = [
            name for name in ("_sum_parts", "_merge_parts", "_normalise", "_shuffle", "_put") if hasattr(module, name)
        ]
        with recorded(module, *kernels) as launches, LiveBytes() as live:
            run()
        assert any(launch.calls for launch in launches.values())
        assert live.peak <= share * x.nbytes, module.NAME


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 4, 1, 1, 3)], ids=str)
def test_sizes_of_one_compile(recorded: Any, shape: tuple[int, ...]) -> None:
    """At the launch, Triton makes a constant of every argument that is 1."""
    x, weight = torch.empty(shape, device="meta"), torch.empty(shape[1], device="meta")
    with recorded(triton_group_norm, "_sum_parts", "_merge_parts", "_normalise") as norm:
        triton_group_norm.group_norm_silu(x, weight, weight, 1, 1e-6)
    with recorded(triton_rms_norm, "_normalise") as rms:
        triton_rms_norm.rms_norm_silu(x, weight, weight)
    with recorded(triton_pixel_shuffle, "_shuffle") as shuffle:
        triton_pixel_shuffle.pixel_shuffle_3d(torch.empty(shape[0], 4, *shape[2:], device="meta"), 1)
    with recorded(triton_put, "_put") as put:
        triton_put.put(x, out=torch.empty(shape, device="meta"), bias=weight, add=True)
    for kernel in (*norm.values(), *rms.values(), *shuffle.values(), *put.values()):
        assert [".entry" in code for code in kernel.ptx(80)] == [True]


def test_a_decode_of_another_size_compiles_little_anew() -> None:
    """Neither numbers of frames nor rows decide what Triton makes of a kernel."""
    found: list[set[str]] = []
    for latent in ((4, 90, 156), (4, 60, 104)):
        with on_a_card() as trace:
            kernels_static.run(trace, kernels_static.empty_vae(torch.float16), "decode", Layout(), latent)
        found.append({f"{launch.kernel} {specialised(launch)} {launch.options}" for launch in trace.launches})
    first, second = found
    assert len(first) <= 28
    assert len(second - first) <= 8

"""A noted launch of a Triton kernel: as Triton specialises it, and compiled for any card by the wheel's assembler."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from typing import Any, NamedTuple

import torch
import triton

from ..vae.kernels import triton_group_norm, triton_pixel_shuffle, triton_put, triton_rms_norm
from .card_trace import Launch, Place

MODULES = {module.NAME: module for module in (triton_group_norm, triton_pixel_shuffle, triton_put, triton_rms_norm)}
SPACE = 1 << 42
"""Bytes between the addresses of two tensors."""
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[a-zA-Z][\w:]*?)*?(?:\.v(\d))?\.[bufs](\d+)\b")


class Pointer:
    """What Triton looks at of a tensor argument."""

    def __init__(self, place: Place) -> None:
        self.dtype = place.dtype
        self._address = (place.storage + 1) * SPACE + place.offset

    def data_ptr(self) -> int:
        return self._address


class Compiled(NamedTuple):
    """A launch for one card.

    Attributes:
        registers: per thread. spilled, stack: bytes per thread. shared: bytes per program.
        loads, stores: instructions to the card's memory, by bits per thread.
    """

    registers: int
    spilled: int
    stack: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]


def kernel_of(launch: Launch) -> Any:
    return getattr(MODULES[launch.module], launch.kernel)


def specialised(launch: Launch, capability: int = 90) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """(types, constants, hints about divisibility) as Triton takes them from a launch's arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel, backend = kernel_of(launch), make_backend(GPUTarget("cuda", capability, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments = {
        name: Pointer(value) if isinstance(value, Place) else value for name, value in launch.arguments.items()
    }
    bound, found, _ = binder(**arguments, **launch.options)
    names, values = [parameter.name for parameter in kernel.params], list(bound.values())
    types = {name: kind for name, (kind, _) in zip(names, found, strict=True)}
    constants = {(index,): values[index] for index, (kind, _) in enumerate(found) if kind == "constexpr"}
    hints = {
        (index,): backend.parse_attr(hint)
        for index, (kind, hint) in enumerate(found)
        if kind != "constexpr" and isinstance(hint, str)
    }
    return types, constants, hints


def compiled(launch: Launch, capability: int) -> Compiled:
    """The launch for a card of a compute capability (90 for 9.0), by Triton and the assembler of its wheel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, hints = specialised(launch, capability)
    source = ASTSource(kernel_of(launch), types, constexprs=constants, attrs=hints)
    told = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(told):
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))

    def figure(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, told.getvalue()))

    accesses: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for way, width, bits in ACCESS.findall(made.asm["ptx"]):
        accesses[way][int(width or 1) * int(bits)] += 1
    registers = figure(r"Used (\d+) registers")
    if not registers:
        raise RuntimeError(f"the assembler did not say how many registers it uses: {told.getvalue()}")
    return Compiled(
        registers,
        figure(r"(\d+) bytes spill stores"),
        figure(r"(\d+) bytes stack frame"),
        made.metadata.shared,
        dict(sorted(accesses["ld"].items())),
        dict(sorted(accesses["st"].items())),
    )


def to_json(launch: Launch) -> list[Any]:
    def plain(value: Any) -> Any:
        return [value[0], str(value.dtype).removeprefix("torch."), *value[2:]] if isinstance(value, Place) else value

    arguments = {name: plain(value) for name, value in launch.arguments.items()}
    return [launch.module, launch.kernel, launch.grid, arguments, launch.options]


def from_json(data: list[Any]) -> Launch:
    def real(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        number, dtype, shape, stride, *rest = value
        return Place(number, getattr(torch, dtype), tuple(shape), tuple(stride), *rest)

    module, kernel, grid, arguments, options = data
    return Launch(module, kernel, tuple(grid), {name: real(value) for name, value in arguments.items()}, options)

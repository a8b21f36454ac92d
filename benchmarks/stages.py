"""Where the time of a network goes, stage by stage: seconds, work and the least traffic of each group of modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..optimizations.tuning.meters import stopwatch, synchronize

Stages = Mapping[str, Sequence[nn.Module]]
"""Name -> the modules that make up a stage; none of them lies within another."""
REST, ALL = "the rest", "all"


@dataclass
class Stage:
    """One stage, or all that is in none.

    Attributes:
        name: for the table. calls: of its modules in one run.
        seconds: of all its calls in one run; the median of several runs.
        flops: multiplications and additions of its convolutions and matrix products.
        bytes: of the inputs, outputs and weights of its modules, each once per call: what has to be moved at the least,
            if nothing that is made and used within a module ever left the chip.
    """

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0


def measure_stages(run: Callable[[], object], stages: Stages, device: torch.device, runs: int) -> list[Stage]:
    """Every stage of a run, then "the rest" and "all" of it.

    Args:
        run: one run of the network, the same every time; it has been run before.
        runs: how many are timed. One more counts the work.
    """
    counted = _work(run, stages)
    watch = stopwatch(device)
    seconds: dict[str, list[float]] = {stage.name: [] for stage in counted}
    for _ in range(runs):
        marks: dict[str, list[Any]] = {name: [] for name in stages}
        start = watch.mark()
        with _around(stages, lambda name, marks=marks: marks[name].append(watch.mark())):  # type: ignore[misc]
            run()
        end = watch.mark()
        synchronize(device)
        spent = {name: sum(map(watch.between, found[::2], found[1::2])) for name, found in marks.items()}
        whole = watch.between(start, end)
        for name, value in {**spent, REST: whole - sum(spent.values()), ALL: whole}.items():
            seconds[name].append(value)
    for stage in counted:
        stage.seconds = median(seconds[stage.name])
    return counted


def _convolution_flops(x: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


LIBRARY_CONVOLUTIONS = {
    torch.ops.aten.mkldnn_convolution: _convolution_flops,
    torch.ops.aten.cudnn_convolution: _convolution_flops,
}
"""Convolutions that are called by their library's name, which PyTorch's counter does not know."""


def _work(run: Callable[[], object], stages: Stages) -> list[Stage]:
    """Calls, FLOP and bytes of each stage; of the rest the FLOP alone: it has no inputs and outputs of its own."""
    found = {name: Stage(name) for name in stages}
    begun: list[int] = []

    def counted(name: str) -> None:
        total = counter.get_total_flops()
        if begun:
            found[name].flops += total - begun.pop()
            found[name].calls += 1
        else:
            begun.append(total)

    def moved(name: str, module: nn.Module, tensors: object) -> None:
        found[name].bytes += nbytes(tensors) + sum(p.nbytes for p in module.parameters())

    with (
        FlopCounterMode(display=False, custom_mapping=LIBRARY_CONVOLUTIONS) as counter,
        _around(stages, counted, moved),
    ):
        run()
    whole = counter.get_total_flops()
    rest = Stage(REST, flops=whole - sum(stage.flops for stage in found.values()))
    return [*found.values(), rest, Stage(ALL, 1, flops=whole, bytes=sum(stage.bytes for stage in found.values()))]


@contextmanager
def _around(
    stages: Stages, passing: Callable[[str], None], moved: Callable[[str, nn.Module, object], None] | None = None
) -> Iterator[None]:
    """While the block runs: `passing` is called before and after every call of a stage's module, `moved` after it."""

    def enter(name: str, *_: object) -> None:
        passing(name)

    def leave(name: str, module: nn.Module, arguments: object, options: object, output: object) -> None:
        passing(name)
        if moved is not None:
            moved(name, module, (arguments, options, output))

    with ExitStack() as stack:
        for name, modules in stages.items():
            for module in modules:
                stack.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
                stack.callback(module.register_forward_hook(partial(leave, name), with_kwargs=True).remove)
        yield


def nbytes(values: object) -> int:
    """Bytes of all tensors in nested tuples, lists and dicts; of another object, those of what it is made from."""
    if isinstance(values, torch.Tensor):
        return values.nbytes
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        return sum(map(nbytes, values))
    source = getattr(values, "x", None)  # what a convolution of the video VAE reads
    return source.nbytes if isinstance(source, torch.Tensor) else 0


class AttentionCalls(TorchFunctionMode):
    """Notes the shapes of every scaled dot product attention that runs inside the `with` block, with their number."""

    def __init__(self) -> None:
        self.shapes: dict[tuple[torch.Size, torch.Size], int] = {}
        """(query, key) [B, heads, tokens, channels] -> calls."""
        self.dtype = torch.float32
        """Of the last query."""
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key = (options[name] if name in options else args[i] for i, name in enumerate(("query", "key")))
            shapes, self.dtype = (query.shape, key.shape), query.dtype
            self.shapes[shapes] = self.shapes.get(shapes, 0) + 1
        return func(*args, **options)

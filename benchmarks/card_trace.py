"""A card's side of a decode, traced without a card: what is queued, allocated, copied and waited for.

Tensors have no data ("meta") but say that they lie on a card, so the code under trace takes the ways it takes there;
those made on "cpu" meanwhile count as main memory. The pack's own kernels are replaced by what notes their launches,
its choices by their usual outcome: the fused kernel, PyTorch's convolution. A real card chooses by measuring when it
first sees a kind of input, and waits for itself then; that is no part of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..vae import engine, kernels, streams
from ..vae.kernels import triton_group_norm, triton_pixel_shuffle, triton_put, triton_rms_norm
from ..vae.kernels.conv_choice import ConvChoice
from ..vae.network.convolution import CHOICE

CARD = torch.device("cuda:0")
MODULES = (triton_group_norm, triton_pixel_shuffle, triton_put, triton_rms_norm)
KERNELS = ("_sum_parts", "_merge_parts", "_normalise", "_shuffle", "_put")
WAITS = {
    "_local_scalar_dense", "equal", "item", "is_nonzero", "masked_select", "nonzero", "repeat_interleave", "_unique2",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations whose result, or its size, the processor waits for."""
CONVOLUTIONS = ("conv2d", "conv3d", "convolution", "cudnn_convolution")
GETTERS = {getattr(torch.Tensor, name).__get__: name for name in ("device", "is_cuda", "is_cpu", "is_meta")}


class Place(NamedTuple):
    """A tensor as a kernel was given it. Attributes: storage: a number; offset, nbytes: bytes, the latter of it all."""

    storage: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    nbytes: int


class Launch(NamedTuple):
    """One launch. Attributes: module, kernel: names; arguments: by name, tensors as `Place`; options: num_warps."""

    module: str
    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass
class Counts:
    """What happened during one part of a run.

    Attributes:
        launches: of the pack's own kernels, by name.
        operations: of PyTorch that do something on the card, by name; most are one kernel, some two or three.
        allocations: tensors made on the card. allocated: their bytes.
        waits: what the processor waits for, by name.
        queued_copies: copies between card and page-locked memory that nobody waits for.
    """

    launches: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    allocations: int = 0
    allocated: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    queued_copies: int = 0


class _Device(TorchFunctionMode):
    """Answers for tensors without data that they lie on a card, and makes those asked for there or in main memory."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, trace = kwargs or {}, self._trace
        if func in GETTERS:
            return self._asked(GETTERS[func], args[0])
        if func is F.scaled_dot_product_attention:
            return trace.attention(*args[:3])
        if func is torch.Tensor.get_device:
            return 0
        asked = [leaf for leaf in tree_leaves((args, kwargs)) if _is_device(leaf)]
        asked = {torch.Tensor.cpu: ["cpu"], torch.Tensor.cuda: ["cuda"]}.get(func, asked)
        if not asked:
            return func(*args, **kwargs)
        to_card = torch.device(asked[0]).type == "cuda"
        if not to_card and func is torch.Tensor.to and not args[0].is_meta:
            return func(*args, **kwargs)
        with_meta = tree_map(lambda leaf: torch.device("meta") if _is_device(leaf) else leaf, (args, kwargs))
        moved = func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda)
        if moved and args[0].is_meta and trace.on_card(args[0]) == to_card:
            return func(*with_meta[0], **with_meta[1])
        trace.destination = to_card
        try:
            if not moved or not args[0].is_meta:
                return func(*with_meta[0], **with_meta[1])
            dtype = next((leaf for leaf in tree_leaves((args[1:], kwargs)) if isinstance(leaf, torch.dtype)), None)
            made = torch.empty_like(args[0], dtype=dtype)
            return made.copy_(args[0])
        finally:
            trace.destination = True

    def _asked(self, name: str, x: torch.Tensor) -> Any:
        on_card = x.is_meta and self._trace.on_card(x)
        if name == "device":
            return CARD if on_card else torch.device("cpu")
        return {"is_cuda": on_card, "is_cpu": not on_card, "is_meta": False}[name]


def _is_device(leaf: Any) -> bool:
    return isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf.split(":")[0] in ("cuda", "cpu"))


class Trace(TorchDispatchMode):
    """Counts what a computation does on a card, in parts that `part` opens.

    Attributes:
        counts: of the part that is open.
        launches: all of the pack's own kernels so far.
        destination: whether what is made now lies on the card.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.launches: list[Launch] = []
        self.destination = True
        self._host: dict[int, torch.UntypedStorage] = {}
        self._locked: set[int] = set()
        self._numbers: dict[int, tuple[int, torch.UntypedStorage]] = {}

    @contextmanager
    def part(self) -> Iterator[Counts]:
        """Count by itself what happens inside the `with` block."""
        outer, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = outer

    def on_card(self, x: torch.Tensor) -> bool:
        return x.untyped_storage()._cdata not in self._host

    def in_main_memory(self, x: torch.Tensor, *, locked: bool = False) -> torch.Tensor:
        """Take a tensor without data for one in main memory, page-locked or not."""
        storage = x.untyped_storage()
        self._host[storage._cdata] = storage
        if locked:
            self._locked.add(storage._cdata)
        return x

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """One fused operation on a card; PyTorch would take it apart here."""
        made = torch.empty_like(q)
        self.counts.operations["scaled_dot_product_attention"] += 1
        return made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in WAITS and any(x.is_meta for x in given):
            self.counts.waits[name] += 1
            if name in ("_local_scalar_dense", "item", "is_nonzero", "equal"):
                return True
        result = func(*args, **kwargs)
        if name in CONVOLUTIONS and any(lies_last(x) for x in given[:2]):  # as cuDNN leaves it
            last = torch.channels_last_3d if result.ndim == 5 else torch.channels_last
            result = torch.empty_like(result, memory_format=last)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_meta]
        known = {x.untyped_storage()._cdata for x in given}
        fresh = {x.untyped_storage()._cdata: x for x in made if x.untyped_storage()._cdata not in known}
        for x in fresh.values():
            if self.destination:
                self.counts.allocations += 1
                self.counts.allocated += x.untyped_storage().nbytes()
            else:
                self.in_main_memory(x)
        if name == "copy_":
            self._copied(args[0], args[1], non_blocking=bool(args[2] if len(args) > 2 else kwargs.get("non_blocking")))
        elif _does_something(func, name, fresh) and any(self.on_card(x) for x in (*made, *given) if x.is_meta):
            self.counts.operations[name] += 1
        return result

    def _copied(self, target: torch.Tensor, source: torch.Tensor, *, non_blocking: bool) -> None:
        sides = [x.is_meta and self.on_card(x) for x in (target, source)]
        if all(sides):
            self.counts.operations["copy_"] += 1
        elif any(sides):
            host = source if sides[0] else target
            if non_blocking and host.untyped_storage()._cdata in self._locked:
                self.counts.queued_copies += 1
            else:
                self.counts.waits["copy to the card" if sides[0] else "copy from the card"] += 1

    def place(self, x: torch.Tensor) -> Place:
        storage = x.untyped_storage()
        number, _ = self._numbers.setdefault(storage._cdata, (len(self._numbers), storage))
        offset = int(x.storage_offset()) * x.element_size()
        return Place(number, x.dtype, tuple(x.shape), x.stride(), offset, storage.nbytes())


def lies_last(x: torch.Tensor) -> bool:  # channels are innermost in memory
    return x.stride(1) == 1 and x.shape[1] > 1


def _does_something(func: Any, name: str, fresh: dict[int, torch.Tensor]) -> bool:
    """Whether an operation is more than a view or an allocation."""
    if name.startswith(("empty", "new_empty")):
        return False
    return bool(fresh) or func._schema.is_mutable


class _Noted:
    """Stands in for a kernel and notes its launches."""

    def __init__(self, trace: Trace, module: str, kernel: Any) -> None:
        self._trace, self._module, self._kernel = trace, module, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*given: Any, **options: Any) -> None:
            trace, names = self._trace, self._kernel.arg_names
            named = dict(zip(names, given, strict=False)) | options
            arguments = {
                name: trace.place(value) if isinstance(value, torch.Tensor) else value
                for name, value in named.items()
                if name in names
            }
            rest = {name: value for name, value in named.items() if name not in names}
            trace.launches.append(Launch(self._module, self._kernel.__name__, tuple(grid), arguments, rest))
            trace.counts.launches[f"{self._module}.{self._kernel.__name__}"] += 1

        return launch


class _Stream:
    """The stream that copies off the card."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def start(self, target: torch.Tensor, staged: torch.Tensor) -> Callable[[], None]:
        target.copy_(staged, non_blocking=True)
        return lambda: self._trace.counts.waits.update(["a queued copy"])

    def buffer(self, like: torch.Tensor) -> torch.Tensor:
        self._trace.destination = False
        try:
            made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
        finally:
            self._trace.destination = True
        return self._trace.in_main_memory(made, locked=True)


def fused(key: kernels.Key) -> kernels.KernelChoice:
    """What a card chooses where every probe succeeds."""
    for module in MODULES:
        function = getattr(module, key.operation, None)
        if function is not None:
            return kernels.KernelChoice(function, module.NAME, module.WRITES_PADDING)
    raise NotImplementedError(key.operation)


@contextmanager
def on_a_card() -> Iterator[Trace]:
    """Inside the `with` block, tensors without data lie on a card. Gives what counts what is done with them."""
    trace = Trace()
    with ExitStack() as stack:
        for module in MODULES:
            for name in KERNELS:
                if hasattr(module, name):
                    noted = _Noted(trace, module.NAME, getattr(module, name))
                    stack.enter_context(patch.object(module, name, noted))
        stack.enter_context(patch.dict(kernels._choices, clear=True))
        stack.enter_context(patch.object(kernels, "_choose", fused))
        stack.enter_context(patch.object(ConvChoice, "_choose", lambda self, *_: self.CONV3D))
        stack.enter_context(patch.object(torch.cuda, "device_of", lambda _: nullcontext()))
        stack.enter_context(patch.dict(CHOICE._chosen))
        stream = lambda device: _Stream(trace) if device.type == "cuda" else None
        for module in (streams, engine):
            stack.enter_context(patch.object(module, "copy_stream", stream))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(trace)
        stack.enter_context(_Device(trace))
        yield trace

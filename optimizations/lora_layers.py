"""Adapters beside a model's layers: all LoRAs of a model in one branch per layer, exchanged in place.

However many LoRAs are active, a layer has one extra branch: their `down` matrices stacked, their `up` matrices side by
side with each strength multiplied in, because

    W x + sum_i s_i U_i (D_i x)  =  W x + [s_1 U_1 ... s_n U_n] ([D_1; ...; D_n] x).

Where one of them is a DoRA, their order counts: its factors per output multiply what the ones before it added too.

The branch has room for a fixed total rank, and for the further parts (`Room`) that some adapter needs: an added bias,
DoRA's factor per output, a full difference, Kronecker products. Changing a strength, exchanging a file or adding one
that fits only writes into these tensors: their addresses, shapes and types stay, so compiled code and CUDA graphs stay
valid. The base layer, whatever its weights are stored as, is never touched, so taking the branch off restores the model
exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .components import device_and_dtype
from .lora_factors import (
    Factors,
    Room,
    is_norm,
    layer_shape,
    products_of_gains,
    room_for,
    scaled_rows,
    times_kronecker,
    total_rank,
)

RANK_STEP = 16
"""Room is made in multiples of this rank: a slightly larger LoRA that comes later often still fits."""

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class _Wrapper(nn.Module):
    """A layer with something beside it. Models ask their layers for these: for the type to cast an input to, mostly."""

    base: nn.Module

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        return self.base.in_features  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        return self.base.out_features  # type: ignore[return-value]


class LoraLayer(_Wrapper):
    """A linear or convolution layer with a branch beside it.

    Args:
        base: the layer as it is, quantized or not.
        rank: the total rank that there is room for; unused rank is zero and adds nothing.
        dtype: the type that the branch computes in.
        room: what there is room for besides.
    """

    def __init__(self, base: nn.Module, rank: int, dtype: torch.dtype, room: Room | None = None) -> None:
        super().__init__()
        self.base = base
        self.rank = rank
        self.room = room or Room()
        into, out, kernel = layer_shape(base)
        device = next(base.parameters()).device
        self._dimensions = len(kernel)
        self._per_output = (-1, *(1,) * len(kernel))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, device=device, dtype=dtype), requires_grad=False)

        self.down = zeros(rank, into, *kernel)
        self.up = zeros(out, rank, *(1,) * len(kernel))
        self.added_bias = zeros(out) if self.room.bias else None
        self.gain = zeros(out) if self.room.gain else None
        self.difference = zeros(out, into, *kernel) if self.room.difference else None
        self.lefts = nn.ParameterList([zeros(left, columns) for left, columns, *_ in self.room.kroneckers])
        self.rights = nn.ParameterList([zeros(rows, columns) for _, _, rows, columns, *_ in self.room.kroneckers])
        self.row_gains = nn.ParameterList([zeros(out) for _ in self.room.kroneckers if self.room.gain])
        self.train(base.training)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.base(hidden, *args, **kwargs)
        hidden = hidden.to(self.down.dtype)
        result = output
        if self.rank:
            result = result + self._low_rank(hidden).to(output.dtype)
        if self.gain is not None:
            bias = self.bias
            product = output if bias is None else output - bias.view(self._per_output).to(output.dtype)
            result = result + (product * self.gain.view(self._per_output)).to(output.dtype)
        if self.difference is not None:
            result = result + self._product(hidden, self.difference).to(output.dtype)
        for number, form in enumerate(self.room.kroneckers):
            added = times_kronecker(hidden, self.lefts[number], self.rights[number], form)
            added = added if self.gain is None else added * self.row_gains[number]
            result = result + added.to(output.dtype)
        if self.added_bias is not None:
            result = result + self.added_bias.view(self._per_output).to(output.dtype)
        return result

    def _low_rank(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self._dimensions:
            return functional.linear(functional.linear(hidden, self.down), self.up)
        return _CONVOLUTIONS[self._dimensions](self._product(hidden, self.down), self.up)

    def _product(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What the base layer would give with another weight and no bias."""
        if not self._dimensions:
            return functional.linear(hidden, weight)
        base: Any = self.base
        return _CONVOLUTIONS[self._dimensions](hidden, weight, None, base.stride, base.padding, base.dilation)

    def takes(self, several: Sequence[Factors], rank: int) -> bool:
        """Whether `write(several)` would do."""
        needed = room_for(several)
        # DoRA compares with the weight itself: that has to be there.
        reachable = not needed.gain or not any(p.is_meta for p in self.base.parameters())
        return rank <= self.rank and self.room.covers(needed) and reachable

    def write(self, several: Sequence[Factors]) -> None:
        """Hold these adapters one after the other, and zeros in the rest of the room."""
        new = {name: torch.zeros_like(parameter) for name, parameter in self._own().items()}
        down, up = new["down"], new["up"]
        free = list(self.room.kroneckers)
        products = products_of_gains(several, self.base, down.dtype)
        if products[0] is not None:
            new["gain"] += (products[0] - 1).to(up)
        start = 0
        for factors, product, later in zip(several, products, products[1:], strict=False):
            end = start + factors.rank
            down[start:end] = factors.down.to(down)
            # Factors are multiplied in before rounding to the branch's type.
            up[:, start:end] = scaled_rows(factors.up.to(up.device), factors.scale, product).to(up.dtype)
            start = end
            for name, tensor in (("added_bias", factors.bias), ("difference", factors.difference)):
                if tensor is not None:
                    new[name] += scaled_rows(tensor.to(up.device), factors.strength, later).to(up.dtype)
            if factors.kronecker is not None:
                place = free.index(factors.kronecker.form)
                free[place] = ()
                left = factors.kronecker.left.to(up.device, torch.float32)
                new[f"lefts.{place}"].copy_(left * factors.strength)
                new[f"rights.{place}"].copy_(factors.kronecker.right)
                if self.gain is not None:
                    new[f"row_gains.{place}"].copy_(torch.ones(()) if later is None else later)
        for name, parameter in self._own().items():
            parameter.copy_(new[name])

    def _own(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if not name.startswith("base.")}


class LoraNorm(_Wrapper):
    """A normalization layer beside a copy of it whose weight and bias are changed.

    Args:
        base: the layer as it is.
    """

    rank = 0

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.changed = copy(base)
        # A shallow copy shares the dictionaries that hold these.
        for kind in ("_parameters", "_buffers", "_modules"):
            self.changed.__dict__[kind] = dict(getattr(base, kind))
        for name, parameter in base.named_parameters(recurse=False):
            setattr(self.changed, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.changed(hidden, *args, **kwargs)

    def takes(self, several: Sequence[Factors], rank: int) -> bool:
        return not any(parameter.is_meta for parameter in self.parameters())

    def write(self, several: Sequence[Factors]) -> None:
        """Change weight and bias by the sum of the differences."""
        for name, parameter in self.changed.named_parameters(recurse=False):
            own = self.base.get_parameter(name)
            new = own.float()
            for factors in several:
                added = factors.difference if name == "weight" else factors.bias
                if added is not None:
                    new = new + added.to(new) * factors.strength
            parameter.copy_(new)


class LoraBranches:
    """The branches of one model.

    Args:
        model: a denoiser or text encoder.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.layers: dict[str, LoraLayer | LoraNorm] = {}
        self._rank = 0

    @property
    def rank(self) -> int:
        """Total rank that every branch has room for, 0 while there are none."""
        return self._rank

    def names(self) -> list[str]:
        """The names of all layers, as the model was built with them."""
        inside = tuple(f"{name}." for name in self.layers)
        names = [name for name, _ in self._model.named_modules() if name]
        return [name for name in names if not name.startswith(inside)] if inside else names

    def original(self, name: str) -> nn.Module:
        """The layer of that name as the model was built with it. Raises AttributeError when there is none."""
        layer = self.layers.get(name)
        return layer.base if layer is not None else self._model.get_submodule(name)

    def has_room_for(self, updates: Mapping[str, Sequence[Factors]]) -> bool:
        """Whether `write(updates)` would do, without new layers or more room in them."""
        rank = _highest_rank(updates)
        known = set(updates) <= set(self.layers)
        return (
            known
            and rank <= self._rank
            and all(self.layers[name].takes(several, total_rank(several)) for name, several in updates.items())
        )

    def make_room(self, updates: Mapping[str, Sequence[Factors]], minimum_rank: int = 0) -> None:
        """Give every layer in `updates` a branch with room for them; branches that are there are kept or widened.

        Everything is allocated before anything is attached: out of memory leaves the model as it was.
        """
        rank = max(self._rank, -(-max(_highest_rank(updates), minimum_rank) // RANK_STEP) * RANK_STEP)
        _, dtype = device_and_dtype(self._model)
        built: dict[str, LoraLayer | LoraNorm] = {}
        for name in sorted(set(updates) | set(self.layers)):
            there = self.layers.get(name)
            several = updates.get(name, ())
            if isinstance(there, LoraNorm):
                continue
            if is_norm(self.original(name)):
                built[name] = LoraNorm(self.original(name))
                continue
            room = room_for(several) | (there.room if there is not None else Room())
            if there is None or rank != there.rank or room != there.room:
                built[name] = LoraLayer(self.original(name), rank, dtype, room)
        for name, layer in built.items():
            _replace(self._model, name, layer)
        self.layers.update(built)
        self._rank = rank

    def write(self, updates: Mapping[str, Sequence[Factors]]) -> None:
        """Fill the branches.

        Args:
            updates: factors by layer name, fitted to the layers (`fit`); layers that are not in it are emptied.
        """
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.write(updates.get(name, ()))

    def remove(self) -> None:
        """Put every original layer back where it was."""
        for name, layer in self.layers.items():
            _replace(self._model, name, layer.base)
        self.layers.clear()
        self._rank = 0


def _highest_rank(updates: Mapping[str, Sequence[Factors]]) -> int:
    return max(map(total_rank, updates.values()), default=0)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)

"""Low-rank updates beside a model's layers: all LoRAs of a model in one branch, exchanged in place.

However many LoRAs are active, a layer has one extra branch: their `down` matrices stacked, their `up` matrices side by
side with each strength multiplied in, because

    W x + sum_i s_i U_i (D_i x)  =  W x + [s_1 U_1 ... s_n U_n] ([D_1; ...; D_n] x).

The branch has room for a fixed total rank. Changing a strength, exchanging a file or adding one that fits only writes
into its two tensors: their addresses, shapes and types stay, so compiled code and CUDA graphs stay valid. The base
layer, whatever its weights are stored as, is never touched, so taking the branch off restores the model exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .components import device_and_dtype

RANK_STEP = 16
"""Room is made in multiples of this rank: a slightly larger LoRA that comes later often still fits."""


@dataclass(frozen=True)
class Factors:
    """What one LoRA adds to one layer: `scale * up @ down`.

    Attributes:
        down: [rank, in] for a linear layer, [rank, in, *kernel] for a convolution.
        up: [out, rank], or [out, rank, 1, ...].
        scale: the LoRA's own factor alpha / rank, times the strength it is used with.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def scaled(self, strength: float) -> Factors:
        return Factors(self.down, self.up, self.scale * strength)


class LoraLayer(nn.Module):
    """A linear or convolution layer with a low-rank branch beside it.

    Args:
        base: the layer as it is, quantized or not.
        rank: the total rank that there is room for; unused rank is zero and adds nothing.
        dtype: the type that the branch computes in.
    """

    def __init__(self, base: nn.Module, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        into, out, kernel = layer_shape(base)
        device = next(base.parameters()).device
        ones = (1,) * len(kernel)
        self.down = nn.Parameter(torch.zeros(rank, into, *kernel, device=device, dtype=dtype), requires_grad=False)
        self.up = nn.Parameter(torch.zeros(out, rank, *ones, device=device, dtype=dtype), requires_grad=False)
        self.train(base.training)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.base(hidden, *args, **kwargs)
        hidden = hidden.to(self.down.dtype)
        if self.down.ndim == 2:
            update = functional.linear(functional.linear(hidden, self.down), self.up)
        else:
            convolution = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[self.down.ndim]
            base: Any = self.base
            hidden = convolution(hidden, self.down, None, base.stride, base.padding, base.dilation)
            update = convolution(hidden, self.up)
        return output + update.to(output.dtype)

    # Models ask their layers for these: for the type to cast an input to, mostly.
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


def layer_shape(layer: nn.Module) -> tuple[int, int, tuple[int, ...]]:
    """(inputs, outputs, kernel) of a layer that can take a LoRA; the kernel is () for a linear layer.

    Raises:
        TypeError: it is no linear or ungrouped convolution layer.
    """
    any_layer: Any = layer
    if isinstance(layer, LoraLayer):
        return layer_shape(layer.base)
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return int(any_layer.in_features), int(any_layer.out_features), ()
    plain = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode == "zeros"
    if plain and any_layer.groups == 1:
        return int(any_layer.in_channels), int(any_layer.out_channels), tuple(any_layer.kernel_size)
    raise TypeError(f"{type(layer).__name__} takes no LoRA")


def fit(factors: Factors, layer: nn.Module) -> Factors:
    """The factors in the form that a layer needs.

    A LoRA of a 1x1 convolution and that of a linear layer are the same matrices; files hold either form.

    Raises:
        ValueError: the shapes do not fit the layer; the text names both.
    """
    into, out, kernel = layer_shape(layer)
    down, up = factors.down, factors.up
    if not kernel and down.ndim > 2 and down.shape[2:].numel() == 1:
        down = down.flatten(1)
    if kernel and down.ndim == 2 and torch.Size(kernel).numel() == 1:
        down = down.reshape(*down.shape, *kernel)
    up = up.reshape(*up.shape[:2], *(1,) * len(kernel)) if up.ndim >= 2 and up.shape[2:].numel() == 1 else up
    wanted_down, wanted_up = (factors.rank, into, *kernel), (out, factors.rank, *(1,) * len(kernel))
    if tuple(down.shape) != wanted_down or tuple(up.shape) != wanted_up:
        found = f"{list(factors.down.shape)} and {list(factors.up.shape)}"
        raise ValueError(f"its matrices are {found}, the layer has {into} inputs and {out} outputs")
    return Factors(down, up, factors.scale)


class LoraBranches:
    """The low-rank branches of one model.

    Args:
        model: a denoiser or text encoder.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.layers: dict[str, LoraLayer] = {}
        self._rank = 0

    @property
    def rank(self) -> int:
        """Total rank that every branch has room for, 0 while there are none."""
        return self._rank

    def original(self, name: str) -> nn.Module:
        """The layer of that name as the model was built with it. Raises AttributeError when there is none."""
        layer = self.layers.get(name)
        return layer.base if layer is not None else self._model.get_submodule(name)

    def has_room_for(self, updates: Mapping[str, Sequence[Factors]]) -> bool:
        """Whether `write(updates)` would do, without new layers or a higher rank."""
        return set(updates) <= set(self.layers) and _total_rank(updates) <= self._rank

    def make_room(self, updates: Mapping[str, Sequence[Factors]], minimum_rank: int = 0) -> None:
        """Give every layer in `updates` a branch with room for them; branches that are there are kept or widened.

        Everything is allocated before anything is attached: out of memory leaves the model as it was.
        """
        rank = max(self._rank, -(-max(_total_rank(updates), minimum_rank) // RANK_STEP) * RANK_STEP)
        names = set(updates) if rank == self._rank else set(updates) | set(self.layers)
        new = {name for name in names if name not in self.layers or rank != self._rank}
        _, dtype = device_and_dtype(self._model)
        built = {name: LoraLayer(self.original(name), rank, dtype) for name in sorted(new)}
        for name, layer in built.items():
            _replace(self._model, name, layer)
        self.layers.update(built)
        self._rank = rank

    def write(self, updates: Mapping[str, Sequence[Factors]]) -> None:
        """Fill the branches: each with its LoRAs one after the other, the rest of its room with zeros.

        Args:
            updates: factors by layer name, fitted to the layers (`fit`); layers that are not in it are emptied.
        """
        with torch.no_grad():
            for name, layer in self.layers.items():
                down, up = torch.zeros_like(layer.down), torch.zeros_like(layer.up)
                start = 0
                for factors in updates.get(name, ()):
                    end = start + factors.rank
                    down[start:end] = factors.down.to(down)
                    # The strength is multiplied in before rounding to the branch's type.
                    up[:, start:end] = (factors.up.to(up.device, torch.float32) * factors.scale).to(up.dtype)
                    start = end
                layer.down.copy_(down)
                layer.up.copy_(up)

    def remove(self) -> None:
        """Put every original layer back where it was."""
        for name, layer in self.layers.items():
            _replace(self._model, name, layer.base)
        self.layers.clear()
        self._rank = 0


def _total_rank(updates: Mapping[str, Sequence[Factors]]) -> int:
    return max((sum(factors.rank for factors in several) for several in updates.values()), default=0)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)

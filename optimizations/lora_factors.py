"""What an adapter adds to one layer, and the room that a layer needs for it. Pure data; `lora_layers` applies it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Kronecker:
    """The Kronecker product of two matrices, or some of its rows.

    Attributes:
        left: [l, m].
        right: [k, n]; the product is [l * k, m * n].
        offset: first row of the product that is taken.
        count: number of rows that are taken.
    """

    left: torch.Tensor
    right: torch.Tensor
    offset: int
    count: int

    @staticmethod
    def of(left: torch.Tensor, right: torch.Tensor) -> Kronecker:
        """The whole product; `right` may be a kernel [k, n, *kernel]."""
        return Kronecker(left, right.flatten(1), 0, int(left.shape[0] * right.shape[0]))

    @property
    def form(self) -> tuple[int, ...]:
        """What two products must share for one to be written into the other's room."""
        return (*self.left.shape, *self.right.shape, self.offset, self.count)

    @property
    def columns(self) -> int:
        return int(self.left.shape[1] * self.right.shape[1])

    def rows(self, start: int, stop: int) -> Kronecker:
        """Rows `start` to `stop` of the product, with no more of `left` than they need."""
        height = int(self.right.shape[0])
        first = start // height
        return Kronecker(self.left[first : -(-stop // height)], self.right, start - first * height, stop - start)

    def matrix(self) -> torch.Tensor:
        """[count, m * n] in float32."""
        return torch.kron(self.left.float(), self.right.float())[self.offset : self.offset + self.count]


@dataclass(frozen=True)
class Room:
    """What a layer has room for.

    Attributes:
        bias: an added bias.
        gain: a factor per output channel (DoRA).
        difference: a matrix or kernel of the weight's own size.
        kroneckers: the forms of the Kronecker products, sorted.
    """

    bias: bool = False
    gain: bool = False
    difference: bool = False
    kroneckers: tuple[tuple[int, ...], ...] = ()

    def covers(self, other: Room) -> bool:
        return self | other == self

    def __or__(self, other: Room) -> Room:
        most = Counter(self.kroneckers) | Counter(other.kroneckers)
        flags = (self.bias or other.bias, self.gain or other.gain, self.difference or other.difference)
        return Room(*flags, tuple(sorted(most.elements())))


@dataclass(frozen=True)
class Factors:
    """What one adapter adds to one layer.

    Attributes:
        down: [rank, in] for a linear layer, [rank, in, *kernel] for a convolution; rank 0 for no low-rank part.
        up: [out, rank], or [out, rank, 1, ...].
        scale: alpha / rank, times the strength: the low-rank part is `scale * up @ down`.
        strength: the strength alone, by which the other parts are multiplied.
        bias: [out], added to the layer's bias.
        magnitude: [out], DoRA's length of each row of the merged weight.
        difference: of the weight's own shape, added to it.
        kronecker: a product that is added to the weight.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0
    strength: float = 1.0
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    difference: torch.Tensor | None = None
    kronecker: Kronecker | None = None

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def room(self) -> Room:
        kroneckers = () if self.kronecker is None else (self.kronecker.form,)
        return Room(self.bias is not None, self.magnitude is not None, self.difference is not None, kroneckers)

    def scaled(self, strength: float) -> Factors:
        return replace(self, scale=self.scale * strength, strength=self.strength * strength)


def room_for(several: Iterable[Factors]) -> Room:
    """The room that a layer needs for several adapters at once: products of one form stand side by side."""
    kroneckers: list[tuple[int, ...]] = []
    room = Room()
    for factors in several:
        kroneckers += factors.room.kroneckers
        room |= factors.room
    return replace(room, kroneckers=tuple(sorted(kroneckers)))


def total_rank(several: Sequence[Factors]) -> int:
    return sum(factors.rank for factors in several)


def products_of_gains(several: Sequence[Factors], base: nn.Module, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """For every adapter the product of its own and all later DoRA gains, [out] in float32; None where there are none.

    PEFT applies adapters one after the other, and a DoRA multiplies all that there is by then but the layer's own bias:
    the layer's product, and what the adapters before it added. So the first product is that of the layer's outputs; the
    last, one after the last adapter's, is None.
    """
    products: list[torch.Tensor | None] = [None]
    weight: torch.Tensor | None = None
    for factors in reversed(several):
        product = products[0]
        if factors.magnitude is not None:
            weight = dense_weight(base, dtype) if weight is None else weight
            gain = _gain(factors, factors.magnitude, weight)
            product = gain if product is None else gain * product
        products.insert(0, product)
    return products


def _gain(factors: Factors, magnitude: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """DoRA's factor per output [out]: the length that a row shall have, over the one that it has with the update.

    https://arxiv.org/abs/2402.09353, equation 5.
    """
    up, down = factors.up.to(weight).flatten(1), factors.down.to(weight).flatten(1)
    merged = weight.flatten(1) + factors.scale * (up @ down)
    return magnitude.to(merged) / torch.linalg.vector_norm(merged, dim=1)


def scaled_rows(tensor: torch.Tensor, scale: float, product: torch.Tensor | None) -> torch.Tensor:
    """`tensor` [out, ...] times a number and, where there is one, a factor per output; on its device, in float32."""
    tensor = tensor.float() * scale
    return tensor if product is None else tensor * product.to(tensor.device).view(-1, *(1,) * (tensor.ndim - 1))


def no_factors() -> Factors:
    """Factors of rank 0; `fit` gives the empty matrices the layer's sizes."""
    return Factors(torch.zeros(0, 0), torch.zeros(0, 0))


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a normalization with one weight per channel."""
    weight = getattr(layer, "weight", None)
    return "norm" in type(layer).__name__.lower() and isinstance(weight, torch.Tensor) and weight.ndim == 1


def layer_shape(layer: nn.Module) -> tuple[int, int, tuple[int, ...]]:
    """(inputs, outputs, kernel) of a layer that can take a LoRA; the kernel is () for a linear layer.

    Raises:
        TypeError: it is no linear or ungrouped convolution layer.
    """
    any_layer: Any = layer
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
        TypeError: the layer takes no such adapter.
        ValueError: the shapes do not fit the layer; the text names both.
    """
    if is_norm(layer):
        return _fit_norm(factors, layer)
    into, out, kernel = layer_shape(layer)
    ones = (1,) * len(kernel)
    down, up = factors.down, factors.up
    if factors.rank == 0:
        down, up = down.new_zeros(0, into, *kernel), up.new_zeros(out, 0, *ones)
    if not kernel and down.ndim > 2 and down.shape[2:].numel() == 1:
        down = down.flatten(1)
    if kernel and down.ndim == 2 and down.shape[1] == into * torch.Size(kernel).numel():
        down = down.reshape(down.shape[0], into, *kernel)
    up = up.reshape(*up.shape[:2], *ones) if up.ndim >= 2 and up.shape[2:].numel() == 1 else up
    if tuple(down.shape) != (factors.rank, into, *kernel) or tuple(up.shape) != (out, factors.rank, *ones):
        found = f"{list(factors.down.shape)} and {list(factors.up.shape)}"
        raise ValueError(f"its matrices are {found}, the layer has {into} inputs and {out} outputs")
    difference, kronecker = factors.difference, factors.kronecker
    inputs = into * torch.Size(kernel).numel()
    if kronecker is not None and (kronecker.count, kronecker.columns) != (out, inputs):
        found = f"[{kronecker.count}, {kronecker.columns}]"
        raise ValueError(f"its product is {found}, the layer has {into} inputs and {out} outputs")
    if kronecker is not None and kernel:  # the product is no larger than the kernel
        difference, kronecker = kronecker.matrix(), None
    if difference is not None and difference.numel() == out * inputs:
        difference = difference.reshape(out, into, *kernel)
    _check_size("difference", difference, (out, into, *kernel))
    _check_size("bias", factors.bias, (out,))
    magnitude = None if factors.magnitude is None else factors.magnitude.flatten()
    _check_size("magnitude", magnitude, (out,))
    return replace(factors, down=down, up=up, magnitude=magnitude, difference=difference, kronecker=kronecker)


def _fit_norm(factors: Factors, layer: nn.Module) -> Factors:
    if factors.rank or factors.magnitude is not None or factors.kronecker is not None:
        raise TypeError(f"{type(layer).__name__} takes no LoRA")
    for name, added in (("weight", factors.difference), ("bias", factors.bias)):
        own = getattr(layer, name, None)
        if added is not None and own is None:
            raise TypeError(f"{type(layer).__name__} has no {name}")
        if own is not None:
            _check_size(name, added, tuple(own.shape))
    return factors


def _check_size(name: str, tensor: torch.Tensor | None, wanted: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != wanted:
        raise ValueError(f"its {name} is {list(tensor.shape)}, the layer's is {list(wanted)}")


def times_kronecker(
    hidden: torch.Tensor, left: torch.Tensor, right: torch.Tensor, form: tuple[int, ...]
) -> torch.Tensor:
    """Rows of (left x right) hidden, [..., m * n] -> [..., count], without the product being made."""
    _, columns, _, width, offset, count = form
    hidden = functional.linear(hidden.unflatten(-1, (columns, width)), right)  # [..., m, k]
    hidden = (left @ hidden).flatten(-2)  # [..., l * k]
    return hidden[..., offset : offset + count]


def dense_weight(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """A layer's weight in float32, whatever it is stored as; `dtype` is the type that it computes in."""
    into, out, kernel = layer_shape(layer)
    weight: Any = layer.weight
    if type(weight) is nn.Parameter and weight.is_floating_point() and tuple(weight.shape) == (out, into, *kernel):
        return weight.detach().float()
    # A quantized matrix is what it makes of the unit vectors.
    result = layer(torch.eye(into, device=weight.device, dtype=dtype)).float()
    bias: Any = layer.bias
    return (result if bias is None else result - bias.float()).T

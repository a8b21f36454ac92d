"""Values with tensors somewhere inside: the arguments of a denoiser, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Path = tuple[object, ...]
"""Where a leaf is: the keys and places that lead to it."""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What has no parts of its own, and where it is, in order."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, tuple | list):
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place))
    else:
        yield path, value


def mapped(value: Any, make: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same with other leaves, each made from where it is and what it was."""
    if isinstance(value, Mapping):
        return _like(value, {name: mapped(each, make, (*path, name)) for name, each in value.items()})
    if isinstance(value, tuple | list):
        return _like(value, [mapped(each, make, (*path, place)) for place, each in enumerate(value)])
    return make(path, value)


def halved(value: Any, count: int, which: int, by_list: bool) -> Any:
    """The first (0) or second (1) half of a batch.

    Args:
        value: arguments; a tensor of another length than `count` belongs to both halves.
        count: items in the batch, even.
        by_list: the items stand in a list, one tensor each, and not along the first axis of a tensor.
    """
    half = slice(which * count // 2, (which + 1) * count // 2)
    if isinstance(value, torch.Tensor):
        return value[half] if value.ndim and value.shape[0] == count else value
    if isinstance(value, Mapping):
        return _like(value, {name: halved(each, count, which, by_list) for name, each in value.items()})
    if isinstance(value, tuple | list):
        if by_list and len(value) == count:
            return value[half]
        return _like(value, [halved(each, count, which, by_list) for each in value])
    return value


def joined(first: Any, second: Any, count: int, by_list: bool) -> Any:
    """The whole of two halves of a result.

    Raises:
        RuntimeError: tensors that are no halves.
    """
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second])
    if isinstance(first, Mapping):
        return _like(first, {name: joined(each, second[name], count, by_list) for name, each in first.items()})
    if isinstance(first, tuple | list):
        if by_list and len(first) == count // 2 and isinstance(first, list):
            return [*first, *second]
        return _like(first, [joined(a, b, count, by_list) for a, b in zip(first, second, strict=True)])
    return first


def same(one: Any, other: Any) -> bool:
    """Whether two leaves are equal, every bit of a tensor."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and isinstance(one, bool | int | float | str) and one == other


def _like(value: Any, parts: Any) -> Any:
    """Parts in a container of the same kind: diffusers' outputs and named tuples among them."""
    kind = type(value)
    if isinstance(value, Mapping):
        return parts if kind is dict else kind(**parts)
    return kind(*parts) if hasattr(value, "_fields") else kind(parts)

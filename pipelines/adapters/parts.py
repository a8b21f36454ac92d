"""The tensors of an adapter on one layer, as what they add to that layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ...optimizations.lora_factors import Factors, Kronecker, no_factors
from .keys import LOHA, PAIR, Group


class MalformedError(ValueError):
    """The tensors make no adapter, whatever the model is."""


def loha_as_pair(group: Group, settings: Mapping[str, object]) -> Group:
    """A LoHa as the LoRA that it equals: (A B) * (C D), element by element, has the rank of both ranks' product.

    Args:
        group: the parts of a LoHa, with its alpha.
        settings: the adapter configuration, for files that keep alpha there.
    """
    a, b, c, d = (group[name].float() for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
    _check_matrices(a=a, b=b, c=c, d=d)
    if b.shape[1] != d.shape[1] or a.shape[0] != c.shape[0] or a.shape[1] != b.shape[0] or c.shape[1] != d.shape[0]:
        raise MalformedError("its four LoHa matrices do not fit each other")
    rank = int(b.shape[0])
    scale = 1.0
    if "alpha" in group:
        scale = float(group["alpha"]) / rank
    elif "alpha" in settings and "r" in settings:
        scale = float(str(settings["alpha"])) / float(str(settings["r"]))
    up = (a[:, :, None] * c[:, None, :]).flatten(1) * scale
    down = (b[:, None, :] * d[None, :, :]).flatten(0, 1)
    others = {part: tensor for part, tensor in group.items() if part not in LOHA and part != "alpha"}
    return {**others, "down": down, "up": up, "alpha": torch.tensor(float(down.shape[0]))}


def with_mid(group: Group) -> Group:
    """A pair with a kernel between its matrices (LoCon in CP form) as a pair: the kernel goes into `down`."""
    mid, down = group["mid"].float(), group["down"].float().flatten(1)
    if mid.ndim < 3 or mid.shape[1] != down.shape[0]:
        raise MalformedError(f"its middle kernel {list(mid.shape)} does not fit its down matrix {list(down.shape)}")
    merged = torch.einsum("rs...,si->ri...", mid, down)
    return {**{part: tensor for part, tensor in group.items() if part != "mid"}, "down": merged}


def factors_of(group: Group, scale: float, lokr_scale: float) -> Factors:
    """What a layer's parts add to it.

    Args:
        group: the parts; complete (`keys.missing`).
        scale: alpha / rank of the pair.
        lokr_scale: the same of a LoKr.
    """
    kronecker = None
    if any(part.startswith("lokr_") for part in group):
        left, right = (_lokr_factor(group, name) for name in ("lokr_w1", "lokr_w2"))
        kronecker = Kronecker.of(left * lokr_scale, right)
    bias = group.get("diff_b")
    if "bias" in group:
        own = group["bias"].float() * scale
        bias = own if bias is None else own + bias.float()
    low_rank = no_factors()
    if group.keys() >= PAIR:
        down, up = group["down"], group["up"]
        _check_matrices(down=down, up=up)
        if down.shape[0] != up.shape[1]:
            ranks = f"its down matrix has {down.shape[1]} inputs and rank {down.shape[0]}"
            raise MalformedError(f"{ranks}, its up matrix has rank {up.shape[1]}")
        low_rank = Factors(down, up, scale)
    return replace(
        low_rank, bias=bias, difference=group.get("diff"), kronecker=kronecker, magnitude=group.get("magnitude")
    )


def widened(factors: Factors, inputs: int) -> Factors:
    """Factors of a linear layer that had fewer inputs, for one with more: the update leaves these alone."""
    missing = inputs - factors.down.shape[-1]
    if factors.rank == 0 or factors.down.ndim != 2 or missing <= 0:
        return factors
    return replace(factors, down=torch.nn.functional.pad(factors.down, (0, missing)))


def lokr_rank(group: Group) -> int | None:
    """The rank of a LoKr, None when both its factors are stored whole: then no alpha applies."""
    for name in ("lokr_w2_b", "lokr_w1_b"):
        if name in group:
            return int(group[name].shape[0])
    return None


def _lokr_factor(group: Group, name: str) -> torch.Tensor:
    whole = group.get(name)
    if whole is not None:
        _check_matrices(**{name: whole})
        return whole.float()
    first, second = group[f"{name}_a"].float(), group[f"{name}_b"].float()
    _check_matrices(**{f"{name}_a": first, f"{name}_b": second})
    if first.shape[1] != second.shape[0]:
        raise MalformedError(f"{name}_a and {name}_b do not fit each other")
    return first @ second.flatten(1)


def _check_matrices(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() == 0:
            raise MalformedError(f"its {name} matrix is {list(tensor.shape)}")


def split_rows(factors: Factors, rows: Sequence[int]) -> list[Factors]:
    """The factors of a fused layer as those of the layers it consists of, by their numbers of rows.

    Raises:
        ValueError: the fused layer has another number of rows.
    """
    if len(rows) == 1:
        return [factors]
    if factors.rank and factors.up.shape[0] != sum(rows):
        raise ValueError(f"it has {factors.up.shape[0]} rows, the layers that it stands for {sum(rows)}")
    result, start = [], 0
    for count in rows:
        end = start + count

        def cut(tensor: torch.Tensor | None, start: int = start, end: int = end) -> torch.Tensor | None:
            return None if tensor is None else tensor[start:end]

        product = factors.kronecker
        result.append(
            replace(
                factors,
                up=factors.up[start:end] if factors.rank else factors.up,
                bias=cut(factors.bias),
                magnitude=cut(None if factors.magnitude is None else factors.magnitude.flatten()),
                difference=cut(factors.difference),
                kronecker=product.rows(start, min(end, product.count)) if product is not None else None,
            )
        )
        start = end
    return result


def swap_halves(factors: Factors) -> Factors:
    """The factors with the two halves of their rows exchanged: scale and shift stand in either order."""

    def swap(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else torch.cat(tensor.chunk(2)[::-1])

    if factors.kronecker is not None:
        factors = replace(factors, difference=factors.kronecker.matrix(), kronecker=None)
    return replace(
        factors,
        up=torch.cat(factors.up.chunk(2)[::-1]),
        bias=swap(factors.bias),
        magnitude=swap(factors.magnitude),
        difference=swap(factors.difference),
    )

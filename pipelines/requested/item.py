"""One item of a batch as a request of its own, with what the batch would have given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..conditions.kinds import MaskCondition
from ..conditions.masks import blends

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

SEEDS = 1 << 64


class OneByOne(Exception):  # noqa: N818 - not an error: the batch is made in another way
    """The pipeline makes no batch, or none with a seed for each item; the message says which."""


def makes_batches(arguments: Mapping[str, Any]) -> bool:
    """Whether a pipeline that is called with `arguments` makes several items in one call."""
    several = any(name.startswith("num_") and name.endswith("_per_prompt") for name in arguments)
    return several or isinstance(arguments.get("prompt"), list)


def item_of_batch(family: Family, request: SampleRequest, index: int) -> SampleRequest:
    """The request for item `index` of a batch.

    Its seed is `request.seed + index`, starting over at 2**64. Of encoded texts, latents and masks that are blended in,
    it takes the one at its place, beginning again after the last, as a batch does.
    """
    positive, negative = (text and text.of_batch(index, 1) for text in (request.positive, request.negative))
    latent = request.latent
    if latent is not None and latent.ndim >= 4:
        place = index % latent.shape[0]
        latent = latent[place : place + 1]
    conditions = request.conditions
    if any(isinstance(each, MaskCondition) for each in conditions) and not family.video and blends(family, request):
        conditions = tuple(_of_item(each, index) if isinstance(each, MaskCondition) else each for each in conditions)
    return replace(
        request,
        batch=1,
        seed=(request.seed + index) % SEEDS,
        positive=positive,
        negative=negative,
        latent=latent,
        conditions=conditions,
    )


def _of_item(condition: MaskCondition, index: int) -> MaskCondition:
    if condition.mask.ndim != 3:
        return condition
    place = index % condition.mask.shape[0]
    return replace(condition, mask=condition.mask[place : place + 1])

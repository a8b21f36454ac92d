"""Pictures that a pipeline encodes without its generators, in a batch: each item's sample is that of a run of its own.

SD3's and HunyuanDiT's control forms and a few others call `vae.encode(...).latent_dist.sample()`, which draws from
PyTorch's own random numbers for all rows at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def sampled_by_item(vae: Any, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Let what the VAE encodes inside be sampled with a generator for each item where no generator is given.

    Args:
        vae: None, or of diffusers. It is as before afterwards.
        generators: of the items; where there are none nothing changes.
    """
    encode = getattr(vae, "encode", None)
    if encode is None or not generators:
        yield
        return
    replaced = vars(vae).get("encode")

    @functools.wraps(encode)
    def encode_for_items(*args: Any, **kwargs: Any) -> Any:
        encoded = encode(*args, **kwargs)
        posterior: Any = getattr(encoded, "latent_dist", None)
        if hasattr(posterior, "mean") and hasattr(posterior, "std") and not posterior.mean.shape[0] % len(generators):
            posterior.sample = functools.partial(_sample, posterior, posterior.sample, generators)
        return encoded

    vae.encode = encode_for_items
    try:
        yield
    finally:
        del vae.encode
        if replaced is not None:
            vae.encode = replaced


def _sample(
    posterior: Any,
    own: Callable[[Any], torch.Tensor],
    generators: Sequence[torch.Generator],
    generator: Any = None,
) -> torch.Tensor:
    """What `posterior.sample` gives, its row r with the random numbers of item r modulo the number of items: the forms
    repeat the whole batch for guidance.

    Args:
        own: the distribution's own method, for a generator that is given.
    """
    import torch

    if generator is not None:
        return own(generator)
    like = posterior.mean
    noise = torch.empty_like(like)
    for item, each in enumerate(generators):
        rows = noise[item :: len(generators)]
        rows.copy_(torch.randn(rows.shape, generator=each, device=each.device, dtype=like.dtype))
    return like + posterior.std * noise

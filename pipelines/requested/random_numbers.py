"""PyTorch's own random numbers during a run, from the seeds that it asks for.

Not everything draws from the generators that a pipeline is given: those of flow models call `scheduler.step` without
one, `DPMSolverSDEScheduler` draws a seed by itself, SD3's and HunyuanDiT's control forms and a few others encode a
picture with `vae.encode(...).latent_dist.sample()`. A run starts these numbers as `torch.manual_seed(seed)` does, and
in a batch each item's steps and encoded pictures have those of a run of its own. What a pipeline draws otherwise, it
draws for all items at once: `StepNoise.shared` notices.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Leave the random numbers outside the block as if nothing had been drawn in it."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class StepNoise:
    """Start PyTorch's random numbers for one call of a pipeline, and give each item of a batch its own in its steps.

    Args:
        seeds: of the items.
        device: of the samples.
        schedulers: whose steps they are; one that takes a seed of its own gets one for each item.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, schedulers: Sequence[Any]) -> None:
        import torch

        torch.manual_seed(seeds[0])
        self._device, self._begun = device, _states(device)
        several = seeds if len(seeds) > 1 else ()
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in several]
        """Of the items of a batch; none for a single one."""
        for scheduler in schedulers:
            if isinstance(getattr(scheduler, "noise_sampler_seed", 0), (list, type(None))):
                # Drawn as `BatchedBrownianTree` draws the one of a single run.
                first = (torch.Generator().manual_seed(seed) for seed in several)
                drawn = [int(torch.randint(0, 2**63 - 1, [], generator=generator)) for generator in first]
                scheduler.noise_sampler_seed = drawn or None

    def for_step(
        self, step: Callable[..., Any], sample: torch.Tensor, given: Sequence[Any], named: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What `scheduler.step` is called with beside its first three arguments: generators where none are given."""
        mine = dict(named)
        if len(self.generators) == sample.shape[0] and mine.get("generator") is None:
            names = list(inspect.signature(step).parameters)
            if "generator" in names[3 + len(given) :]:
                mine["generator"] = self.generators
        return mine

    @property
    def shared(self) -> bool:
        """Whether something drew random numbers for all items of a batch at once, so that no item has its own."""
        import torch

        now = _states(self._device)
        return bool(self.generators) and not all(map(torch.equal, self._begun, now))


def _states(device: torch.device) -> list[torch.Tensor]:
    """Of PyTorch's own generators from which a run on `device` may draw."""
    import torch

    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


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

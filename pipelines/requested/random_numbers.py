"""PyTorch's own random numbers during a run, from the seeds that it asks for.

Not everything draws from the generators that a pipeline is given: those of flow models call `scheduler.step` without
one, `DPMSolverSDEScheduler` draws a seed by itself, some forms encode a picture without one. A run starts these numbers
as `torch.manual_seed(seed)` does, and in a batch each item's steps have those of a run of its own.
"""

from __future__ import annotations

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

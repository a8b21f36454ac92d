"""diffusers' context parallelism on one model, switched on for a call and exactly undone after it.

`enable_parallelism` counts accelerators, of which a processor has none, and has no way back. What it does is done here
with its own parts: the configuration on the model and in its attention processors, and the hooks of the model's plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_HOOKS = "_diffusers_hook"
_CONFIG = "_parallel_config"


class Split:
    """A model whose calls can be split over the processes of a mesh.

    Args:
        model: a diffusers model with a plan (`_cp_plan`).
        mesh: of the dimensions "ring", of size 1, and "ulysses".
        device: of this process.
    """

    def __init__(self, model: nn.Module, mesh: Any, device: torch.device) -> None:
        from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

        self.model = model
        size = mesh.size()
        self._ulysses = ContextParallelConfig(ulysses_degree=size, mesh=mesh)
        self._config = ParallelConfig(context_parallel_config=self._ulysses)
        self._config.setup(torch.distributed.get_rank(), size, device, mesh=mesh)

    @contextmanager
    def on(self) -> Iterator[None]:
        """While the block runs, the model is split: every process has to call it, with equal arguments."""
        from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel

        model: Any = self.model
        plan = model._cp_plan
        modules = list(model.modules())
        processors = [model, *_processors(modules)]
        before = [(each, each.__dict__.get(_CONFIG), _CONFIG in each.__dict__) for each in processors]
        bare = [each for each in modules if _HOOKS not in each.__dict__]
        plain = [each for each in modules if "forward" not in each.__dict__]
        try:
            for each in processors:
                setattr(each, _CONFIG, self._config)
            apply_context_parallel(model, self._ulysses, plan)
            yield
        finally:
            remove_context_parallel(model, plan)
            for each, config, there in before:
                if there:
                    setattr(each, _CONFIG, config)
                else:
                    each.__dict__.pop(_CONFIG, None)
            for each in plain:  # the removal of a hook has put the class's own there
                each.__dict__.pop("forward", None)
            for each in bare:
                each.__dict__.pop(_HOOKS, None)


def _processors(modules: list[nn.Module]) -> list[Any]:
    """The attention processors that take a configuration, each once."""
    found = (getattr(each, "processor", None) for each in modules)
    return list({id(each): each for each in found if each is not None and hasattr(each, _CONFIG)}.values())

"""Step caching through diffusers' own hooks: fewer families than cache-dit, and nothing to install.

`FirstBlockCache` skips all blocks but the first while that one's output hardly changes. `TaylorSeer` computes the
attention layers at a fixed interval and extrapolates them in between. Which of the two works on which model was tried
on tiny pipelines (benchmarks/step_cache_support.py): the others raise, or silently change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..components import denoisers, is_modular_class
from .engine import Counts, Level, StepCacheEngine, StepCacheUnavailable

FIRST_BLOCK, TAYLOR_SEER = "FirstBlockCache", "TaylorSeer"
NOTHING_IS_ALIKE = -1.0
"""A threshold that no change is below."""

TECHNIQUES = {
    "FluxModularPipeline": FIRST_BLOCK,
    "FluxPipeline": FIRST_BLOCK,
    "WanPipeline": FIRST_BLOCK,
    "WanImageToVideoPipeline": FIRST_BLOCK,
    "Flux2ModularPipeline": TAYLOR_SEER,
    "Flux2KleinModularPipeline": TAYLOR_SEER,
    "Flux2Pipeline": TAYLOR_SEER,
    "Flux2KleinPipeline": TAYLOR_SEER,
    "QwenImagePipeline": TAYLOR_SEER,
    "QwenImageEditPipeline": TAYLOR_SEER,
}
"""Pipeline class -> the hook that works on it and comes off again without a trace."""


class DiffusersHooksEngine(StepCacheEngine):
    """The one of diffusers' cache hooks that works on a pipeline's denoisers."""

    def __init__(self, pipeline: Any, choice: str, level: Level, steps: int) -> None:
        kind = type(pipeline).__name__
        if kind not in TECHNIQUES and is_modular_class(type(pipeline)):
            raise StepCacheUnavailable(f"the blocks of {kind} do not say which half of guidance a call is")
        if kind not in TECHNIQUES:
            raise StepCacheUnavailable(f"diffusers has no step cache that works on {kind}")
        self.technique = TECHNIQUES[kind]
        if self.technique == FIRST_BLOCK:
            self.against_control = "with FirstBlockCache what a control model adds would count twice"
        self.name = f"diffusers {self.technique}"
        self.choice = choice
        self._level = level
        self._models: list[Any] = list(denoisers(pipeline).values())
        self._had_registry = [[hasattr(m, "_diffusers_hook") for m in model.modules()] for model in self._models]
        self._warmup = level.warmup_steps(steps)
        self._apply()
        self._runs = [_Run(model, self) for model in self._models]

    def begin(self, steps: int) -> None:
        if self._level.warmup_steps(steps) != self._warmup:
            self._warmup = self._level.warmup_steps(steps)
            self._take_off()
            self._apply()
        for model, run in zip(self._models, self._runs, strict=True):
            model._reset_stateful_cache()
            run.restart()
            # A pipeline that shares the denoiser may not name its calls (image to image forms do not): name them once.
            self._name_calls(model, "cond")

    def end(self) -> Counts:
        for model in self._models:
            model._reset_stateful_cache()
            self._name_calls(model, None)
        calls = sum(run.calls for run in self._runs)
        per_step = max((run.contexts for run in self._runs), default=1)
        skipped = sum(run.skipped for run in self._runs)
        share = f"{skipped / calls:.0%}" if skipped else ""
        what = "of the runs of all blocks but the first" if self.technique == FIRST_BLOCK else "of the attention runs"
        return Counts(calls // per_step, skipped // per_step, share and f"{share} {what}")

    def remove(self) -> None:
        for run in self._runs:
            run.remove()
        self._take_off()
        for model, had in zip(self._models, self._had_registry, strict=True):
            for module, kept in zip(model.modules(), had, strict=True):
                registry = module.__dict__.get("_diffusers_hook")
                if registry is not None and not kept and not registry.hooks:
                    del module._diffusers_hook
                    forward = module.__dict__.get("forward")
                    if getattr(forward, "__func__", None) is type(module).forward:
                        del module.forward

    def is_skipped(self, model: Any, step: int) -> bool:
        """Whether the call that has just ended, number `step` of its guidance half, was skipped."""
        if self.technique == TAYLOR_SEER:
            return step >= self._warmup and (step - self._warmup - 1) % (self._level.in_a_row + 1) != 0
        return not next(_hooks(model)).state_manager.get_state().should_compute

    def before_call(self, model: Any, step: int, in_a_row: int) -> None:
        """Let the coming call skip blocks or not: diffusers' `FirstBlockCache` knows neither a warm-up nor a limit.

        Args:
            step: number of the call in its guidance half.
            in_a_row: how many calls of that half were skipped just before.
        """
        may = step >= self._warmup and in_a_row < self._level.in_a_row
        for hook in _hooks(model):
            if hasattr(hook, "threshold"):
                hook.threshold = self._level.threshold if may else NOTHING_IS_ALIKE

    def _apply(self) -> None:
        from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

        config: FirstBlockCacheConfig | TaylorSeerCacheConfig
        for model in self._models:
            if self.technique == FIRST_BLOCK:
                config = FirstBlockCacheConfig(threshold=self._level.threshold)
            else:
                config = TaylorSeerCacheConfig(
                    cache_interval=self._level.in_a_row + 1,
                    disable_cache_before_step=self._warmup,
                    max_order=1,
                    taylor_factors_dtype=model.dtype,
                )
            model.enable_cache(config)

    def _take_off(self) -> None:
        for model in self._models:
            model.disable_cache()
            model.__dict__.pop("_cache_config", None)  # the class has the same default

    @staticmethod
    def _name_calls(model: Any, name: str | None) -> None:
        for manager in _state_managers(model):
            if hasattr(manager, "_context"):
                from diffusers.hooks.hooks import CacheContext

                manager.set_context(None if name is None else CacheContext(name))
            else:  # diffusers before 0.42
                manager.set_context(name)


class _Run:
    """Counts one denoiser's calls and the skipped ones among them, each guidance half by itself."""

    def __init__(self, model: torch.nn.Module, engine: DiffusersHooksEngine) -> None:
        self._engine = engine
        self._hooks = (
            model.register_forward_pre_hook(self._before_call),
            model.register_forward_hook(self._after_call),
        )
        self.restart()

    def restart(self) -> None:
        self._steps: dict[str, int] = {}
        self._in_a_row: dict[str, int] = {}
        self.skipped = 0

    @property
    def calls(self) -> int:
        return sum(self._steps.values())

    @property
    def contexts(self) -> int:
        return len(self._steps) or 1

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before_call(self, model: torch.nn.Module, args: Any) -> None:
        half = _context_name(model)
        self._engine.before_call(model, self._steps.get(half, 0), self._in_a_row.get(half, 0))

    def _after_call(self, model: torch.nn.Module, args: Any, output: Any) -> None:
        half = _context_name(model)
        step = self._steps.get(half, 0)
        self._steps[half] = step + 1
        skipped = self._engine.is_skipped(model, step)
        self._in_a_row[half] = self._in_a_row.get(half, 0) + 1 if skipped else 0
        self.skipped += skipped


def _hooks(model: torch.nn.Module) -> Iterator[Any]:
    """The cache hooks of a denoiser, in the order of its modules."""
    for module in model.modules():
        registry = module.__dict__.get("_diffusers_hook")
        for hook in getattr(registry, "hooks", {}).values():
            if hasattr(hook, "state_manager"):
                yield hook


def _state_managers(model: torch.nn.Module) -> list[Any]:
    return list({id(hook.state_manager): hook.state_manager for hook in _hooks(model)}.values())


def _context_name(model: torch.nn.Module) -> str:
    """The name that the pipeline gave to this call, "cond" or "uncond"."""
    manager = next(_hooks(model)).state_manager
    context = getattr(manager, "_context", None) or getattr(manager, "_current_context", None)
    return str(getattr(context, "name", context))

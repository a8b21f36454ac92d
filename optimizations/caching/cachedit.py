"""Step caching through cache-dit (https://github.com/vipshop/cache-dit, Apache-2.0, optional).

cache-dit's usual door wraps `__call__` of the pipeline's *class*: a second pipeline of that class would run with the
first one's cache, and an evicted pipeline would live on in the wrapper. So only its denoiser form is used here, which
lives on the model: one context per list of blocks, started and emptied by us around every run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from ...errors import first_line
from ..components import denoisers, is_modular_class
from .checked_forward import CheckedForward, contexts_of
from .engine import Counts, Level, StepCacheEngine, StepCacheUnavailable, same_timestep, timestep_of


class CacheDitEngine(StepCacheEngine):
    """cache-dit's dual block cache on every denoiser of a pipeline."""

    name = "cache-dit"
    against_control = "cache-dit runs the blocks without what a control model adds to each"

    def __init__(self, pipeline: Any, choice: str, level: Level, steps: int) -> None:
        if importlib.util.find_spec("cache_dit") is None:
            raise StepCacheUnavailable("the package cache-dit is not installed (pip install cache-dit)")
        self.choice = choice
        self._level = level
        self._models: list[Any] = list(denoisers(pipeline).values())
        self._children = [list(model._modules) for model in self._models]
        self._forwards = [model.__dict__.get("forward") for model in self._models]
        self._calls: list[_Calls] = []
        adapter = _adapter_of(pipeline)
        lists = _block_lists(adapter)
        if len(lists) != len(self._models):
            names = ", ".join(denoisers(pipeline))
            raise StepCacheUnavailable(f"cache-dit knows {len(lists)} of the models of a step ({names})")
        self._blocks = [[len(blocks) for blocks in model_lists] for model_lists in lists]
        shortest = min(length for model_lists in self._blocks for length in model_lists)
        if shortest < 2:
            raise StepCacheUnavailable("the model has too few blocks to skip any")
        self._probe = level.probe_blocks(shortest)
        # SD3's last block gives no text states: there is nothing of theirs to extrapolate.
        every = (block for model in lists for blocks in model for block in blocks)
        self._forecast_text = not any(getattr(block, "context_pre_only", False) for block in every)
        with _quiet():
            import cache_dit

            try:
                cache_dit.enable_cache(adapter, **self._configs(level.warmup_steps(steps), separate=False))
            except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
                self.remove()
                raise StepCacheUnavailable(f"cache-dit does not fit this model ({first_line(error)})") from error
        self._calls = [_Calls(model, self._separate) for model in self._models]
        self._checked = [CheckedForward(model) for model in self._models]
        self._wrapped = [model.__dict__["forward"] for model in self._models]

    def begin(self, steps: int) -> None:
        self._warmup = self._level.warmup_steps(steps)
        self._separate_runs = 0
        for calls, checked in zip(self._calls, self._checked, strict=True):
            calls.restart()
            checked.restart()
        self._empty(self._warmup, separate=False, models=self._models)

    def end(self) -> Counts:
        steps = skipped = runs = saved = 0
        note = ""
        for model, lengths, calls, checked in zip(self._models, self._blocks, self._calls, self._checked, strict=True):
            contexts = contexts_of(model)
            cached = [set(context.cached_steps) for context in contexts]
            skipped += len(set.intersection(*cached))
            count = calls.count - checked.own_calls
            steps += count // (2 if calls.separate else 1)
            runs += count * sum(lengths)
            for context, length in zip(contexts, lengths, strict=True):
                saved += (len(context.cached_steps) + len(context.cfg_cached_steps)) * (length - self._probe)
            note = note or calls.note
        unfit = next(filter(None, (checked.unfit for checked in self._checked)), "")
        self._empty(self._level.warmup_steps(0), separate=False, models=self._models)
        self._put_children_in_order()
        if unfit and skipped:
            note, unfit = f"in some of the steps it was off: {unfit}", ""
        return Counts(steps, skipped, f"{saved / runs:.0%} of the block runs" if saved else "", note, unfit)

    def remove(self) -> None:
        for calls in self._calls:
            calls.remove()
        wrapped = getattr(self, "_wrapped", [None] * len(self._models))
        with _quiet():
            import cache_dit

            for model, found, ours in zip(self._models, self._forwards, wrapped, strict=True):
                top = model.__dict__.get("forward")
                model.__dict__.pop("_original_forward", None)  # put back here, also when it is a hook's
                cache_dit.disable_cache(model)
                _put_forward_back(model, found, ours, top)
        self._put_children_in_order()

    def _put_children_in_order(self) -> None:
        """cache-dit exchanges a model's block lists for the time of a call, which puts them behind all other children.

        What goes by the order of modules (diffusers' own caches, group offloading) must find the model's own.
        """
        for model, names in zip(self._models, self._children, strict=True):
            children = dict(model._modules)
            model._modules.clear()
            model._modules.update({name: children.pop(name) for name in names if name in children}, **children)

    def intact(self) -> bool:
        # Taking off an offload hook that was there before takes everything with it that came on top.
        for model, ours in zip(self._models, self._wrapped, strict=True):
            places = [model.__dict__.get("forward"), *(getattr(*place) for place in _places_under_hooks(model))]
            if not any(place is ours for place in places):
                return False
        return True

    def _separate(self, calls: _Calls) -> None:
        """The pipeline guides with two calls per step: count and compare them apart, from the second step on."""
        self._empty(max(1, self._warmup - 1), separate=True, models=[calls.model])

    def _empty(self, warmup: int, *, separate: bool, models: list[Any]) -> None:
        with _quiet():
            import cache_dit

            for model in models:
                cache_dit.refresh_context(model, **self._configs(warmup, separate=separate))

    def _configs(self, warmup: int, *, separate: bool) -> dict[str, Any]:
        from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

        configs: dict[str, Any] = {
            "cache_config": DBCacheConfig(
                Fn_compute_blocks=self._probe,
                Bn_compute_blocks=0,
                residual_diff_threshold=self._level.threshold,
                max_warmup_steps=warmup,
                max_continuous_cached_steps=self._level.in_a_row,
                enable_separate_cfg=separate,
            )
        }
        if self._level.forecast:
            configs["calibrator_config"] = TaylorSeerCalibratorConfig(
                taylorseer_order=1, enable_encoder_calibrator=self._forecast_text
            )
        return configs


class _Calls:
    """Counts a denoiser's calls in one run, and finds out by their timesteps how many make up a step.

    A pipeline says nowhere whether it guides with one call per step (both halves in one batch, or distilled) or two,
    and for one and the same pipeline that changes with the guidance scale.
    """

    def __init__(self, model: torch.nn.Module, on_separate: Any) -> None:
        self.model = model
        self._on_separate = on_separate
        self._hook = model.register_forward_pre_hook(self._before_call, with_kwargs=True)
        self.restart()

    def restart(self) -> None:
        self.count = 0
        self.separate = False
        self.note = ""
        self._timesteps: list[Any] = []

    def remove(self) -> None:
        self._hook.remove()

    def _before_call(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.count < 3:
            self._timesteps.append(timestep_of(kwargs, args))
        if self.count == 2:
            first, second, third = self._timesteps
            known = first is not None
            self.separate = known and same_timestep(first, second)
            if self.separate and same_timestep(second, third):
                self.note = (
                    "the pipeline calls its model more than twice per step: steps are compared within each other"
                )
            if self.separate:
                self._on_separate(self)
        self.count += 1


def _adapter_of(pipeline: Any) -> Any:
    """cache-dit's description of the pipeline's blocks, bound to the denoisers instead of the pipeline."""
    if is_modular_class(type(pipeline)):
        raise StepCacheUnavailable("cache-dit does not know pipelines made of blocks")
    with _quiet():
        try:
            from cache_dit import BlockAdapter, BlockAdapterRegister
            from cache_dit.caching.block_adapters import FakeDiffusionPipeline

            # Some families' models would get a rewritten forward that nothing takes back, a few of them in any case.
            with patch.object(BlockAdapter, "maybe_patchify", lambda adapter: None):
                adapter = BlockAdapterRegister.get_adapter(pipeline, skip_post_init=True)
            if adapter is None:
                raise StepCacheUnavailable(f"cache-dit does not know {type(pipeline).__name__}")
            if type(pipeline.transformer).__name__ == "FluxTransformer2DModel":
                _describe_flux(adapter, pipeline.transformer)
            if adapter.patch_functor is not None:
                raise StepCacheUnavailable("cache-dit would rewrite this model for good")
            adapter.pipe = FakeDiffusionPipeline(pipeline.transformer)
            adapter.skip_post_init = False
            adapter.__post_init__()
        except (AssertionError, AttributeError, ImportError, TypeError, ValueError) as error:
            raise StepCacheUnavailable(f"cache-dit cannot be used here ({first_line(error)})") from error
    return adapter


def _describe_flux(adapter: Any, transformer: Any) -> None:
    """Flux as two lists of blocks. cache-dit's own description makes one of them, which takes a rewritten forward."""
    from cache_dit import ForwardPattern

    adapter.blocks = [transformer.transformer_blocks, transformer.single_transformer_blocks]
    adapter.blocks_name = ["transformer_blocks", "single_transformer_blocks"]
    adapter.dummy_blocks_names = []
    adapter.forward_pattern = [ForwardPattern.Pattern_1, ForwardPattern.Pattern_1]
    adapter.patch_functor = None


def _block_lists(adapter: Any) -> list[list[torch.nn.ModuleList]]:
    """The block lists of each denoiser, whichever of its three forms the adapter has them in."""
    blocks = adapter.blocks
    if isinstance(blocks, torch.nn.ModuleList):
        return [[blocks]]
    if isinstance(adapter.transformer, (list, tuple)):
        return [[one] if isinstance(one, torch.nn.ModuleList) else list(one) for one in blocks]
    return [list(blocks)]


def _put_forward_back(model: torch.nn.Module, found: Any, ours: Any, top: Any) -> None:
    """Undo the `forward` that cache-dit put on the model, wherever in a chain of hooks it is by now.

    Args:
        model: a denoiser.
        found: the instance's own `forward` before, None when it had none.
        ours: cache-dit's; None when it never came to be.
        top: the instance's `forward` now, before cache-dit touched it again.
    """
    if top is ours or ours is None:
        _set_forward(model, found)
        return
    _set_forward(model, top)
    original = found if found is not None else type(model).forward.__get__(model)
    for holder, attribute in _places_under_hooks(model):
        if getattr(holder, attribute) is ours:
            setattr(holder, attribute, original)


def _set_forward(model: torch.nn.Module, forward: Any) -> None:
    if forward is None:
        model.__dict__.pop("forward", None)
    else:
        model.forward = forward


def _places_under_hooks(model: torch.nn.Module) -> Iterator[tuple[Any, str]]:
    """Where offload hooks that came later keep the `forward` they wrapped: accelerate's, then diffusers'."""
    if "_old_forward" in model.__dict__:
        yield model, "_old_forward"
    for reference in getattr(model.__dict__.get("_diffusers_hook"), "_fn_refs", ()):
        yield reference, "forward"
        yield reference, "original_forward"


@contextmanager
def _quiet() -> Iterator[None]:
    """cache-dit reports every call on stdout and sets an environment variable at import: neither may stay."""
    before = dict(os.environ)
    importlib.import_module("cache_dit")
    for name in set(os.environ) - set(before):
        del os.environ[name]
    handlers = logging.getLogger("CACHE_DIT").handlers
    levels = [handler.level for handler in handlers]
    try:
        for handler in handlers:
            handler.setLevel(logging.ERROR)
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)

"""The compiled modules of one component: compiled lazily, watched, and undone in place at the first failure.

torch.compile fails when compiled code is first called, not when it is asked for. So every compiled call is guarded: if
it fails, the plain module runs in its place, and unless that fails too, the whole component goes back to plain.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ..compile_clock import Compilations, counted, first_run
from ..compile_stop import stoppable
from ..fallback import Signals, all_finite, describe
from . import compile_times
from .attention_processors import Trust
from .components import attention_layers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How modules are compiled: the arguments of torch.compile.

    Attributes:
        backend: name of a dynamo backend.
        mode: inductor's mode; "default" is not passed on.
        dynamic: None lets the second shape turn dynamic.
        fullgraph: refuse to compile what breaks the graph.
        relax: at a graph break, compile once more with breaks allowed.
    """

    backend: str
    mode: str = "default"
    dynamic: bool | None = None
    fullgraph: bool = False
    relax: bool = True

    @property
    def reuses_outputs(self) -> bool:
        """Whether results live in memory that the next call overwrites: CUDA graphs do that."""
        return self.mode in ("reduce-overhead", "max-autotune") or self.backend == "cudagraphs"

    def compile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, compiled when it is first called. torch refuses `mode` beside `options`, so that options never go in.

        Raises:
            Whatever the backend's own constructor raises: it does not exist, or not on this system.
        """
        keywords: dict[str, Any] = {} if self.mode == "default" else {"mode": self.mode}
        compiled: Callable[..., Any] = torch.compile(
            call, backend=self.backend, dynamic=self.dynamic, fullgraph=self.fullgraph, **keywords
        )
        return compiled


class Region:
    """What is compiled in one component.

    Holds its modules weakly, so that bookkeeping never keeps a model in memory.

    Args:
        name: of the component, for progress and messages.
        modules: what to compile: the repeated blocks, or the component itself.
        recipe: how.

    Attributes:
        signals: whom to tell about progress; it may raise to cancel.
        failure: why the region went back to plain, or "".
        compilations: how often its code was compiled, recompilations included, and what that took.
        last: seconds that it took last time on this machine, or None.
    """

    def __init__(self, name: str, modules: Sequence[nn.Module], recipe: Recipe) -> None:
        self.name = name
        self.recipe = recipe
        self.signals = Signals()
        self.failure = ""
        self.compilations = Compilations()
        self._asked_for = recipe
        self._modules = [weakref.ref(module) for module in modules]
        self._started = 0
        self._key = compile_times.key_of(modules, recipe)
        self.last = compile_times.last_seconds(self._key)

    def __len__(self) -> int:
        return len(self._modules)

    def made_for(self, modules: Sequence[nn.Module], recipe: Recipe) -> bool:
        """Whether this region compiles these modules by `recipe`, even if graph breaks were allowed since."""
        same = len(modules) == len(self) and all(
            ref() is module for ref, module in zip(self._modules, modules, strict=True)
        )
        return same and self._asked_for == recipe

    def is_warm(self, modules: Sequence[nn.Module], recipe: Recipe) -> bool:
        """Whether it was made for these, works, and every module's code has run."""
        return self.made_for(modules, recipe) and self.installed and self._started == len(self)

    @property
    def installed(self) -> bool:
        return any(True for _ in self._installed())

    def install(self) -> None:
        """Compile every module at its next call. Code that was compiled before is found again by dynamo."""
        self._started = 0
        for module in self._alive():
            module._compiled_call_impl = CompiledCall(self, module)

    def remove(self) -> None:
        """Every module is plain again, exactly."""
        for module in self._installed():
            del module._compiled_call_impl  # the class's own None shows through

    def fail(self, reason: str) -> None:
        if not self.failure:
            self.failure = reason
            logger.warning("%s runs without torch.compile: %s", self.name, reason)
        self.remove()

    def allow_graph_breaks(self) -> bool:
        """Compile anew without `fullgraph`, if it was on and may be given up."""
        if not (self.recipe.fullgraph and self.recipe.relax):
            return False
        self.recipe = replace(self.recipe, fullgraph=False)
        self.install()
        return True

    def before_first_call(self) -> None:
        """Progress, and the chance to cancel, before a module compiles."""
        self.while_compiling(0.0)

    def while_compiling(self, seconds: float) -> None:
        """The same while it compiles, which it has done for `seconds`."""
        total = len(self._modules)
        block = "whole" if total == 1 else f"block {self._started + 1} of {total}"
        part = "for another size" if self._started == total else block
        taken = f"{self.compilations.seconds + seconds:.0f} s so far"
        self.signals.tick("compile", self._started, total, f"{self.name}: {part}, {taken} ({first_run(self.last)})")

    def after_first_call(self) -> None:
        self._started += 1
        if self._started == len(self._modules):
            if self.compilations.count:
                compile_times.remember(self._key, self.compilations.seconds)
            self.signals.tick(
                "compile", self._started, self._started, f"{self.name}: done in {self.compilations.seconds:.1f} s"
            )

    def _alive(self) -> list[nn.Module]:
        return [module for reference in self._modules if (module := reference()) is not None]

    def _installed(self) -> list[nn.Module]:
        return [m for m in self._alive() if getattr(m.__dict__.get("_compiled_call_impl"), "region", None) is self]


class CompiledCall:
    """Stands where `nn.Module.compile` puts compiled code: `nn.Module.__call__` goes through it."""

    def __init__(self, region: Region, module: nn.Module) -> None:
        self.region = region
        self._module = module
        self._compiled = region.recipe.compile(module._call_impl)
        self._first = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._first:
            return self._guarded(args, kwargs)
        self.region.before_first_call()
        result = self._guarded(args, kwargs)
        if self._first:
            self._first = False
            if self.region.installed:
                self.region.after_first_call()
        return result

    def _guarded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with counted(self.region.compilations):
                result = stoppable(lambda: self._compiled(*args, **kwargs), self.region.while_compiling)
            if self.region.recipe.reuses_outputs:
                result = tree_map_only(torch.Tensor, torch.clone, result)
        except Exception as error:
            if self.region.signals.must_travel(error):
                raise
            if isinstance(error, torch._dynamo.exc.Unsupported) and self.region.allow_graph_breaks():
                return self._module(*args, **kwargs)
            reason = f"it failed when it was first called: {describe(error)}"
            if not self._first:
                reason = f"it failed at a later call: {describe(error)}"
        else:
            if not self._first or all_finite(result):
                return result
            reason = "compiled code gave NaN or infinity where plain code does not"
        return self._plain(args, kwargs, reason)

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        """The module's own result; compiling is blamed only when nothing else is.

        An error of the module itself is raised here again. A failing attention backend is replaced while the plain
        module runs, and the compiled code may stay.
        """
        trusts = self._trusts()
        result = self._module._call_impl(*args, **kwargs)
        attention_is_to_blame = any(trust.failure for trust in trusts)
        also_not_finite = reason.startswith("compiled code gave") and not all_finite(result)
        if not attention_is_to_blame and not also_not_finite:
            self.region.fail(reason)
        return result

    def _trusts(self) -> list[Trust]:
        found = (getattr(layer.processor, "_trust", None) for layer in attention_layers(self._module))
        return [trust for trust in found if trust is not None and not trust.failure]

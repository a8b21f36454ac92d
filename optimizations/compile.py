"""torch.compile for a pipeline: what to compile, whether there is room for it, and how it is undone in place.

By default the repeated blocks of each denoiser are compiled one by one, which takes a fraction of the time that the
whole model takes and leaves the same code behind. Nothing is wrapped: `pipeline.transformer` stays what it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..cache_folder import cache_folder
from ..compile_clock import Compilations
from ..fallback import Signals, describe
from ..memory import GIB
from ..report import OptimizationRecord
from .compile_cost import ASSUMED, PayBack
from .compiled_region import CompiledCall, Recipe, Region
from .components import denoisers, repeated_blocks, vae_of
from .quantization.sdnq import sdnq_limits
from .settings import CompileSettings, OptimizationSettings, Workload

NAME = "torch_compile"
ASSUMED_OVERHEAD = 2 * GIB
"""Memory in bytes that compiled code is taken to need beyond plain code until it was measured: 1.5 to 2 GB were seen
on a 14-billion-parameter model (background of the project: an RTX 5090, where it pushed the weights off the card)."""
CACHE_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

_regions: WeakKeyDictionary[nn.Module, Region] = WeakKeyDictionary()


def auto_refusal(device_type: str, workload: Workload) -> str:
    """Why "auto" does not compile, or "". What was measured goes first: `decide.py` replaces "auto" where it knows."""
    if device_type == "cpu":
        return "compiling rarely pays on a processor; choose on to do it all the same"
    if not workload.step_seconds or not workload.steps:
        return "nothing was measured for this model and size yet"
    pay_back = PayBack(ASSUMED, workload.step_seconds, workload.steps)
    return "" if pay_back.pays else str(pay_back)


def use(
    pipeline: Any, settings: OptimizationSettings, breaks: str, refusal: str, signals: Signals
) -> OptimizationRecord:
    """Compile the pipeline's denoisers, and its VAE's decoder where that is asked for; or undo it.

    Args:
        settings: `torch_compile` and `compile` of it count.
        breaks: what else is active that breaks graphs, for the report; "" lets `fullgraph` be on.
        refusal: why compiling is declined here ("auto" decided so, or there is no room), or "".
        signals: progress and cancel of the first calls.
    """
    choice, how = settings.torch_compile, settings.compile
    if choice == "off":
        restore(pipeline)
        return OptimizationRecord(NAME, choice, "off")
    refusal = refusal or switched_off() or _unknown_backend(how.backend) or _taken(pipeline, how)
    if refusal:
        restore(pipeline)
        return OptimizationRecord(NAME, choice, "off", refusal, failed=choice == "on")
    wanted = _targets(pipeline, how)
    for component in _components(pipeline):
        if component not in wanted:
            _remove(component)
    for component, (name, modules, is_vae) in wanted.items():
        _install(component, name, modules, _recipe(how, breaks, is_vae), signals)
    return _record(pipeline, OptimizationRecord(NAME, choice, "off"), how, breaks)


def is_compiled(pipeline: Any) -> bool:
    """Whether any part of the pipeline runs, or will at its next call, as compiled code."""
    return any(component in _regions and _regions[component].installed for component in _components(pipeline))


def is_warm(pipeline: Any, how: CompileSettings, breaks: str = "") -> bool:
    """Whether the very code that `how` asks for is installed and has run: its memory is taken already.

    Code of another backend, mode or scope says nothing of it, nor does code of the denoisers of the VAE's.
    """
    wanted = _targets(pipeline, how)
    return bool(wanted) and all(
        component in _regions and _regions[component].is_warm(modules, _recipe(how, breaks, is_vae))
        for component, (_, modules, is_vae) in wanted.items()
    )


def record(pipeline: Any, before: OptimizationRecord, how: CompileSettings, breaks: str = "") -> OptimizationRecord:
    """The record as it stands after a run: lazily failed or not, and what compiling has cost so far."""
    return before if before.applied == "off" else _record(pipeline, before, how, breaks)


def restore(pipeline: Any) -> None:
    """Every part is plain again. Compiled code stays with dynamo, so that turning it on again is quick."""
    for component in _components(pipeline):
        _remove(component)


def silence(pipeline: Any) -> None:
    """Forget whom to tell about progress: the run is over."""
    for component in _components(pipeline):
        if component in _regions:
            _regions[component].signals = Signals()


@contextmanager
def environment(pipeline: Any, how: CompileSettings) -> Iterator[None]:
    """While the block runs: dynamo's limits as asked for and as the pipeline needs them, and `switches`."""
    with switches(how), sdnq_limits(pipeline):
        yield


@contextmanager
def switches(how: CompileSettings) -> Iterator[None]:
    """While the block runs: dynamo's limits as asked for, and a folder in which compiled code outlives the process.

    A folder that the user has set (`TORCHINDUCTOR_CACHE_DIR`) is kept.
    """
    import torch._dynamo.config as dynamo

    # Before torch 2.7 the limits had other names.
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    accumulated = f"accumulated_{limit}"
    values: dict[str, Any] = {
        limit: how.recompile_limit,
        accumulated: max(how.recompile_limit * 8, getattr(dynamo, accumulated)),
        "suppress_errors": False,
    }
    with ExitStack() as stack:
        stack.enter_context(dynamo.patch(values))
        if how.keep_artifacts:
            stack.enter_context(_cache_folder())
        yield


@contextmanager
def _cache_folder() -> Iterator[None]:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    before = {name: os.environ.get(name) for name in CACHE_VARIABLES}
    # torch sets the variable by itself, to a folder that is emptied when the machine restarts.
    if before["TORCHINDUCTOR_CACHE_DIR"] in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "torch_compile")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _components(pipeline: Any) -> list[nn.Module]:
    vae = vae_of(pipeline)
    return [*denoisers(pipeline).values(), *([vae] if vae is not None else [])]


def _targets(pipeline: Any, how: CompileSettings) -> dict[nn.Module, tuple[str, list[nn.Module], bool]]:
    """What to compile in each component: its name, its modules, and whether it is the VAE."""
    targets: dict[nn.Module, tuple[str, list[nn.Module], bool]] = {}
    for name, model in denoisers(pipeline).items():
        blocks = repeated_blocks(model) if how.scope == "blocks" else []
        targets[model] = (name, blocks or [model], False)
    vae = vae_of(pipeline)
    if how.compile_vae and vae is not None:
        blocks = decoder_blocks(vae)
        if blocks:
            targets[vae] = ("vae", blocks, True)
    return targets


def decoder_blocks(vae: Any) -> list[nn.Module]:
    """The stages of a VAE's decoder. Never the whole decode: with tiling on, every tile would be unrolled into it."""
    decoder = getattr(vae, "decoder", None)
    blocks = [getattr(decoder, "mid_block", None), *(getattr(decoder, "up_blocks", None) or ())]
    return [block for block in blocks if isinstance(block, nn.Module)]


def _recipe(how: CompileSettings, breaks: str, is_vae: bool) -> Recipe:
    # The decoders of video VAEs keep their state in lists that they are handed: those break the graph.
    fullgraph = how.fullgraph == "on" or (how.fullgraph == "auto" and not breaks and not is_vae)
    dynamic = {"auto": None, "on": True, "off": False}[how.dynamic]
    mode = how.mode if how.backend == "inductor" else "default"
    return Recipe(how.backend, mode, dynamic, fullgraph, relax=how.fullgraph == "auto")


def _install(component: nn.Module, name: str, modules: list[nn.Module], recipe: Recipe, signals: Signals) -> None:
    region = _regions.get(component)
    if region is None or not region.made_for(modules, recipe):
        _remove(component)
        region = _regions[component] = Region(name, modules, recipe)
    region.signals = signals
    if region.failure or region.installed:
        return
    try:
        region.install()
    except Exception as error:
        if signals.must_travel(error):
            raise
        region.fail(f"the backend cannot be used: {describe(error)}")


def _remove(component: nn.Module) -> None:
    region = _regions.pop(component, None)
    if region is not None:
        region.remove()


def _taken(pipeline: Any, how: CompileSettings) -> str:
    """Which part somebody else compiled, and that it is left to them; or ""."""
    for component in _targets(pipeline, how):
        where = compiled_elsewhere(component, is_ours=lambda call: isinstance(call, CompiledCall))
        if where:
            part = type(component).__name__ + ("" if where == "." else f".{where}")
            return f"{part} was compiled by something else, which is left as it is: two compilers would fight"
    return ""


def switched_off() -> str:
    """Why torch.compile compiles nothing in this process, whatever it is asked, or ""."""
    import torch._dynamo.config
    import torch._dynamo.eval_frame as eval_frame

    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "torch.compile is off in this process: TORCHDYNAMO_DISABLE=1"
    if torch._dynamo.config.disable:
        return "torch.compile is off in this process: TORCH_COMPILE_DISABLE=1, or another extension turned it off"
    stance = getattr(getattr(eval_frame, "_stance", None), "stance", "default")
    return "torch.compile is off in this process: its stance is force_eager" if stance == "force_eager" else ""


def compiled_elsewhere(model: nn.Module, is_ours: Callable[[object], bool] = lambda _call: False) -> str:
    """Name within `model` of the first module that somebody else has compiled, "." for the model itself; or "".

    Two compilers of one model fight: the outer one traces into what the inner one made. ComfyUI's own are no case of
    this: Torch Compile Model and the Comfy Compiler act within a forward of ComfyUI's MODELs, which no pipeline is.

    Args:
        is_ours: whether what stands in a module's `_compiled_call_impl` was put there by this pack.
    """
    from torch._dynamo.eval_frame import OptimizedModule

    for name, module in model.named_modules():
        call = module._compiled_call_impl
        if isinstance(module, OptimizedModule) or (call is not None and not is_ours(call)):
            return name or "."
    return ""


def _unknown_backend(backend: str) -> str:
    import torch._dynamo as dynamo

    known = dynamo.list_backends(exclude_tags=())
    return "" if backend in known else f"there is no backend {backend!r}; this torch has {', '.join(sorted(known))}"


def _record(pipeline: Any, before: OptimizationRecord, how: CompileSettings, breaks: str) -> OptimizationRecord:
    regions = [_regions[part] for part in _components(pipeline) if part in _regions]
    working = [region for region in regions if region.installed]
    failures = [f"{region.name}: {region.failure}" for region in regions if region.failure]
    applied = " + ".join(f"{region.name} ({_extent(region, how)})" for region in working)
    if applied:
        applied = f"{applied}, {how.backend}" + (f" {how.mode}" if how.mode != "default" else "")
    notes = [f"no fullgraph: {breaks}"] if breaks and how.fullgraph == "auto" and working else []
    if how.compile_vae and not any(region.name == "vae" for region in regions):
        notes.append("the VAE has no decoder stages to compile")
    made = [region.compilations for region in regions]
    compilations = Compilations(sum(one.count for one in made), sum(one.seconds for one in made))
    last = [region.last for region in regions if region.last is not None]
    return OptimizationRecord(
        NAME,
        before.requested,
        applied or "off",
        "; ".join([*failures, *notes]) or before.reason,
        compilations.told(sum(last) if last else None),
        failed=bool(failures),
    )


def _extent(region: Region, how: CompileSettings) -> str:
    count = f"{len(region)} blocks" if region.name == "vae" or how.scope == "blocks" else "whole"
    return count if len(region) > 1 else "whole"

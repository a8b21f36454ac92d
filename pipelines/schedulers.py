"""Which schedulers a pipeline can run with, and running it with one of them without leaving a trace.

Every run gets a scheduler of its own, made from the configuration that the model came with: multistep solvers keep the
model's outputs, and nothing of a cancelled run may reach the next one.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InputError, first_line
from .families import Family

_TRIAL_STEPS = 4
_ANOTHER_PROCESS = "it is made for another kind of process"

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""The general-purpose schedulers of diffusers. The others belong to one model each, which brings its own."""
SHORT_NAMES = {
    "ddim": ("DDIMScheduler", ""),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler"),
    "dpm++ sde": ("DPMSolverSDEScheduler", "DPMSolverSDEScheduler"),
    "euler": ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    "euler a": ("EulerAncestralDiscreteScheduler", ""),
    "heun": ("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "lcm": ("LCMScheduler", "FlowMatchLCMScheduler"),
    "pndm": ("PNDMScheduler", ""),
    "unipc": ("UniPCMultistepScheduler", "UniPCMultistepScheduler"),
}
"""What users call them -> (class for a diffusion model, class for a flow model or "" where there is none)."""


@contextmanager
def scheduler_for_run(pipeline: Any, family: Family, name: str) -> Iterator[Any]:
    """Give `pipeline` a fresh scheduler while the block runs.

    Args:
        pipeline: its own scheduler is put back afterwards, whatever happened; so are those of the pipelines in it.
        family: what the pipeline hands to the scheduler.
        name: class name, one of `SHORT_NAMES`, or "model default" for the model's own class and configuration.

    Yields:
        The scheduler, None for a pipeline without one of that name.

    Raises:
        InputError: it does not fit this pipeline; the error lists those that do.
    """
    original = getattr(pipeline, "scheduler", None)
    if original is None and name != "model default":
        reason = f"{type(pipeline).__name__} has several schedulers, or none, in fixed roles"
        raise InputError("scheduler", name, reason, "use 'model default'")
    fresh = {id(scheduler): _afresh(scheduler) for scheduler in schedulers_of(pipeline)}
    class_name = class_of(name, original)
    if class_name not in ("model default", type(original).__name__):
        fresh[id(original)] = _candidate(original, class_name)
    if objection := "" if name == "model default" else _objection(family, fresh[id(original)]):
        fitting = ", ".join(compatible_schedulers(original, family))
        reason = f"it does not fit {type(pipeline).__name__} ({objection})"
        raise InputError("scheduler", name, reason, f"use 'model default' or one of: {fitting}")
    changed = [
        (part, place, value)
        for part in pipelines_of(pipeline)
        for place, value in vars(part).items()
        if id(value) in fresh
    ]
    for part, place, value in changed:
        setattr(part, place, fresh[id(value)])
    try:
        yield fresh.get(id(original))
    finally:
        for part, place, value in changed:
            setattr(part, place, value)


def _afresh(scheduler: Any) -> Any:
    """Another scheduler of the same class and configuration, and of none of the state.

    `from_config` goes back to the class's default for what it notes as left to that, also where the pipeline has
    changed it since (Stable Diffusion puts a missing `steps_offset` right).
    """
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    return type(scheduler).from_config(config)


def pipelines_of(pipeline: Any) -> list[Any]:
    """The pipeline, and those that it is combined from (Kandinsky, Stable Cascade)."""
    from diffusers import DiffusionPipeline

    return [pipeline, *(part for part in vars(pipeline).values() if isinstance(part, DiffusionPipeline))]


def schedulers_of(pipeline: Any) -> list[Any]:
    """The schedulers that lead its loops, each once: `scheduler`, or all where there is none of that name (unCLIP).

    What goes beside `scheduler` follows it: LTX-2's `audio_scheduler` steps the sound of the same denoising step.
    """
    found = {}
    for part in pipelines_of(pipeline):
        own = getattr(part, "scheduler", None)
        candidates = part.components.values() if own is None else (own,)
        found.update({id(each): each for each in candidates if hasattr(each, "from_config") and hasattr(each, "step")})
    return list(found.values())


def class_of(name: str, original: Any) -> str:
    """The class that a short name stands for with the model of the scheduler `original`; any other name as it is."""
    if name not in SHORT_NAMES:
        return name
    diffusion, flow = SHORT_NAMES[name]
    return (flow or diffusion) if is_flow(original) else diffusion


def compatible_schedulers(original: Any, family: Family) -> tuple[str, ...]:
    """Class names of all schedulers that can take the place of a pipeline's own one, that one first."""
    own = type(original).__name__
    others = (name for name in SCHEDULERS if name != own)
    return (own, *(name for name in others if not _objection(family, _candidate(original, name))))


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler integrates a flow (straight paths from noise to data) rather than a diffusion."""
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def _candidate(original: Any, name: str) -> Any:
    """Scheduler `name` with the original's configuration, or in words why there can be none."""
    import diffusers

    scheduler_class = getattr(diffusers, name, None)
    needed = getattr(scheduler_class, "_backends", ())  # of a stand-in: diffusers could not import the real one
    if needed:
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        return f"it needs {', '.join(missing or needed)}, which cannot be imported"
    if scheduler_class is None or not hasattr(scheduler_class, "set_timesteps"):
        return "diffusers has no such scheduler"
    parameters = inspect.signature(scheduler_class.__init__).parameters
    flow_class = name.startswith("FlowMatch")
    changes: dict[str, Any] = {}
    if is_flow(original):
        shift = original.config.get("shift", original.config.get("flow_shift", 1.0))
        if flow_class:
            changes["shift"] = shift
        elif "use_flow_sigmas" in parameters:
            changes = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        else:
            return _ANOTHER_PROCESS
    elif flow_class:
        return _ANOTHER_PROCESS
    try:
        return scheduler_class.from_config(original.config, **changes)
    except (ImportError, TypeError, ValueError, NotImplementedError) as error:  # a package or a setting it lacks
        return first_line(error)


def _objection(family: Family, scheduler: Any) -> str:
    """Why a family's pipelines cannot drive this `_candidate`, "" when they can: asks it for timesteps as they will."""
    if isinstance(scheduler, str):
        return scheduler
    arguments = _timestep_arguments(family, scheduler)
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    for name in arguments:
        if name not in accepted:
            return f"the pipeline gives it {name!r}, which it does not take"
    try:
        trial = type(scheduler).from_config(scheduler.config)
        trial.set_timesteps(**({} if "sigmas" in arguments else {"num_inference_steps": _TRIAL_STEPS}), **arguments)
    except (ValueError, TypeError, AssertionError, NotImplementedError, ImportError, IndexError) as error:
        return first_line(error)
    return ""


def _timestep_arguments(family: Family, scheduler: Any) -> dict[str, Any]:
    """What the family's pipelines hand to `set_timesteps` besides the number of steps, with values to try."""
    values = {"mu": 0.8, "sigmas": [1.0 - step / _TRIAL_STEPS for step in range(_TRIAL_STEPS)]}
    names = set(family.timestep_arguments)
    if scheduler.config.get("use_flow_sigmas") and family.own_flow_sigmas:
        names.discard("sigmas")
    if family.name == "sd3" and scheduler.config.get("use_dynamic_shifting"):
        names.add("mu")
    return {name: values[name] for name in sorted(names)}

"""Which schedulers a pipeline can run with, and running it with one of them without leaving a trace.

Every run gets a scheduler of its own, made from the configuration that the model came with: multistep solvers keep the
model's outputs, and nothing of a cancelled run may reach the next one.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import InputError, first_line
from .classes.scheduler_trial import trial_objection
from .classes.scheduling import SchedulerUse, scheduler_use
from .conditions.taking import modular_class
from .families import Family
from .modular.scheduling import use_of_blocks

TRIAL_STEPS = 4
MANY_STEPS = 20
"""A scheduler that does not run with so many is not one that only needs more."""
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
_KNOWN = {name.casefold(): name for name in ("model default", *SHORT_NAMES, *SCHEDULERS)}

_NEEDED_SETTINGS = {
    "invert_sigmas": "its noise levels cannot rise, as this model's do",
    "rescale_betas_zero_snr": "it cannot begin at pure noise, as this model was trained to",
}
"""Setting of a model's own scheduler -> what is wrong with one that has no such setting: it would run, and drop it."""


@contextmanager
def scheduler_for_run(
    pipeline: Any,
    family: Family,
    name: str,
    shift: float | None = None,
    steps: int = TRIAL_STEPS,
    given: tuple[str, ...] = (),
) -> Iterator[Any]:
    """Give `pipeline` a fresh scheduler while the block runs.

    Args:
        pipeline: its own scheduler is put back afterwards, whatever happened; so are those of the pipelines in it.
        family: what the pipeline hands to the scheduler.
        name: class name, one of `SHORT_NAMES`, or "model default" for the model's own class and configuration.
        shift: of a flow model's noise levels, instead of the configured one.
        steps: of the run; some schedulers cannot take only two or three.
        given: inputs of the run that decide which blocks of a modular pipeline run.

    Yields:
        The scheduler, None for a pipeline without one of that name.

    Raises:
        InputError: it does not fit this pipeline; the error lists those that do. Or it has no shift to be set.
    """
    original = getattr(pipeline, "scheduler", None)
    if original is None and (name != "model default" or shift is not None):
        reason = f"{type(pipeline).__name__} has several schedulers, or none, in fixed roles"
        if shift is not None:
            raise InputError("flow_shift", shift, reason, "leave it out")
        raise InputError("scheduler", name, reason, "use 'model default'")
    fresh = {id(scheduler): _afresh(scheduler) for scheduler in schedulers_of(pipeline)}
    if original is not None:
        fresh[id(original)] = fitting_scheduler(original, family, name, steps, type(pipeline), given)
    if shift is not None:
        fresh[id(original)] = _shifted(fresh[id(original)], shift)
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


def _shifted(scheduler: Any, shift: float) -> Any:
    """The same scheduler with another shift of its noise levels."""
    config, kind = scheduler.config, type(scheduler).__name__
    name = "shift" if kind.startswith("FlowMatch") else "flow_shift"
    reason = "" if is_flow(scheduler) and name in config else f"{kind} has no such setting"
    if config.get("use_dynamic_shifting"):
        reason = "this model's scheduler takes its shift from the size of the picture"
    if reason:
        raise InputError("flow_shift", shift, reason, "leave it out")
    return type(scheduler).from_config(config, **{name: shift})


def fitting_scheduler(
    original: Any,
    family: Family,
    name: str,
    steps: int = TRIAL_STEPS,
    pipeline_class: type | None = None,
    given: tuple[str, ...] = (),
) -> Any:
    """A fresh scheduler for a pipeline whose own one is `original`; it needs no weights.

    Args:
        pipeline_class: what is called, where it is not the family's own class but a form of it.
        given: inputs that decide which blocks of a modular pipeline run.

    Raises:
        InputError: it does not fit this pipeline; the error lists those that do.
    """
    family = _with_blocks(family, given)
    class_name = class_of(name, original)
    own = class_name in ("model default", type(original).__name__)
    fresh = _afresh(original) if own else _candidate(original, class_name)
    uses = _uses(family, pipeline_class)
    if objection := "" if own else trial_objection(family, fresh, uses, steps):
        fitting = compatible_schedulers(original, family, steps, pipeline_class, given)
        named = [each for each in fitting if each in SCHEDULERS]  # no other can be asked for
        others = f"'model default' or one of: {', '.join(named)}" if named else "'model default'"
        for enough in () if isinstance(fresh, str) else range(steps + 1, MANY_STEPS + 1):
            if not trial_objection(family, fresh, uses, enough):
                cure = f"use {enough} steps or more, {others}"
                raise InputError("scheduler", name, f"it makes {enough} steps or more", cure)
        called = _called(family) if pipeline_class is None else pipeline_class.__name__
        raise InputError("scheduler", name, f"it does not fit {called} ({objection})", f"use {others}")
    return fresh


def known_name(name: str) -> str:
    """A scheduler's name as it is written here: "Euler A" is "euler a". One that is not known stays as it is."""
    return _KNOWN.get(" ".join(name.split()).casefold(), name)


def class_of(name: str, original: Any) -> str:
    """The class that a short name stands for with the model of the scheduler `original`; any other name as it is."""
    if name not in SHORT_NAMES:
        return name
    diffusion, flow = SHORT_NAMES[name]
    return (flow or diffusion) if is_flow(original) else diffusion


def compatible_schedulers(
    original: Any,
    family: Family,
    steps: int = TRIAL_STEPS,
    pipeline_class: type | None = None,
    given: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Class names of all schedulers that can take the place of a pipeline's own one, that one first."""
    family = _with_blocks(family, given)
    own = type(original).__name__
    others = (name for name in SCHEDULERS if name != own)
    uses = _uses(family, pipeline_class)
    return (own, *(name for name in others if not trial_objection(family, _candidate(original, name), uses, steps)))


def _called(family: Family) -> str:
    """The class that a family's pipelines are."""
    return family.classes[-1] if modular_class(family.classes[-1]) is not None else family.classes[0]


def _with_blocks(family: Family, given: tuple[str, ...]) -> Family:
    """Of a modular pipeline, the family with how the blocks that run drive their scheduler."""
    found = modular_class(family.classes[-1])
    if found is None:
        return family
    use = use_of_blocks(found, tuple(sorted(given)))
    flows, arguments = use.own_flow_sigmas, use.timestep_arguments
    return replace(family, scheduling=use, timestep_arguments=arguments, own_flow_sigmas=flows)


def _uses(family: Family, pipeline_class: type | None) -> list[SchedulerUse]:
    """How the classes that are called drive their scheduler; of the table's own ones the table says it."""
    uses = [] if family.scheduling is None else [family.scheduling]
    if pipeline_class is not None and pipeline_class.__name__ not in family.classes:
        uses.append(scheduler_use(pipeline_class))
    return uses


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
    if type(original).__name__ not in SCHEDULERS and scheduler_class not in original.compatibles:
        return _ANOTHER_PROCESS  # the model was made for a scheduler of its own
    parameters = inspect.signature(scheduler_class.__init__).parameters
    for setting, reason in _NEEDED_SETTINGS.items():
        if original.config.get(setting) and setting not in parameters:
            return reason
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
    except (
        ImportError,
        TypeError,
        ValueError,
        NotImplementedError,
        IndexError,
    ) as error:  # a package or a setting it lacks
        return first_line(error)

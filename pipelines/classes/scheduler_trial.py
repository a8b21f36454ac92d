"""Whether a pipeline can drive a scheduler: timesteps are set as the pipeline will, and steps of noise are tried."""

from __future__ import annotations

import inspect
from typing import Any

from ...errors import first_line
from ..families import Family
from .scheduling import SchedulerUse, objection, scheduler_use


def trial_objection(family: Family, scheduler: Any, uses: list[SchedulerUse], steps: int) -> str:
    """Why a family's pipelines cannot drive a scheduler, "" when they can.

    Args:
        scheduler: with the configuration that it would run with; in words why there can be none.
        uses: how the classes that are called drive theirs.
        steps: of the run.
    """
    if isinstance(scheduler, str):
        return scheduler
    arguments = _timestep_arguments(family, scheduler, steps)
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    for name in arguments:
        if name not in accepted:
            return f"the pipeline gives it {name!r}, which it does not take"
    try:
        trial = type(scheduler).from_config(scheduler.config)
        count = {} if {"sigmas", "timesteps"} & set(arguments) else {"num_inference_steps": steps}
        further = {name: None for use in uses for name in use.further_arguments if name in accepted}
        trial.set_timesteps(**count, **arguments, **further)
        return next(filter(None, (objection(use, trial) for use in uses)), "")
    except (
        ValueError,
        TypeError,
        AssertionError,
        AttributeError,
        NotImplementedError,
        ImportError,
        IndexError,
        RuntimeError,
    ) as error:
        return first_line(error)


def _timestep_arguments(family: Family, scheduler: Any, steps: int) -> dict[str, Any]:
    """What the family's pipelines hand to `set_timesteps` besides the number of steps, with values to try."""
    import diffusers
    import numpy

    use = family.scheduling or scheduler_use(getattr(diffusers, family.classes[0]))
    sigmas = numpy.linspace(1.0, 1.0 / steps, steps)
    values = {
        "mu": 0.8,
        "sigmas": sigmas if use.sigmas_as_array else sigmas.tolist(),
        "timesteps": numpy.linspace(999, 0, steps + 1)[:-1].round().astype(int),
    }
    names = set(family.timestep_arguments)
    if scheduler.config.get("use_flow_sigmas") and family.own_flow_sigmas:
        names.discard("sigmas")
    if use.shifts_dynamically and scheduler.config.get("use_dynamic_shifting"):
        names.add("mu")
    return {name: values[name] for name in sorted(names)}

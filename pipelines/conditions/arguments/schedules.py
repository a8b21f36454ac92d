"""Arguments with a value for every step: which there are, what values mean something, and how many steps they make."""

from __future__ import annotations

import inspect
from dataclasses import replace
from itertools import pairwise
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ....errors import InputError
from ...schedulers import is_flow
from .names import arguments_of

if TYPE_CHECKING:
    from ...types import SampleRequest

Request = TypeVar("Request", bound="SampleRequest")

SCHEDULES = {"sigmas": "[1.0, 0.5]", "timesteps": "[999, 500]"}
"""Argument with a value for every step -> an example."""
LAST_IS_THE_END = {"sigmas": ("EulerDiscreteScheduler",), "timesteps": ("SCMScheduler",)}
"""Argument -> the schedulers that take its last value for where the last step ends. The others end by themselves."""


class Schedule(NamedTuple):
    """Attributes: name, of the argument; values, one or more."""

    name: str
    values: list[Any]

    def steps(self, scheduler: Any) -> int:
        """How many steps a scheduler, or None where there is none of that name, makes of it."""
        return len(self.values) - (type(scheduler).__name__ in LAST_IS_THE_END[self.name])


def schedule_of(request: SampleRequest) -> Schedule | None:
    """The schedule that an argument of a request gives; None where none does.

    Raises:
        InputError: two do, one gives no step a value, or its values do not fall.
    """
    found = []
    for name, argument in arguments_of(request).items() if request.conditions else ():
        if name in SCHEDULES:
            values = argument.value.tolist() if getattr(argument.value, "ndim", None) == 1 else argument.value
            if isinstance(values, list | tuple):
                found.append(Schedule(name, list(values)))
    if len(found) > 1:
        names = ", ".join(schedule.name for schedule in found)
        raise InputError("argument", names, "a run follows one of them", "leave one of them out")
    for name, values in found:
        if not values:
            raise InputError(f"argument {name}", "[]", "it gives no step a value", "leave it out")
        if all(isinstance(each, int | float) and isfinite(each) for each in values):
            _check_falling(name, values)
        return Schedule(name, values)
    return None


def steps_given(request: SampleRequest) -> int | None:
    """For how many steps an argument gives a value each, before the scheduler is known; None where none does.

    Raises:
        InputError: `steps` asks for a number that no scheduler makes of it, or as `schedule_of`.
    """
    schedule = schedule_of(request)
    if schedule is None:
        return None
    count = len(schedule.values)
    if request.steps is not None and request.steps not in (count, count - bool(LAST_IS_THE_END[schedule.name])):
        _refuse_steps(request.steps, schedule, count)
    return request.steps or count


def with_steps(request: Request, scheduler: Any) -> Request:
    """The request with as many steps as its scheduler makes of its schedule, where it has one.

    Args:
        request: its `asked`, where it has one, is what `steps` was asked for in.
        scheduler: of the run, None where there is none of that name.

    Raises:
        InputError: the scheduler takes no schedule or no single step, another number of steps is asked for, none is
            left, or a flow begins with more noise than there is.
    """
    schedule = schedule_of(request)
    steps = request.steps if schedule is None else schedule.steps(scheduler)
    if steps == 1 and scheduler is not None and scheduler.config.get("shift_terminal"):  # it stretches what lies before
        raise InputError("steps", 1, "this model's scheduler divides by zero with a single step", "use 2 or more")
    if schedule is None or steps is None:
        return request
    kind = type(scheduler).__name__
    if scheduler is not None and schedule.name not in inspect.signature(type(scheduler).set_timesteps).parameters:
        cure = "leave it out, or choose another scheduler"
        raise InputError(f"argument {schedule.name}", schedule.values, f"{kind} makes its steps by number alone", cure)
    if steps < 1:
        reason = f"{kind} takes the last of the {schedule.name} for where the last step ends, so no step is left"
        raise InputError(f"argument {schedule.name}", schedule.values, reason, "give two values or more")
    if schedule.name == "sigmas" and scheduler is not None and is_flow(scheduler) and schedule.values[0] > 1:
        reason = f"of {kind}'s flow they are shares of noise, and 1 is noise alone"
        raise InputError("argument sigmas", schedule.values, reason, "begin with 1.0")
    asked = getattr(request, "asked", request).steps
    if asked is not None and asked != steps:
        _refuse_steps(asked, schedule, steps, kind)
    return replace(request, steps=steps)


def steps_note(request: SampleRequest, scheduler: Any, done: int) -> str:
    """How many steps a run made of its schedule, or of a number of them where the scheduler made more; else "".

    Args:
        scheduler: of the run, after it.
        done: steps that one call of the pipeline made.
    """
    schedule = schedule_of(request)
    if schedule is None:
        return _evaluations_note(request, scheduler, done)
    steps, name, kind = schedule.steps(scheduler), schedule.name, type(scheduler).__name__
    if steps < len(schedule.values):
        end = schedule.values[-1]
        left = f", and leaves a noise of {end:g} in the picture" if name == "sigmas" and end else ""
        return f"steps: {steps}, since {kind} takes the last of the {steps + 1} {name} for where the last ends{left}."
    levels = getattr(scheduler, "sigmas", None)
    if name == "sigmas" and levels is not None and len(levels) == steps + 1 and float(levels[-1]) == float(levels[-2]):
        at = f"{kind} ends at {float(levels[-1]):g} by itself, so the last of them changes nothing"
        return f"steps: {steps}, as many as argument sigmas gives values. {at}: leave its last value out."
    return f"steps: {steps}, as many as argument {name} gives values."


def _evaluations_note(request: SampleRequest, scheduler: Any, done: int) -> str:
    """That a scheduler, of second order say, has the model evaluated more often than there are steps."""
    timesteps, steps = getattr(scheduler, "timesteps", None), request.steps or 0
    kind = type(scheduler).__name__
    if timesteps is None or len(timesteps) <= steps:
        return ""
    if request.strength >= 1.0:
        return f"steps: {len(timesteps)} evaluations of the model for {steps} steps, as {kind} makes them."
    part = ceil(steps * request.strength)
    if done <= part:
        return ""
    made = f"the last {done} of the {len(timesteps)} evaluations of the model that {kind} makes for {steps} steps"
    return f"steps: {made}, where a strength of {request.strength:g} leaves {part} of the steps."


def _refuse_steps(asked: int, schedule: Schedule, steps: int, scheduler: str = "") -> None:
    name, values = schedule.name, schedule.values
    reason = f"argument {name} gives {len(values)} values, one for each step"
    cure = f"leave steps (--steps) out, or give {asked + len(values) - steps} {name}"
    if steps < len(values):
        reason = f"{scheduler} makes {steps} of the {len(values)} {name}, whose last is where the last step ends"
    elif name == "sigmas" and asked == steps - 1 and scheduler and values[-1] == 0:
        reason, cure = f"{reason}; {scheduler} ends at 0 by itself", "leave the last of the sigmas out"
    raise InputError("steps", asked, reason, cure)


def _check_falling(name: str, values: list[float]) -> None:
    """Refuse what diffusers would make noise with. Raises InputError."""
    if any(each < 0 for each in values):
        reason = "noise is never less than none" if name == "sigmas" else "the last timestep is 0"
        raise InputError(f"argument {name}", values, reason, "give values from 0 upwards")
    if any(after >= before for before, after in pairwise(values)):
        cure = f"write them from the largest to the smallest: {name}={sorted(set(values), reverse=True)}"
        raise InputError(f"argument {name}", values, "each step has less noise than the one before it", cure)
    if name == "sigmas" and not values[0]:
        raise InputError("argument sigmas", values, "a run that starts without noise makes nothing", "leave it out")

"""Control models that read several kinds of pictures (ControlNet Union): each picture's kind is a number, its mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....errors import InputError
from ..kinds import ControlCondition

UNION = "ControlNetUnionModel"
"""The class of SDXL's, which has pipeline classes of its own; those of FLUX.1 are of the class of all its ControlNets.
"""
MODE = "control_mode"
_NAME = "control mode"


def is_union(controls: Sequence[ControlCondition]) -> bool:
    """Whether classes of their own take the control models."""
    return any(control.model is not None and control.model.class_name == UNION for control in controls)


def check_modes(controls: Sequence[ControlCondition], form: str, takes: Mapping[str, Any], batch: int) -> None:
    """Check the modes of control pictures with a control model each.

    Args:
        form: the class that is called; `takes`: its arguments.

    Raises:
        InputError: one that its control model has not, or none where it needs one.
    """
    for control in controls:
        assert control.model is not None  # noqa: S101 - of those with a model each
        modes, mode = control.model.modes, control.mode
        shown = control.model.shown
        if not modes and mode is not None:
            raise InputError(_NAME, mode, f"{shown} reads one kind of picture", "leave it out")
        if modes and mode is None:
            reason = f"{shown} reads {modes} kinds of pictures, and nothing says which this is"
            cure = f"give its number, 0 to {modes - 1}, as the model's page lists them: mode, or --control-mode"
            raise InputError(_NAME, "none", reason, cure)
        if mode is not None and not 0 <= mode < modes:
            reason = f"{shown} reads {modes} kinds of pictures"
            raise InputError(_NAME, mode, reason, f"use 0 to {modes - 1}, as the model's page lists them")
        if modes and MODE not in takes:
            raise InputError("controlnet", shown, f"{form} takes none of several kinds", "choose one for a single kind")
    models = [control.model for control in controls]
    if is_union(controls) and 1 < len(set(models)) < len(models):
        reason = "a run takes several pictures for one ControlNet Union, or one for each of several"
        raise InputError("controlnet", f"{len(controls)} pictures", reason, "leave some of them out")
    several = len(controls) > 1 and any(control.mode is not None for control in controls)
    if several and batch > 1 and _by_item(form):
        reason = f"with several control pictures of which one has a mode, {form} makes one picture a run"
        raise InputError("batch", batch, reason, "use 1, or leave all but one control picture out")


def check_own_modes(form: str, controls: Sequence[ControlCondition]) -> None:
    """Raise InputError where the control pictures of a class with a ControlNet Union of its own have no mode."""
    if "ControlNetUnion" in form and any(control.mode is None for control in controls):
        cure = "give the number of its kind, as the model's page lists them: mode, or --control-mode"
        raise InputError(_NAME, "none", f"{form} reads several kinds of pictures, and nothing says which this is", cure)


def with_modes(
    values: Mapping[str, list[Any]],
    controls: Sequence[ControlCondition],
    form: str,
    takes: Mapping[str, Any],
    batch: int,
) -> dict[str, Any]:
    """What a call is given: each picture's values, in a list where there are several, and their modes.

    Args:
        values: argument -> value of each picture.
    """
    several = len(controls) > 1
    given: dict[str, Any] = {name: value if several else value[0] for name, value in values.items() if name in takes}
    modes = [control.mode for control in controls]
    if MODE not in takes or (modes == [None] and not is_union(controls)):
        return given
    each_item = _by_item(form) and batch > 1
    given[MODE] = modes if several or is_union(controls) else modes * batch if each_item else modes[0]
    return given


def _by_item(form: str) -> bool:
    """Whether a class takes a mode for each item of a batch: FLUX.1's that start from a picture."""
    return form.startswith("Flux") and form != "FluxControlNetPipeline"

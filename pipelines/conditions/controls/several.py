"""Several control pictures in one run: with which control models a form takes them, and in what it wants those."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from ....errors import InputError
from ..kinds import ControlNetKey
from ..taking import modular_class


def annotation(form: str) -> str:
    """What the signature of a form says of its control models, as text."""
    import diffusers

    return str(inspect.signature(getattr(diffusers, form).__init__).parameters["controlnet"].annotation)


def check_several(form: str, models: Sequence[ControlNetKey]) -> None:
    """Raise InputError where a form does not take these control models, one for each picture, in one run."""
    if len(models) < 2:
        return
    if modular_class(form) is not None or "Multi" not in annotation(form):
        raise InputError("controlnet", f"{len(models)} models", f"{form} takes one", "leave all but one out")
    if _one_for_all(form) is not None and len(set(models)) > 1:
        named = ", ".join(dict.fromkeys(model.shown for model in models))
        reason = f"{form} takes several control pictures with one and the same control model alone"
        raise InputError("controlnet", named, reason, "use one of them for every picture, or leave all but one out")


def networks(form: str, models: Sequence[Any]) -> Any:
    """What a form is made with: the control model, or several in a list or in the class that it wants them in.

    SDXL's unions read their pictures at once, Qwen-Image's reads one after the other.

    Args:
        models: one for each picture.
    """
    holder = _one_for_all(form)
    once = "Union" in form or holder is not None
    found = list({id(model): model for model in models}.values()) if once else list(models)
    if holder is not None and len(models) > 1:
        return holder(found)
    return found if len(found) > 1 else found[0]


def _one_for_all(form: str) -> Any:
    """The class that holds the one control model of several pictures, of a form that takes no list; else None."""
    import diffusers

    if modular_class(form) is not None or "list[" in (said := annotation(form)).lower():
        return None
    return next((getattr(diffusers, name) for name in re.findall(r"\w+", said) if "Multi" in name), None)

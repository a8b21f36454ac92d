"""One case: the pack's result held against a bare call of the same weights in the same process, with the same seeds."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ...optimizations.components import is_modular_class
from ...pipelines import sampling
from ...pipelines.families import Family
from ...pipelines.loading import loader
from ...pipelines.recognize import family_of
from ...pipelines.requested.before_load import check_before_load
from ...pipelines.requests import ready
from ...pipelines.results import refuse_without_picture
from ...pipelines.types import LoadedPipeline, LoadKey, PipelineHandle, SampleRequest
from .bare import again, call, line, quiet
from .cases import Case
from .compare import difference, is_equal
from .inputs import Translated, translate
from .options import try_options
from .subject import Subject


def try_case(case: Case, options: bool = True) -> dict[str, Any]:
    """What came of one case, JSON-compatible.

    Args:
        options: try every optimization too, where the case equals bare diffusers without.

    Returns:
        "state": "equal", "refused" (before anything is loaded), "differs", "fails", "bare fails" or "not built";
        "reason" of all but the first; and where they are known "loads", "given" (inputs handed over by hand, because no
        request carries them), "with_them" (what came of it then), "latent", "sound", "options".
    """
    started = time.perf_counter()
    found: dict[str, Any] = {"pipeline": case.pipeline, "source": case.source}
    try:
        bare = quiet(case.build())
        inputs = case.inputs()
    except Exception as error:  # noqa: BLE001 - whatever a case raises is its result
        return found | {"state": "not built", "reason": line(error)}
    found["pipeline"] = _public_name(type(bare))
    with tempfile.TemporaryDirectory() as folder:
        key, found["loads"] = _saved(bare, Path(folder))
        tried = _compared(bare, key, inputs, options)
        if tried["state"] in ("differs", "fails") and key is not None:
            # What a case sets on its models by hand (tiling, say) is not in a folder, and files round some numbers:
            # bare diffusers with that folder, or else the pack with the models as they were built.
            tried = _compared(again(folder, type(bare)) or bare, key, case.inputs(), options)
            if tried["state"] in ("bare fails", "fails"):
                tried = _compared(bare, None, case.inputs(), options)
    found |= tried
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def _saved(bare: Any, folder: Path) -> tuple[LoadKey | None, str]:
    """The key of the pipeline as a folder, None where bare diffusers cannot write one; and whether it can."""
    import diffusers

    if not hasattr(diffusers, type(bare).__name__):
        return None, "a class of the case's own"
    try:
        bare.save_pretrained(str(folder), **({"overwrite_modular_index": True} if is_modular_class(type(bare)) else {}))
    except Exception as error:  # noqa: BLE001
        return None, f"bare diffusers cannot save it: {line(error)}"
    return loader.resolve(str(folder), dtype="float32", device="cpu"), "yes"


def _public_name(pipeline_class: type) -> str:
    """Of the class of diffusers that a case's own class is made from."""
    import diffusers

    return next(each.__name__ for each in pipeline_class.__mro__ if hasattr(diffusers, each.__name__))


def _family(bare: Any) -> Family:
    """Of the class of diffusers that a case's own class is made from."""
    family, public = family_of(bare), _public_name(type(bare))
    return family if public in family.classes or family.known else replace(family, name=public, classes=(public,))


def _compared(bare: Any, key: LoadKey | None, inputs: dict[str, Any], options: bool) -> dict[str, Any]:
    family = _family(bare) if key is None else loader.family_of_key(key)
    asked = translate(bare, _family(bare), inputs)
    refusal = ""
    try:
        refuse_without_picture(family)
        request = ready(family, asked.request)
        if key is not None:
            check_before_load(key, request)
    except InputError as error:
        refusal = str(error)
    if refusal and not family.required:
        return {"state": "refused", "reason": refusal, "bare": _bare_state(bare, asked)}
    try:
        loaded = _loaded(bare, key)
    except Exception as error:  # noqa: BLE001
        return {"state": "fails", "loads": line(error), "reason": line(error), "bare": _bare_state(bare, asked)}
    extra = (*loaded.family.extra, *asked.further.items())
    required = tuple(name for name in loaded.family.required if name not in asked.further)
    loaded.family = replace(loaded.family, extra=extra, required=required)
    subject = Subject(loaded, PipelineHandle(loaded.key), asked)
    outcome = _against_bare(subject, bare, options)
    outcome |= {"given": sorted(asked.further)} if asked.further else {}
    if refusal:
        with_them = {"with_them": outcome["state"]} | ({"why": outcome["reason"]} if outcome.get("reason") else {})
        return {**outcome, **with_them, "state": "refused", "reason": refusal}
    return outcome


def _loaded(bare: Any, key: LoadKey | None) -> LoadedPipeline:
    if key is not None:
        return loader.load(key)
    return LoadedPipeline(LoadKey("memory", device="cpu"), bare, _family(bare), torch.device("cpu"), torch.float32)


def _against_bare(subject: Subject, bare: Any, options: bool) -> dict[str, Any]:
    """The pack's run, and the bare call with the inputs of the case, or else with the arguments that the pack gave."""
    with _noted_arguments() as noted:
        try:
            result, error = subject.run(), ""
        except Exception as raised:  # noqa: BLE001
            result, error = None, line(raised)
    expected, bare_error = call(bare, subject.asked.call)
    found: dict[str, Any] = {}
    if expected is None or (result is not None and not is_equal(result, expected)):
        own = {name: value for name, value in noted.items() if name != "callback_on_step_end"}
        if own:
            instead, own_error = call(bare, own)
            if instead is not None and (expected is None or (result is not None and is_equal(result, instead))):
                found["arguments"] = _differing(subject.asked.call, own)
                expected, bare_error = instead, own_error
    if expected is None:
        return {"state": "bare fails", "reason": bare_error, "ours": error or "runs"}
    if result is None:
        return found | {"state": "fails", "reason": error}
    family = subject.loaded.family
    found["latent"] = "none" if result.latent is None else "usable" if family.known else "its own layout"
    if result.audio is not None:
        found["sound"] = True
    if is_equal(result, expected):
        found["state"] = "equal"
        if options:
            found["options"] = try_options(subject, result)
        return found
    return found | {"state": "differs", "reason": difference(result, expected)}


def _bare_state(bare: Any, asked: Translated) -> str:
    made, error = call(bare, asked.call)
    return error if made is None else "runs"


@contextlib.contextmanager
def _noted_arguments() -> Iterator[dict[str, Any]]:
    """The arguments of the pack's call of the pipeline."""
    noted: dict[str, Any] = {}
    original = sampling.call_arguments

    def noting(pipeline: Any, family: Family, request: SampleRequest, **given: Any) -> dict[str, Any]:
        noted.update(call := original(pipeline, family, request, **given))
        return call

    sampling.call_arguments = noting
    try:
        yield noted
    finally:
        sampling.call_arguments = original


def _differing(asked: dict[str, Any], given: dict[str, Any]) -> dict[str, str]:
    """The arguments that the pack gave another value than the case."""
    aside = ("generator", "output_type")
    return {
        name: f"{_short(asked.get(name))} -> {_short(given.get(name))}"
        for name in sorted({*asked, *given} - {*aside})
        if _short(asked.get(name)) != _short(given.get(name))
    }


def _short(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, str | int | float | bool) else type(value).__name__

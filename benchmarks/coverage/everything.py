"""All cases of all sources, tried one after another."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...commands.libraries import prepare_libraries
from . import cases
from .running import Journal, Limits, within_limits
from .sources import diffusers_tests, modular, stand_ins, twins


def run(args: argparse.Namespace, hub: Path, journal: Path) -> dict[str, dict[str, Any]]:
    """Name of each case -> its result.

    Args:
        args: the command line's.
        hub: where stand-ins for what the cases take from the Hub are written.
        journal: where results are kept as they come.
    """
    prepare_libraries(verbose=False)
    torch.set_num_threads(1)
    import diffusers  # noqa: F401 - imported before the children are forked
    import transformers  # noqa: F401
    from diffusers.utils import logging

    from .tables import stored_cases, without_options
    from .trial import try_case

    logging.set_verbosity_error()
    _warm_up(options=not args.plain)
    kept = Journal(journal, args.resume)
    stored = stored_cases() if args.update else {}
    only_options = set() if args.plain else without_options(stored)
    limits = Limits(args.seconds, args.gib)
    waiting = []
    for each in _all(args, hub):
        named = args.only and any(name.lower() in f"{each.name} {each.pipeline}".lower() for name in args.only)
        if not named and (each.name in stored if args.update else args.only):
            if each.name in only_options and isinstance(each, cases.Case):
                waiting.append(each)
            continue
        result = kept.results.get(each.name)
        if result is None:
            result = {"pipeline": each.pipeline, "source": each.source}
            if isinstance(each, cases.NotBuilt):
                result |= {"state": "not built", "reason": each.reason}
            else:
                result |= within_limits(partial(try_case, each, options=False), limits)
            kept.add(each.name, result)
            print(f"{result['state']:12} {each.pipeline:45} {each.name}: {result.get('reason', '')}", flush=True)
        if result["state"] == "equal" and "options" not in result and isinstance(each, cases.Case):
            waiting.append(each)
    for case in () if args.plain else waiting:
        known = {**stored, **kept.results}[case.name]
        if "options" in known:
            continue
        result = within_limits(partial(try_case, case), limits)
        if result["state"] == "not finished":
            options = {"all": {"state": "not finished", "reason": result["reason"]}}
            result = known | {"options": options}
        kept.add(case.name, {"pipeline": case.pipeline, "source": case.source, **result})
        told = {name: found["state"] for name, found in result.get("options", {}).items()}
        print(f"{result['state']:12} {case.name}: {told}", flush=True)
    return {**stored, **kept.results}


def _warm_up(options: bool) -> None:
    """Import here, once, what every child would import for itself."""
    from diffusers.pipelines import auto_pipeline  # noqa: F401

    from ...pipelines import tiny
    from ...pipelines.recognize import family_of
    from .trial import try_case

    def inputs() -> dict[str, Any]:
        return {"prompt": "a fox", "num_inference_steps": 2, "width": 64, "height": 64}

    family_of("FluxImg2ImgPipeline")
    try_case(cases.Case("warm-up", "FluxPipeline", "", partial(tiny.build, "flux"), inputs), options)


def _all(args: argparse.Namespace, hub: Path) -> Iterator[cases.Case | cases.NotBuilt]:
    """Those of diffusers' own tests first, then the twins of every class, then the modular ones around them."""
    classical: list[cases.Case] = []
    sources = [twins.cases]
    if args.cases is not None:
        for name, reason in stand_ins.write_all(hub).items():
            print(f"no stand-in for {name}: {reason}")
        sources = [diffusers_tests.source(args.cases), *sources]
    for source in sources:
        for each in source():
            if isinstance(each, cases.Case):
                classical.append(each)
            yield each
    yield from modular.cases(classical)

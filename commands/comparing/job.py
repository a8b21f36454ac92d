"""From the options of `bench` to a comparison that is ready to run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ...callbacks import Callbacks
from ...comparison.choices import ALL, parse
from ...comparison.presets import preset
from ...optimizations.settings import CompileSettings, OptimizationSettings
from ..media import read_picture
from ..options import lora_specs, pipeline_handle, work_options

if TYPE_CHECKING:
    from ...comparison.run import ComparisonRun
    from ...optimizations.tuning.store import Store
    from ...pipelines.types import PipelineHandle, SampleRequest


def comparison_run(args: argparse.Namespace, callbacks: Callbacks, store: Store | None) -> ComparisonRun:
    """The comparison that the options describe; nothing is loaded yet.

    Raises:
        InputError, ModelFileError: it cannot be made so.
    """
    from ...comparison.run import ComparisonRun, with_picture
    from ...optimizations.tuning.candidates import Plan
    from ...pipelines.loading.loader import family_of_key
    from ...pipelines.requests import ready

    chosen = preset(args.preset) if args.preset else None
    loras = lora_specs(args)
    names, request = compared_names(args), sample_request(args)
    handle = replace(pipeline_handle(args, callbacks), loras=loras)
    family = family_of_key(handle.key)
    if chosen is not None:
        chosen.check(family.name)
    ready(family, with_picture(request, family))
    return ComparisonRun(
        handle,
        request,
        parse(names, lambda wanted: _working(wanted, handle)),
        Plan(runs=args.runs, time_limit=args.time_limit),
        base=OptimizationSettings.plain(compile=CompileSettings(backend=args.compile_backend)),
        store=store,
        combine_winners=ALL in names.split(","),
        notes=chosen.notes(loras) if chosen is not None else (),
    )


def compared_names(args: argparse.Namespace) -> str:
    if args.compare is None:
        return preset(args.preset).compare if args.preset else ALL
    return str(args.compare)


def sample_request(args: argparse.Namespace) -> SampleRequest:
    from ...pipelines.types import SampleRequest

    images = () if args.image is None else (read_picture(args.image, alpha=True),)
    request = SampleRequest(**work_options(args), images=images)
    return preset(args.preset).apply(request) if args.preset else request


def _working(names: Iterable[str], handle: PipelineHandle) -> list[str]:
    import torch

    from ...comparison.run import working

    return working(names, torch.device(handle.key.device), getattr(torch, handle.key.dtype))

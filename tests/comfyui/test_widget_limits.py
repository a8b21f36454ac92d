"""A number that a widget lets through is one that its node takes: both ends of every widget of the pack are tried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdiffusers.cluster.parallel.choice import PARALLEL_CHOICES
from fastdiffusers.engines.requests import CLIPS
from fastdiffusers.engines.settings import AUTO, DEFAULT_URL, parse_engine
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import CompileSettings, TilingSettings
from fastdiffusers.optimizations.tuning.candidates import Plan
from fastdiffusers.pipelines import lora
from fastdiffusers.pipelines.conditions.control import check_controls
from fastdiffusers.pipelines.conditions.image_prompts.keys import check_image_prompts
from fastdiffusers.pipelines.conditions.keyframes import check_keyframes
from fastdiffusers.pipelines.conditions.kinds import (
    Condition,
    ControlCondition,
    ControlNetKey,
    ImagePromptCondition,
    ImagePromptKey,
    KeyframeCondition,
)
from fastdiffusers.pipelines.families import FAMILIES, MAX_FRAMES, Family
from fastdiffusers.pipelines.loading.quantized_copy import quantize_folder
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.tiny import TINY_LORAS
from fastdiffusers.pipelines.types import LoraSpec, SampleRequest

Check = Callable[[Any], object]
Looks = Callable[[Family, SampleRequest], object]

PICTURE = torch.zeros(1, 8, 8, 3)
STRENGTHS = [("FastDiffusersSampler", "strength"), ("FastDiffusersKeyframeCondition", "strength")]
"""Refused at 0, and taken as near to it as anybody likes."""


def requested(families: Sequence[Family], field: str, unset: float | None = None) -> Check:
    """Looks at a field of a request, open at `unset`: refused where no family takes it."""

    def check(value: Any) -> None:
        request = SampleRequest("a fox", **({} if value == unset else {field: value}))
        if field == "strength":
            request = replace(request, images=(PICTURE[0],))
        refused: list[InputError] = []
        for family in families:
            try:
                check_request(family, request)
            except InputError as error:
                refused.append(error)
            else:
                return
        raise next((error for error in refused if error.name == field), refused[0])

    return check


def conditioned(check: Looks, family: str, make: Callable[[Any], Condition]) -> Check:
    """Looks at a field of a condition."""
    chosen = next(each for each in FAMILIES if each.name == family)
    return lambda value: check(chosen, SampleRequest("a fox", num_frames=MAX_FRAMES, conditions=(make(value),)))


def control(strength: float) -> Condition:
    return ControlCondition(PICTURE, ControlNetKey("a", "b", "FluxControlNetModel"), strength)


def ranked(value: int) -> None:
    """Refused first of all, before the source of the copy is looked at."""
    with pytest.raises(InputError) as error:
        quantize_folder("/nowhere", "int8", "/nowhere/copy", svd_rank=value)  # type: ignore[arg-type]
    if error.value.name == "svd_rank":
        raise error.value


def of_any_size(value: float) -> None:
    """The most is the model's to say, or there is none."""


def checks() -> dict[tuple[str, str], Check]:
    """(node, widget) -> what looks at its number, and raises InputError."""
    from fastdiffusers.nodes.cluster import cluster_of
    from fastdiffusers.nodes.vae_choices import VaeChoices

    open_at = {"guidance": -1.0, "guidance_2": -1.0, "seed": None, "strength": None}
    sampler, clips = [*FAMILIES, CLIPS], replace(CLIPS, max_frames=MAX_FRAMES)
    shared = ("steps", "width", "height", "num_frames", "guidance", "seed")
    more = ("guidance_2", "frame_rate", "max_sequence_length", "strength", "flow_shift")
    found: dict[tuple[str, str], Check] = {}
    for name in shared:
        found["FastDiffusersBenchmark", name] = requested([*FAMILIES, clips], name, open_at.get(name, 0))
    for name in (*shared, *more):
        found["FastDiffusersSampler", name] = requested(sampler, name, open_at.get(name, 0))
    for node in ("FastDiffusersVAEDecode", "FastDiffusersVAEEncode"):
        found[node, "tile_size"] = lambda value: VaeChoices(tile_size=value).for_pipeline()
        found[node, "overlap"] = lambda value: VaeChoices(tile_size=8192, overlap=value).for_pipeline()
        found[node, "temporal_slice"] = lambda value: VaeChoices(temporal_slice=value).for_video_vae()
        found[node, "memory_budget_gib"] = lambda value: VaeChoices(memory_budget_gib=value).for_video_vae()
    together = PARALLEL_CHOICES[1]
    prompt = ImagePromptKey("redux", "", "", redux=True)
    return found | {
        ("FastDiffusersSampler", "batch_size"): requested(sampler, "batch"),
        ("FastDiffusersBenchmark", "runs"): lambda value: Plan(runs=value),
        ("FastDiffusersBenchmark", "time_limit"): lambda value: Plan(time_limit=value or None),
        ("FastDiffusersLoadLora", "strength"): lambda value: lora.check_loras((LoraSpec(TINY_LORAS[0], value),)),
        ("FastDiffusersLoadEngine", "wait"): lambda value: parse_engine(DEFAULT_URL, AUTO, AUTO, "", value),
        ("FastDiffusersClusterSettings", "threads"): lambda value: cluster_of("local", together, value, 5.0),
        ("FastDiffusersClusterSettings", "wait"): lambda value: cluster_of("local", together, 0, value),
        ("FastDiffusersTorchCompileSettings", "headroom_gib"): lambda value: CompileSettings(headroom_gib=value),
        ("FastDiffusersTorchCompileSettings", "recompile_limit"): lambda value: CompileSettings(recompile_limit=value),
        ("FastDiffusersOptimizationSettings", "vae_tile_size"): lambda value: TilingSettings(tile_size=value),
        ("FastDiffusersOptimizationSettings", "vae_tile_overlap"): lambda value: TilingSettings(
            tile_size=8192, overlap=value
        ),
        ("FastDiffusersControlCondition", "strength"): conditioned(
            lambda family, request: check_controls(family, request, False, False),
            "flux",
            control,
        ),
        ("FastDiffusersControlCondition", "start"): of_any_size,  # below `end`, which is at most 1
        ("FastDiffusersControlCondition", "end"): of_any_size,
        ("FastDiffusersControlCondition", "mode"): of_any_size,
        ("FastDiffusersImagePromptCondition", "strength"): conditioned(
            check_image_prompts, "flux", lambda value: ImagePromptCondition(PICTURE, prompt, value)
        ),
        ("FastDiffusersKeyframeCondition", "frame"): conditioned(
            check_keyframes, "ltx2-t2v", lambda value: KeyframeCondition(PICTURE, value)
        ),
        ("FastDiffusersKeyframeCondition", "strength"): conditioned(
            check_keyframes, "ltx2-t2v", lambda value: KeyframeCondition(PICTURE, 0, value)
        ),
        ("FastDiffusersQuantize", "svd_rank"): ranked,
    }


def test_both_ends_of_every_number_are_taken_by_what_checks_it(core: Any) -> None:
    from fastdiffusers.nodes import FastDiffusersExtension

    nodes = asyncio.run(FastDiffusersExtension().get_node_list())
    numbers = {
        (schema.node_id, widget.id): widget
        for schema in (node.define_schema() for node in nodes)
        for widget in schema.inputs
        if widget.io_type in ("INT", "FLOAT")
    }
    known = checks()
    assert known.keys() == numbers.keys(), "a new widget gets its check here"
    refused = []
    for name, widget in numbers.items():
        low = 1e-6 if name in STRENGTHS and widget.min == 0.0 else widget.min
        for value in (low, widget.max):
            if name[1] == "strength" and name in STRENGTHS[:1] and value == low:
                continue  # how little depends on the steps
            try:
                known[name](value)
            except InputError as error:
                refused.append(f"{name}: {error}")
    assert not refused, "\n".join(refused)

"""Schedulers of modular pipelines: each name is refused in one line before the load, or runs, and so is all advice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modular_twins import MODULAR_CLASSES
from this_year import ANIMATED, save_model

from fastdiffusers.benchmarks.coverage.sources.modular_parts import PREPARED
from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import schedulers
from fastdiffusers.pipelines.arguments import form_class
from fastdiffusers.pipelines.conditions.check import deciding_inputs
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, VideoCondition
from fastdiffusers.pipelines.families import Family
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import family_of_key, resolve, scheduler_of_key
from fastdiffusers.pipelines.requested.before_load import check_before_load
from fastdiffusers.pipelines.requests import ready
from fastdiffusers.pipelines.schedulers import SCHEDULERS, SHORT_NAMES, compatible_schedulers
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

PLAIN = OptimizationSettings.plain()
PICTURE = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(1))
REQUEST = SampleRequest("a cat", steps=2, width=32, height=32, seed=5, decode=False)
NAMES = (*MODULAR_CLASSES, *PREPARED, "flux3")
MOVED = (VideoCondition(PICTURE.expand(5, -1, -1, -1)), ArgumentCondition("segment_frame_length", 5))
FURTHER: dict[str, dict[str, object]] = {
    ANIMATED: {"images": (PICTURE,), "conditions": MOVED, "max_sequence_length": 16}
}
"""What a model makes nothing without."""


def model(name: str, modular_folder: Callable[[str], Path], root: Path) -> str:
    """A modular pipeline's folder, or its name where it is embedded."""
    if name in MODULAR_CLASSES:
        folder = shutil.copytree(modular_folder(name), root / name)
        config = folder / "scheduler" / "scheduler_config.json"
        # Some schedulers take a second to be made for 1000 steps of training, and each is made many times.
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_train_timesteps": 100}))
        return str(folder)
    return str(save_model(name, root / name)) if name in PREPARED else f"tiny:{name}"


def request_for(family: Family) -> SampleRequest:
    # A latent alone is made only where something here decodes it.
    request = replace(REQUEST, num_frames=5 if family.video else None, decode=not family.known)
    return replace(request, images=(PICTURE,)) if family.images == "required" else request


def advised(error: InputError) -> list[str]:
    _, found, names = error.cure.partition(" or one of: ")
    return names.split(", ") if found else []


def refusal(handle: PipelineHandle, request: SampleRequest, scheduler: str) -> InputError | None:
    """What is said of a scheduler before the load."""
    try:
        check_before_load(handle.key, ready(family_of_key(handle.key), replace(request, scheduler=scheduler)))
    except InputError as error:
        return error
    return None


def check_all(source: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every scheduler that is not refused before the load; what is advised is among them."""
    handle = PipelineHandle(resolve(source, dtype="float32", device="cpu"))
    family = family_of_key(handle.key)
    request = replace(request_for(family), **changes)
    given, form = deciding_inputs(family, request), form_class(ready(family, request))
    fitting = compatible_schedulers(scheduler_of_key(handle.key), family, request.steps, form, given)
    monkeypatch.setattr(schedulers, "compatible_schedulers", lambda *args: fitting)  # the same for every refusal
    refused = {name: error for name in (*SHORT_NAMES, *SCHEDULERS) if (error := refusal(handle, request, name))}
    for error in refused.values():
        assert error.name == "scheduler"
        assert "\n" not in str(error)
        assert set(advised(error)) == set(fitting)
    accepted = set(SCHEDULERS) - refused.keys()
    assert accepted == set(fitting)
    for name in accepted:
        made = generate(handle, replace(request, scheduler=name), PLAIN).latent
        assert made is not None
        assert made.isfinite().all(), name
    for name in SHORT_NAMES.keys() - refused.keys():
        assert set(SHORT_NAMES[name]) & accepted, name


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_is_refused_before_the_load_or_runs(
    name: str, modular_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_all(model(name, modular_folder, tmp_path), FURTHER.get(name, {}), monkeypatch)


@pytest.mark.parametrize("name", ["flux", "qwenimage", "sdxl"])
def test_the_blocks_that_start_from_a_picture_are_asked_too(
    name: str, modular_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_all(model(name, modular_folder, tmp_path), {"images": (PICTURE,), "strength": 0.7, "steps": 4}, monkeypatch)


def test_a_scheduler_of_the_models_own_kind_is_not_advised_by_a_name_that_is_refused() -> None:
    seen: list[str] = []
    handle = PipelineHandle(resolve("tiny:minimax-h3", device="cpu"))
    request = replace(REQUEST, scheduler="euler")
    with pytest.raises(InputError) as error:
        generate(handle, request, PLAIN, Callbacks(lambda progress: seen.append(progress.stage)))
    assert "does not fit MiniMaxH3ModularPipeline" in str(error.value)
    assert error.value.cure == "use 'model default'"
    assert seen == []

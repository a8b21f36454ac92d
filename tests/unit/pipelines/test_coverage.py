"""The trial of every pipeline class: what it says is what happens, and what is published is what it found."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from other_pipelines import build

from fastdiffusers.benchmarks.coverage import options, tables
from fastdiffusers.benchmarks.coverage.cases import Case, NotBuilt, modular_classes, pipeline_classes
from fastdiffusers.benchmarks.coverage.conditions import condition_of, with_limits
from fastdiffusers.benchmarks.coverage.inputs import pictures_of
from fastdiffusers.benchmarks.coverage.running import Journal, Limits, within_limits
from fastdiffusers.benchmarks.coverage.sources import modular, twins
from fastdiffusers.benchmarks.coverage.tables import README
from fastdiffusers.benchmarks.coverage.trial import try_case
from fastdiffusers.pipelines import sampling
from fastdiffusers.pipelines.conditions.kinds import VideoCondition
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.types import SampleResult
from fastdiffusers.report import OptimizationReport

INPUTS = {"prompt": "a fox", "num_inference_steps": 2, "width": 32, "height": 32}


def case(name: str = "stable_diffusion", **inputs: Any) -> Case:
    return Case(name, name, "test", partial(build, name), lambda: {**INPUTS, **inputs})


def test_a_class_that_runs_is_equal_and_every_optimization_is_tried() -> None:
    found = try_case(case())
    assert (found["state"], found["loads"], found["pipeline"]) == ("equal", "yes", "StableDiffusionPipeline")
    assert set(found["options"]) == set(tables.OPTIONS)
    for name, tried in found["options"].items():
        assert tried["state"] in ("works", "declined"), (name, tried)
        assert tried["state"] == "works" or tried["reason"], name
    json.dumps(found)


def test_a_wrong_picture_and_a_failure_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = sampling.frames_of
    monkeypatch.setattr(sampling, "frames_of", lambda *args: original(*args) + 1e-6)
    found = try_case(case(), options=False)
    assert found["state"] == "differs"
    assert found["reason"].startswith("picture differs by up to ")

    def broken(*args: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(sampling, "frames_of", broken)
    assert try_case(case(), options=False)["reason"] == "no such kernel"


def test_rounding_that_a_pipeline_makes_much_of_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by rounding its weights otherwise, which leaves no trace; pictures of 8 bits may differ by a level."""
    monkeypatch.setattr(options, "TOLERANCE", -1.0)
    attention = try_case(case())["options"]["attention"]
    assert attention["state"] == "works"
    assert attention["reason"].startswith("weights that are rounded otherwise make ")
    monkeypatch.setattr(options, "SENSITIVE", -1.0)
    assert try_case(case())["options"]["attention"]["state"] == "fails"
    levels = (torch.arange(256) / 255).reshape(1, 1, 16, 16, 1)
    made = lambda frames: SampleResult(frames, None, None, (0,), [], {}, OptimizationReport())
    assert options._in_levels(made(levels))
    assert not options._in_levels(made(levels * 0.99))


def test_an_input_that_no_request_carries_is_handed_over_and_named() -> None:
    found = try_case(case(eta=numpy.float32(0.5)), options=False)
    assert (found["state"], found["given"]) == ("equal", ["eta"])
    found = try_case(case(eta=0.5), options=False)
    assert found["state"] == "equal"
    assert "given" not in found


def test_a_size_that_the_pack_brings_to_what_fits_is_named() -> None:
    found = try_case(case(width=33), options=False)
    assert (found["state"], found["arguments"]["width"]) == ("equal", "33 -> 32")


def inpainting(**inputs: Any) -> Case:
    inpaint = diffusers.StableDiffusionInpaintPipeline
    make = lambda: inpaint(**build("stable_diffusion").components, requires_safety_checker=False)
    return Case(
        "inpaint", "", "test", partial(build, make), lambda: {**INPUTS, "image": twins.picture("RGB"), **inputs}
    )


def test_a_mask_is_given_as_the_packs_own_condition() -> None:
    found = try_case(inpainting(mask_image=twins.picture("L"), strength=0.9), options=False)
    assert found["state"] == "equal"
    assert "given" not in found


def test_a_class_is_refused_before_it_loads_without_what_it_needs() -> None:
    found = try_case(inpainting(), options=False)
    assert found["state"] == "refused"
    assert "mask_image" in found["reason"]


def test_clips_control_pictures_and_keyframes_become_conditions() -> None:
    family = family_of("CogVideoXVideoToVideoPipeline")
    frames = [twins.picture("RGB")] * 3
    (clip,), call = condition_of("video", frames, family, pictures_of)
    assert isinstance(clip, VideoCondition)
    assert clip.frames.shape == (3, twins.EDGE, twins.EDGE, 3)
    assert len(call) == 3
    controls, _ = condition_of("control_image", frames[:2], family, pictures_of)
    further = {"controlnet_conditioning_scale": [0.5, 0.25], "control_guidance_end": 0.8, "eta": 1.0}
    held = with_limits(list(controls), further)
    assert [(each.strength, each.end) for each in held] == [(0.5, 0.8), (0.25, 0.8)]
    assert further == {"eta": 1.0}
    assert condition_of("prompt", "a fox", family, pictures_of) is None


def test_what_bare_diffusers_cannot_do_is_no_fault_of_the_pack() -> None:
    assert try_case(case(clip_skip=99), options=False)["state"] == "bare fails"
    broken = Case("x", "X", "test", lambda: 1 / 0, dict)
    assert try_case(broken)["state"] == "not built"


def endless() -> dict[str, Any]:
    while True:
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="without fork there are no limits")
def test_a_case_ends_at_its_limits_and_the_others_go_on() -> None:
    limits = Limits(0.5, 4)
    assert within_limits(lambda: {"state": "equal"}, limits) == {"state": "equal"}
    assert "0.5 s" in within_limits(lambda: time.sleep(60) or {}, limits)["reason"]
    assert "0.5 s" in within_limits(endless, limits)["reason"]
    assert "status 7" in within_limits(lambda: os._exit(7), limits)["reason"]
    assert "ZeroDivisionError" in within_limits(lambda: {"x": 1 / 0}, limits)["reason"]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path, resume=False)
    first.add("A", {"state": "equal"})
    first.add("A", {"state": "differs"})
    assert Journal(path, resume=True).results == {"A": {"state": "differs"}}
    assert Journal(path, resume=False).results == {}


def test_every_class_has_a_case_or_a_reason() -> None:
    names = [each.pipeline for each in twins.cases() if isinstance(each, Case | NotBuilt)]
    assert sorted(names) == sorted(pipeline_classes())
    assert len(names) > 200


def test_every_modular_class_has_a_case_or_a_reason_and_its_blocks_are_compared() -> None:
    found = {each.name: each for each in modular.cases(each for each in twins.cases() if isinstance(each, Case))}
    assert sorted(found) == sorted(modular_classes())
    for name in ("ZImageModularPipeline", "AnimaModularPipeline"):
        result = try_case(found[name], options=False)
        assert (result["state"], result["pipeline"], result["latent"]) == ("equal", name, "usable"), result
        assert "arguments" not in result


def test_a_twin_is_the_same_every_time() -> None:
    found = {each.name: each for each in twins.cases() if isinstance(each, Case)}
    for name in ("FluxImg2ImgPipeline", "StableDiffusionPipeline"):
        first, second = (found[name].build() for _ in range(2))
        assert type(first).__name__ == name
        for part in ("vae", "unet", "transformer"):
            if getattr(first, part, None) is not None:
                weights = (getattr(each, part).state_dict() for each in (first, second))
                assert all(torch.equal(*pair) for pair in zip(*(each.values() for each in weights), strict=True))


def test_a_class_that_a_newer_diffusers_adds_is_not_tried() -> None:
    cases = {"a": {"pipeline": "FluxPipeline", "state": "equal"}, "b": {"pipeline": "FluxPipeline", "state": "fails"}}
    classes = tables.by_class(cases, ["FluxPipeline", "NewestPipeline"])
    assert classes["NewestPipeline"] == {"state": "not tried"}
    assert classes["FluxPipeline"]["state"] == "fails"  # one good case does not hide a fault
    page = tables.as_page({"machine": {"versions": {"diffusers": "9"}}, "classes": classes})
    assert "| NewestPipeline | not tried |" in page
    assert "| not tried yet | 1 | Newest |" in tables.as_markdown(classes)


def test_what_is_published_is_what_was_found() -> None:
    data = json.loads(tables.TARGET.read_text(encoding="utf-8"))
    assert tables.by_class(data["cases"], data["classes"]) == data["classes"]
    text = README.read_text(encoding="utf-8")
    assert tables.readme_with(text, tables.as_markdown(data["classes"])) == text, "run: python . benchmarks.coverage"
    assert tables.PAGE.read_text(encoding="utf-8") == tables.as_page(data), "run: python . benchmarks.coverage"


def test_no_optimization_is_offered_where_the_coverage_shows_that_it_fails() -> None:
    """What failed for a class would have to be declined there, with what was found as its reason."""
    data = json.loads(tables.TARGET.read_text(encoding="utf-8"))
    tried = {
        f"{name} {option}": found
        for name, case in data["cases"].items()
        for option, found in (case.get("options") or {}).items()
    }
    assert len({name.split()[-1] for name in tried}) >= 6
    assert {name: found for name, found in tried.items() if found["state"] == "fails"} == {}
    assert all(found["reason"] for found in tried.values() if found["state"] == "declined")


def test_optimizations_that_nobody_tried_are_tried_with_the_fastest_case_of_their_class() -> None:
    equal = {"state": "equal", "pipeline": "A"}
    cases = {
        "slow": {**equal, "seconds": 2.0},
        "fast": {**equal, "seconds": 1.0},
        "of another kind": {**equal, "state": "refused", "seconds": 0.5},
        "tried": {**equal, "pipeline": "B", "options": {}},
        "also of B": {**equal, "pipeline": "B"},
        "without a time": {**equal, "pipeline": "C"},
    }
    assert tables.without_options(cases) == {"fast", "without a time"}

"""Arguments and inputs that a call does not read in a run are named, and change nothing."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import diffusers
import pytest
import torch
from other_pipelines import loaded

from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.conditions.arguments import unmet
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition
from fastdiffusers.pipelines.conditions.taking import call_takes
from fastdiffusers.pipelines.types import LoadedPipeline, SampleRequest, SampleResult

PICTURE = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
FROM_PICTURE: dict[str, Any] = {"images": (PICTURE,), "strength": 0.6}


def distilled_klein() -> Any:
    pipeline: Any = tiny.build("flux2-klein")
    pipeline.register_to_config(is_distilled=True)
    return pipeline


@pytest.fixture(scope="module")
def held() -> dict[str, LoadedPipeline]:
    made = {name: tiny.build(name) for name in ("sdxl", "qwenimage", "ltx2-t2v", "flux")}
    return {name: loaded(each) for name, each in {**made, "klein": distilled_klein()}.items()}


def made(pipeline: LoadedPipeline, values: dict[str, Any], fields: dict[str, Any]) -> SampleResult:
    arguments = tuple(ArgumentCondition(*each) for each in values.items())
    fields = {"width": 64, "height": 64, "steps": 4, "conditions": arguments, **fields}
    return sampling.run(pipeline, SampleRequest(**{"prompt": "a fox", **fields}))


CLIP: dict[str, Any] = {"num_frames": 9, "steps": 2}
ENHANCEMENT = "it acts with argument enable_prompt_enhancement"
IDLE: tuple[tuple[str, dict[str, Any], dict[str, Any], str], ...] = (
    ("qwenimage", {"guidance_scale": 9}, {}, "guidance_scale ignored: this model is not guidance-distilled"),
    ("qwenimage", {"guidance_scale": 9}, FROM_PICTURE, "guidance_scale ignored: this model is not guidance-distilled"),
    ("ltx2-t2v", {"system_prompt": "foo", "prompt_enhancement_seed": 5}, CLIP, ENHANCEMENT),
    ("ltx2-t2v", {"prompt_max_new_tokens": 7, "enable_prompt_enhancement": False}, CLIP, ENHANCEMENT),
    ("ltx2-t2v", {"min_seconds": 2.0}, CLIP, "min_seconds ignored: the run has a number of frames (num_frames)"),
    (
        "ltx2-t2v",
        {"spatio_temporal_guidance_blocks": [0]},
        CLIP | {"guidance": 1.0},
        "it acts with argument stg_scale or audio_stg_scale",
    ),
)
"""(model, arguments that do nothing, other fields, what is said)."""


@pytest.mark.parametrize(("name", "values", "fields", "said"), IDLE)
def test_an_argument_that_is_not_read_is_named_and_changes_nothing(
    name: str, values: dict[str, Any], fields: dict[str, Any], said: str, held: dict[str, LoadedPipeline]
) -> None:
    result, plain = (made(held[name], each, fields) for each in (values, {}))
    assert torch.equal(result.latent, plain.latent)
    notes = [note for note in result.report.notes if note.startswith("argument")]
    assert sum(said in note for note in notes) == len([each for each in values if values[each] is not False]), notes
    assert not [note for note in plain.report.notes if "argument" in note]


REPLACED: tuple[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str], ...] = (
    (
        "sdxl",
        {"denoising_start": 0.5},
        FROM_PICTURE,
        FROM_PICTURE | {"strength": 0.9},
        "strength ignored: argument denoising_start takes its place, at 0.5 of the steps.",
    ),
    (
        "klein",
        {},
        {"guidance": 9.0},
        {"guidance": 2.0},
        "guidance ignored: this model is distilled to run without one.",
    ),
)
"""(model, arguments, fields, the same fields with another value, what is said of it)."""


@pytest.mark.parametrize(("name", "values", "fields", "others", "said"), REPLACED)
def test_an_input_that_is_not_read_is_named_and_changes_nothing(
    name: str,
    values: dict[str, Any],
    fields: dict[str, Any],
    others: dict[str, Any],
    said: str,
    held: dict[str, LoadedPipeline],
) -> None:
    result, other = made(held[name], values, fields), made(held[name], values, others)
    assert torch.equal(result.latent, other.latent)
    assert result.report.notes.count(said) == 1, result.report.notes


ACTING: tuple[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    ("sdxl", {}, FROM_PICTURE, FROM_PICTURE | {"strength": 0.9}),
    ("flux", {}, {"guidance": 9.0}, {"guidance": 1.0}),
    ("qwenimage", {}, {"guidance": 9.0}, {"guidance": 2.0}),
)
"""(model, arguments, fields, the same fields with another value that acts)."""


@pytest.mark.parametrize(("name", "values", "fields", "others"), ACTING)
def test_what_acts_is_not_named(
    name: str,
    values: dict[str, Any],
    fields: dict[str, Any],
    others: dict[str, Any],
    held: dict[str, LoadedPipeline],
) -> None:
    result, other = made(held[name], values, fields), made(held[name], values, others)
    assert not torch.equal(result.latent, other.latent)
    assert not [note for note in result.report.notes if "ignored" in note]


def test_guidance_that_is_not_asked_for_is_not_named(held: dict[str, LoadedPipeline]) -> None:
    assert not [note for note in made(held["klein"], {}, {}).report.notes if "ignored" in note]


def conditional(name: str, argument: str) -> set[str]:
    """The conditions under which the call of a class reads an argument, "" where it reads it under none."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(diffusers, name).__call__)))
    found: set[str] = set()

    def walk(node: ast.AST, under: str) -> None:
        if isinstance(node, ast.Call) and "check_inputs" in ast.unparse(node.func):
            return
        if isinstance(node, ast.Name) and node.id == argument and isinstance(node.ctx, ast.Load):
            found.add(under)
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.If) and child in (*node.body, *node.orelse)
            walk(child, f"{under} {ast.unparse(node.test)}".strip() if inside else under)  # type: ignore[attr-defined]

    walk(ast.parse(source), "")
    return found


@pytest.mark.parametrize(
    ("argument", "name"), [(argument, name) for argument, names in unmet.UNREAD.items() for name in names]
)
def test_what_no_call_reads_is_read_nowhere(argument: str, name: str) -> None:
    assert argument in call_takes(name)
    assert conditional(name, argument) == set()


def test_what_acts_beside_another_is_read_under_it_alone() -> None:
    seen = set()
    for name in dir(diffusers):
        kind = getattr(diffusers, name)
        if "Pipeline" not in name or not isinstance(kind, type) or not callable(kind):
            continue
        takes = call_takes(name)
        for argument, other in {**unmet._BESIDE, **unmet._WITHOUT}.items():
            if argument in takes and other in takes:
                assert all(other in under for under in conditional(name, argument)), (name, argument)
                seen.add(argument)
    assert seen == {*unmet._BESIDE, *unmet._WITHOUT}


def test_what_is_read_while_a_prompt_is_encoded_is_named_beside_an_encoded_one(held: dict[str, LoadedPipeline]) -> None:
    embeds, _, pooled, _ = held["sdxl"].pipeline.encode_prompt("a fox", do_classifier_free_guidance=False)
    given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    result, plain = (made(held["sdxl"], given | more, {"prompt": ""}) for more in ({"clip_skip": 1}, {}))
    assert torch.equal(result.latent, plain.latent)
    assert "argument clip_skip ignored: the texts are encoded already." in result.report.notes
    said = made(held["sdxl"], {"clip_skip": 1}, {}).report.notes
    assert not [note for note in said if "clip_skip" in note]


@pytest.mark.parametrize(
    ("name", "argument", "more", "fields", "said"),
    [
        ("SemanticStableDiffusionPipeline", "edit_threshold", {}, {"guidance": 7.0}, "with argument editing_prompt"),
        ("SemanticStableDiffusionPipeline", "edit_threshold", {"editing_prompt": "x"}, {"guidance": 7.0}, ""),
        ("SemanticStableDiffusionPipeline", "editing_prompt", {}, {"guidance": 1.0}, "guidance = 1 switches it off"),
        ("StableDiffusionPAGPipeline", "pag_adaptive_scale", {}, {}, "with argument pag_scale above 0"),
        ("HeliosPipeline", "image_noise_sigma_min", {}, {}, "noise into a picture or a clip, and none is given"),
        ("HeliosPipeline", "image_noise_sigma_min", {}, FROM_PICTURE, ""),
        ("MarigoldDepthPipeline", "ensembling_kwargs", {}, {}, "with argument ensemble_size above 1"),
        ("MarigoldDepthPipeline", "ensembling_kwargs", {"ensemble_size": 5}, {}, ""),
        ("MarigoldDepthPipeline", "resample_method_output", {"match_input_resolution": False}, {}, "is off"),
        ("QwenImageLayeredPipeline", "use_en_prompt", {}, {}, "and there is a prompt"),
        ("OmniGenPipeline", "img_guidance_scale", {}, {}, "it guides by pictures, and there are none"),
    ],
)
def test_other_classes(name: str, argument: str, more: dict[str, Any], fields: dict[str, Any], said: str) -> None:
    assert argument in call_takes(name)
    made_off = {"do_perturbed_attention_guidance": False} if "PAG" in name else {}
    pipeline = type(name, (), made_off)()
    given = {argument: 0.5, **more}
    found = unmet.unmet(pipeline, argument, given, SampleRequest(**{"prompt": "a fox", **fields}))
    assert said in found
    assert bool(found) is bool(said)

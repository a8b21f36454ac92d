"""Control models: a component of a form around the cached pipeline's own models, equal to bare diffusers."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from test_masks import MASK, held

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.optimizations.apply import working_memory
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import form_for, to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.blend import resized_to_latent
from fastdiffusers.pipelines.conditions.control import accepted_models, control_form
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.kinds import ControlCondition, MaskCondition
from fastdiffusers.pipelines.decoding import pipeline_vae
from fastdiffusers.pipelines.generate import generate, workload_of
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request, ready
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

PICTURE = torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(1))
EDGES = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
FAMILIES = tuple(tiny.CONTROLNET_CLASSES)
SEED = 3


def control(family: str, **changes: Any) -> ControlCondition:
    given = {"image": EDGES, "model": resolve_controlnet(f"tiny:{family}"), "strength": 0.8}
    return ControlCondition(**{**given, **changes})


def request(family: str, *others: Any, **changes: Any) -> SampleRequest:
    values = {"steps": 3, "width": 96, "height": 64, "seed": SEED, "guidance": 2.5}
    conditions = changes.pop("conditions", (control(family), *others))
    return SampleRequest("a ship", **{**values, "conditions": conditions, **changes})


def bare(family: str, form: str, nets: int = 1, **changes: Any) -> torch.Tensor:
    """Frames [B, T, H, W, 3] of diffusers' own control class, with models of its own."""
    pipeline: Any = tiny.build(family)
    model = [tiny.build_controlnet(family) for _ in range(nets)]
    wanted = inspect.signature(getattr(diffusers, form).__init__).parameters
    parts = {name: part for name, part in pipeline.components.items() if name in wanted}
    several: Any = diffusers.QwenImageMultiControlNetModel(model[:1]) if "Qwen" in form and nets > 1 else model
    made = getattr(diffusers, form)(**parts, controlnet=several if nets > 1 else model[0])
    takes = inspect.signature(made.__call__).parameters
    image = "control_image" if "control_image" in takes else "image"
    arguments = {
        "prompt": "a ship",
        image: [to_pil(EDGES[0])] * nets if nets > 1 else to_pil(EDGES[0]),
        "controlnet_conditioning_scale": [0.8] * nets if nets > 1 else 0.8,
        "num_inference_steps": 3,
        "width": 96,
        "height": 64,
        "generator": [torch.Generator().manual_seed(SEED)],
        "output_type": "pt",
        "true_cfg_scale" if "Qwen" in form else "guidance_scale": 2.5,
        "negative_prompt": " " if "Qwen" in form else None,
    }
    arguments = {name: value for name, value in arguments.items() if name in takes}
    torch.manual_seed(SEED)  # SD3's form encodes its control picture with torch's own random numbers
    output = made(**{**arguments, **changes})[0]
    return output.unsqueeze(1).permute(0, 1, 3, 4, 2)


def family_with_form(family: str, task: str = "") -> str:
    form = control_form(family_of(tiny.PIPELINE_CLASSES[family]), task)
    if not form:
        pytest.skip(f"this diffusers has no control form of {family}")
    return form


@pytest.mark.parametrize("family", FAMILIES)
def test_a_control_picture_steers_as_in_bare_diffusers(family: str) -> None:
    form = family_with_form(family)
    pipeline = held(tiny.build(family))
    ours = sampling.run(pipeline, request(family))
    assert torch.equal(ours.frames, bare(family, form))
    without = sampling.run(pipeline, request(family, conditions=()))
    assert not torch.allclose(ours.frames, without.frames, atol=1e-4), "it steers nothing"
    assert ours.report.facts["control"] == f"tiny:{family} 0.8, 0 to 1 of the steps"
    assert torch.equal(sampling.run(pipeline, request(family)).frames, ours.frames)


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_it_starts_from_a_picture_and_repaints_too(family: str) -> None:
    pipeline = held(tiny.build(family))
    start = {"images": (PICTURE,), "strength": 0.7}
    ours = sampling.run(pipeline, request(family, **start))
    call = {"image": to_pil(PICTURE), "control_image": to_pil(EDGES[0]), "strength": 0.7}
    assert torch.equal(ours.frames, bare(family, family_with_form(family, "Img2Img"), **call))
    masked = sampling.run(pipeline, request(family, MaskCondition(MASK), **start))
    call["mask_image"] = Image.fromarray((MASK[0] * 255).byte().numpy(), mode="L")
    assert torch.equal(masked.frames, bare(family, family_with_form(family, "Inpaint"), **call))


@pytest.mark.parametrize("family", ["sd3", "qwenimage", "zimage"])
def test_with_a_mask_and_no_such_form_the_latent_is_blended(family: str) -> None:
    family_with_form(family)
    pipeline = held(tiny.build(family))
    result = sampling.run(pipeline, request(family, MaskCondition(MASK), images=(PICTURE,)))
    assert any("has no inpaint form with a control model" in note for note in result.report.notes)
    kept = pipeline_vae.encode(pipeline, PICTURE[None])
    cells = resized_to_latent(MASK, tuple(kept.shape))
    torch.testing.assert_close(result.latent[cells == 0], kept[cells == 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_start_and_end_are_applied(family: str) -> None:
    pipeline = held(tiny.build(family))
    form = family_with_form(family)
    ours = sampling.run(pipeline, request(family, conditions=(control(family, start=0.3, end=0.9),)))
    assert torch.equal(ours.frames, bare(family, form, control_guidance_start=0.3, control_guidance_end=0.9))
    none = sampling.run(pipeline, request(family, conditions=(control(family, strength=0.0),)))
    without = sampling.run(pipeline, request(family, conditions=()))
    assert torch.equal(none.frames, without.frames)
    assert none.report.notes == [
        f"control_image for tiny:{family} left out: control strength is 0.",
        *without.report.notes,
    ]


def test_at_strength_0_a_control_picture_is_left_out_before_the_load_and_the_others_stay() -> None:
    """The forms of Flux and Qwen-Image would take random numbers of the run to encode it."""
    stays, family = control("qwenimage"), family_of("QwenImagePipeline")
    asked = request("qwenimage", conditions=(stays, control("qwenimage", strength=0.0)))
    assert ready(family, asked).conditions == (stays,)
    for wrong, words in (({"start": 0.5, "end": 0.5}, "start < end"), ({"image": EDGES[0]}, "batch, height")):
        with pytest.raises(InputError, match=words):
            ready(family, request("qwenimage", conditions=(control("qwenimage", strength=0.0, **wrong),)))


@pytest.mark.parametrize("family", ["flux", "sdxl", "sd3", "qwenimage"])
def test_several_control_pictures_add_up_as_in_bare_diffusers(family: str) -> None:
    pipeline = held(tiny.build(family))
    ours = sampling.run(pipeline, request(family, control(family)))
    theirs = bare(family, family_with_form(family), nets=2)
    torch.testing.assert_close(ours.frames, theirs, atol=1e-6, rtol=0)


def test_different_control_models_where_one_reads_all_pictures_are_refused_before_the_load() -> None:
    other = replace(resolve_controlnet("tiny:qwenimage"), source="other")
    asked = request("qwenimage", control("qwenimage", model=other))
    with pytest.raises(InputError, match=r"tiny:qwenimage, other.*one and the same control model"):
        check_request(family_of("QwenImagePipeline"), asked)
    check_request(family_of("QwenImagePipeline"), request("qwenimage", control("qwenimage")))


@pytest.mark.parametrize(("family", "scheduler"), [("sdxl", "model default"), ("sd3", "model default"), ("sd3", "lcm")])
def test_a_batch_has_a_seed_for_each_item(family: str, scheduler: str) -> None:
    """SD3's form samples what its control picture is encoded to without a generator, and flow's LCM its noise."""
    pipeline = held(tiny.build(family))
    asked = request(family, batch=2, conditions=(control(family),) * 2, scheduler=scheduler)
    both = sampling.run(pipeline, asked)
    one = sampling.run(pipeline, replace(asked, batch=1, seed=SEED + 1))
    torch.testing.assert_close(both.frames[1], one.frames[0], atol=1e-4, rtol=0)
    assert "encode" not in vars(pipeline.pipeline.vae)


# --- one pipeline, no copies ------------------------------------------------------------------------------------------


def test_the_control_model_comes_to_the_cached_pipeline_and_nothing_is_loaded_twice() -> None:
    plain, key = OptimizationSettings.plain(), loader.resolve("tiny:flux")
    handle = PipelineHandle(key)
    without = generate(handle, request("flux", conditions=()), plain)
    pipeline = CACHE.peek(key)
    steered = generate(handle, request("flux"), plain)
    (model,) = pipeline.controlnets.values()
    changed = generate(handle, request("flux", conditions=(control("flux", strength=0.3),)), plain)
    assert CACHE.peek(key) is pipeline
    assert list(pipeline.controlnets.values()) == [model], "another strength loads nothing"
    assert not torch.equal(changed.frames, steered.frames)
    form = form_for(pipeline.pipeline, pipeline.family, request("flux"), [model])
    for name, part in pipeline.pipeline.components.items():
        assert getattr(form, name) is part
    again = generate(handle, request("flux", conditions=()), plain)
    assert torch.equal(without.frames, again.frames)
    assert pipeline.controlnets == {}, "it is freed by the first run without it"


def test_z_image_lends_its_layers_for_the_run_alone() -> None:
    family_with_form("zimage")
    pipeline = held(tiny.build("zimage"))
    sampling.run(pipeline, request("zimage"))
    (model,) = pipeline.controlnets.values()
    assert model.t_embedder is None
    assert pipeline.pipeline.transformer.t_embedder is not None


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_gives_what_the_embedded_one_gives(tmp_path: Path) -> None:
    tiny.build_controlnet("sdxl").save_pretrained(tmp_path / "canny")
    from_folder = control("sdxl", model=resolve_controlnet(str(tmp_path / "canny")))
    handle = PipelineHandle(loader.resolve("tiny:sdxl"))
    ours = generate(handle, request("sdxl", conditions=(from_folder,)), OptimizationSettings.plain())
    embedded = generate(handle, request("sdxl"), OptimizationSettings.plain())
    assert torch.equal(ours.frames, embedded.frames)


def test_an_edited_folder_is_another_model(tmp_path: Path) -> None:
    model = tiny.build_controlnet("flux")
    model.save_pretrained(tmp_path)
    before = resolve_controlnet(str(tmp_path))
    with torch.no_grad():
        model.x_embedder.weight.add_(1.0)
    model.save_pretrained(tmp_path)
    assert resolve_controlnet(str(tmp_path)) != before


def test_a_control_model_for_a_model_of_other_sizes_is_refused_before_the_load(tmp_path: Path) -> None:
    tiny.save("sdxl", tmp_path / "model")
    tiny.build_controlnet("sdxl").save_pretrained(tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": 768}))
    handle = PipelineHandle(loader.resolve(str(tmp_path / "model")))
    asked = request("sdxl", conditions=(control("sdxl", model=resolve_controlnet(str(tmp_path / "other"))),))
    with pytest.raises(InputError, match="cross_attention_dim is 768"):
        generate(handle, asked, OptimizationSettings.plain())
    assert CACHE.peek(handle.key) is None


@pytest.mark.parametrize("what", ["nothing", "config", "another model", "pickle"])
def test_what_is_no_control_model_is_one_line(tmp_path: Path, what: str) -> None:
    if what != "nothing":
        name = "AutoencoderKL" if what == "another model" else "FluxControlNetModel"
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    if what == "pickle":
        (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelFileError) as caught:
        resolve_controlnet(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "conditions", "changes", "words"),
    [
        ("FluxPipeline", ["sdxl"], {}, "FluxControlNetModel"),
        ("StableDiffusionXLPipeline", ["flux"], {}, "made for another kind of model"),
        ("WanPipeline", ["flux"], {}, "no form that takes a control model"),
        ("StableDiffusion3Pipeline", ["sd3"], {"strength": 0.5, "images": (PICTURE,)}, "starts from a picture"),
        ("FluxPipeline", ["flux"], {"images": (PICTURE,)}, "no pictures beside it"),
    ],
)
def test_what_a_model_does_not_take_is_refused_before_the_load(
    name: str, conditions: list[str], changes: dict[str, Any], words: str
) -> None:
    asked = SampleRequest("a ship", conditions=tuple(control(family) for family in conditions), **changes)
    with pytest.raises(InputError, match=words) as caught:
        check_request(family_of(name), asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "Load ControlNet"),
        ({"strength": 11.0}, "between 0 and 10"),
        ({"strength": float("nan")}, "between 0 and 10"),
        ({"start": 0.5, "end": 0.5}, "start < end"),
        ({"image": EDGES[0]}, "batch, height, width"),
    ],
)
def test_bad_values_are_one_line(changes: dict[str, Any], words: str) -> None:
    asked = SampleRequest("a ship", conditions=(replace(control("flux"), **changes),))
    with pytest.raises(InputError, match=words):
        check_request(family_of("FluxPipeline"), asked)


def test_a_control_picture_of_another_size_is_scaled_and_it_is_said() -> None:
    asked = request("sdxl", conditions=(replace(control("sdxl"), image=torch.zeros(1, 32, 48, 3)),))
    notes = check_request(family_of("StableDiffusionXLPipeline"), asked)
    assert "control_image: scaled from 48x32 to 96x64." in notes


def test_every_control_form_says_which_models_it_takes() -> None:
    found = 0
    for name in dir(diffusers):
        if name.endswith("Pipeline") and (form := control_form(family_of(name))):
            assert accepted_models(form), form
            found += 1
    assert found >= 6


def test_a_cancel_and_another_memory_mode_leave_no_trace() -> None:
    class Stopped(Exception):
        pass

    def cancel(progress: Progress) -> None:
        if (progress.stage, progress.done) == ("denoise", 1):
            raise Stopped

    plain, handle = OptimizationSettings.plain(), PipelineHandle(loader.resolve("tiny:sdxl", device="cpu"))
    asked = request("sdxl", MaskCondition(MASK), images=(PICTURE,))
    whole = generate(handle, asked, plain)
    with pytest.raises(Stopped):
        generate(handle, asked, plain, Callbacks(on_progress=cancel))
    assert torch.equal(generate(handle, asked, plain).frames, whole.frames)
    moved = generate(handle, asked, replace(plain, memory_mode="group_offload_block"))
    assert moved.report["memory_mode"].applied == "group_offload_block"
    assert torch.equal(moved.frames, whole.frames)


@pytest.mark.parametrize("task", ["", "Img2Img"])
@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_it_is_said_in_how_many_steps_it_acts(family: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted as often as the control model is called with a strength."""
    family_with_form(family, task)
    pipeline, model, scales = held(tiny.build(family)), type(tiny.build_controlnet(family)), []
    forward = model.forward

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        scales.append(named["conditioning_scale"])
        return forward(self, *args, **named)

    monkeypatch.setattr(model, "forward", counted)
    start: dict[str, Any] = {"images": (PICTURE,), "strength": 0.7} if task else {}
    asked = request(family, conditions=(control(family, start=0.3, end=0.9),), steps=7, **start)
    result = sampling.run(pipeline, asked)
    acts = sum(bool(scale) for scale in scales)
    assert 0 < acts < len(scales)
    assert result.report.facts["control"] == f"tiny:{family} 0.8, 0.3 to 0.9 of the steps, {acts} of {len(scales)}"


@pytest.mark.parametrize("changes", [{"end": 0.2}, {"start": 0.8}, {"start": 0.3, "end": 0.7}])
def test_a_control_model_that_would_act_in_no_step_is_refused(changes: dict[str, float]) -> None:
    asked = request("sdxl", conditions=(control("sdxl", **changes),), steps=4)
    if changes == {"start": 0.3, "end": 0.7}:
        check_request(family_of("StableDiffusionXLPipeline"), replace(asked, steps=5))
    with pytest.raises(InputError, match="of 4 steps none lies between start and end"):
        check_request(family_of("StableDiffusionXLPipeline"), asked)


def test_the_memory_check_counts_a_control_models_weights(tmp_path: Path) -> None:
    model = tiny.build_controlnet("sdxl")
    model.save_pretrained(tmp_path / "net")
    size = sum(parameter.nbytes for parameter in model.parameters())
    loaded = held(tiny.build("sdxl"))
    steered = control("sdxl", model=resolve_controlnet(str(tmp_path / "net")))
    asked = ready(loaded.family, request("sdxl", conditions=(steered,)))
    workload = workload_of(loaded, asked)
    assert workload.further_weights == size
    without = working_memory(loaded.pipeline, replace(workload, further_weights=0))
    assert working_memory(loaded.pipeline, workload) == without + size
    sampling.run(loaded, asked)
    assert workload_of(loaded, asked).further_weights == 0, "they are where the pipeline computes"

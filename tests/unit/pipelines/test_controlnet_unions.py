"""ControlNet Unions: which kind of picture each is reaches the control model, as in bare diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from control_unions import MODES, union, union_key
from PIL import Image
from test_controlnets import EDGES, PICTURE, control, request
from test_masks import MASK, held

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.kinds import ArgumentCondition, ControlCondition, ControlNetKey, MaskCondition
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request

if not hasattr(diffusers, "StableDiffusionXLControlNetUnionPipeline"):
    pytest.skip("this diffusers has no ControlNet Union of SDXL", allow_module_level=True)
OTHER = EDGES.flip(1)
START = {"images": (PICTURE,), "strength": 0.7}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ControlNetKey]:
    root = tmp_path_factory.mktemp("unions")
    return lambda family: union_key(family, root / family)


def bare(family: str, form: str, **changes: Any) -> torch.Tensor:
    """Frames of diffusers' own control class."""
    wanted = inspect.signature(getattr(diffusers, form)).parameters
    parts = {name: part for name, part in tiny.build(family).components.items() if name in wanted}
    made: Any = getattr(diffusers, form)(**parts, controlnet=changes.pop("nets", None) or union(family))
    call = {"num_inference_steps": 3, "width": 96, "height": 64, "guidance_scale": 2.5, "output_type": "pt"}
    call |= {"prompt": "a ship", "controlnet_conditioning_scale": 0.8, "control_image": to_pil(EDGES[0])}
    output = made(**{**call, "generator": [torch.Generator().manual_seed(3)], **changes})[0]
    return output.unsqueeze(1).permute(0, 1, 3, 4, 2)


FORMS = {"flux": "FluxControlNet", "sdxl": "StableDiffusionXLControlNetUnion"}


@pytest.mark.parametrize("family", FORMS)
def test_a_mode_reaches_the_control_model(family: str, key: Callable[[str], ControlNetKey]) -> None:
    pipeline = held(tiny.build(family))
    made = [
        sampling.run(pipeline, request(family, conditions=(control(family, model=key(family), mode=mode),), **more))
        for mode, more in ((0, {}), (2, {}), (1, START))
    ]
    assert torch.equal(made[1].frames, bare(family, f"{FORMS[family]}Pipeline", control_mode=2))
    assert not torch.allclose(made[0].frames, made[1].frames, atol=1e-5)
    call = {"image": to_pil(PICTURE), "strength": 0.7, "control_mode": 1}
    assert torch.equal(made[2].frames, bare(family, f"{FORMS[family]}Img2ImgPipeline", **call))
    masked = request(family, conditions=(control(family, model=key(family), mode=1), MaskCondition(MASK)), **START)
    call["mask_image"] = Image.fromarray((MASK[0] * 255).byte().numpy(), mode="L")
    theirs = bare(family, f"{FORMS[family]}InpaintPipeline", **call)
    assert torch.equal(sampling.run(pipeline, masked).frames, theirs)


@pytest.mark.parametrize("family", FORMS)
def test_several_pictures_have_a_mode_each(family: str, key: Callable[[str], ControlNetKey]) -> None:
    """One of SDXL reads them together; those of FLUX.1 add up."""
    first = control(family, model=key(family), mode=0)
    both = (first, ControlCondition(OTHER, key(family), 0.4, mode=2))
    ours = sampling.run(held(tiny.build(family)), request(family, conditions=both))
    call = {
        "control_image": [to_pil(EDGES[0]), to_pil(OTHER[0])],
        "control_mode": [0, 2],
        "controlnet_conditioning_scale": [0.8, 0.4],
    }
    nets = [union(family)] * 2 if family == "flux" else None
    theirs = bare(family, f"{FORMS[family]}Pipeline", nets=nets, **call)
    torch.testing.assert_close(ours.frames, theirs, atol=1e-6, rtol=0)


def test_two_unions_of_sdxl_read_a_picture_each(tmp_path: Path) -> None:
    keys = [union_key("sdxl", tmp_path / name) for name in ("one", "two")]
    both = tuple(
        ControlCondition(picture, key, 0.5, mode=mode)
        for picture, key, mode in zip((EDGES, OTHER), keys, (1, 2), strict=True)
    )
    ours = sampling.run(held(tiny.build("sdxl")), request("sdxl", conditions=both))
    call = {
        "control_image": [to_pil(EDGES[0]), to_pil(OTHER[0])],
        "control_mode": [1, 2],
        "controlnet_conditioning_scale": [0.5, 0.5],
        "control_guidance_start": [0.0, 0.0],
        "control_guidance_end": [1.0, 1.0],
    }
    theirs = bare("sdxl", "StableDiffusionXLControlNetUnionPipeline", nets=[union("sdxl"), union("sdxl")], **call)
    torch.testing.assert_close(ours.frames, theirs, atol=1e-6, rtol=0)
    three = (*both, both[0])
    with pytest.raises(InputError, match="several pictures for one ControlNet Union, or one for each"):
        check_request(family_of("StableDiffusionXLPipeline"), request("sdxl", conditions=three))


def test_each_picture_of_a_batch_has_the_mode(key: Callable[[str], ControlNetKey]) -> None:
    pipeline, steered = held(tiny.build("flux")), (control("flux", model=key("flux"), mode=1),)
    both = sampling.run(pipeline, request("flux", conditions=steered, batch=2, **START))
    one = sampling.run(pipeline, request("flux", conditions=steered, seed=4, **START))
    torch.testing.assert_close(both.frames[1], one.frames[0], atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="makes one picture a run"):
        sampling.run(pipeline, request("flux", conditions=steered * 2, batch=2, **START))


def test_several_plain_ones_start_from_a_picture() -> None:
    """FLUX.1's form for that runs none of several without a mode for each, which the pack gives."""
    two = (control("flux"), control("flux"))
    ours = sampling.run(held(tiny.build("flux")), request("flux", conditions=two, **START))
    nets = [tiny.build_controlnet("flux")] * 2
    call = {"control_image": [to_pil(EDGES[0])] * 2, "controlnet_conditioning_scale": [0.8, 0.8]}
    start = {"image": to_pil(PICTURE), "strength": 0.7, "control_mode": [None, None]}
    theirs = bare("flux", "FluxControlNetImg2ImgPipeline", nets=nets, **call, **start)
    torch.testing.assert_close(ours.frames, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FORMS)
def test_a_union_in_a_file_has_its_modes(family: str, tmp_path: Path) -> None:
    model = union(family)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    found = resolve_controlnet(str(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert (found.class_name, found.modes) == (type(model).__name__, MODES)
    from fastdiffusers.pipelines.conditions.controls.files import check_tensors, configuration

    pipeline: Any = tiny.build(family)
    denoiser = pipeline.unet if family == "sdxl" else pipeline.transformer
    config = configuration(found, denoiser.config)
    check_tensors(found, config)


@pytest.mark.parametrize(
    ("family", "mode", "words"),
    [
        ("sdxl", None, "reads 3 kinds of pictures, and nothing says which"),
        ("flux", None, "reads 3 kinds of pictures, and nothing says which"),
        ("sdxl", 3, "Use 0 to 2"),
        ("flux", -1, "Use 0 to 2"),
    ],
)
def test_a_mode_that_a_control_model_has_not_is_refused(
    family: str, mode: int | None, words: str, key: Callable[[str], ControlNetKey]
) -> None:
    asked = request(family, conditions=(control(family, model=key(family), mode=mode),))
    with pytest.raises(InputError, match=words) as caught:
        check_request(family_of(tiny.PIPELINE_CLASSES[family]), asked)
    assert "\n" not in str(caught.value)


def test_modes_and_kinds_that_do_not_go_together_are_refused(key: Callable[[str], ControlNetKey]) -> None:
    sdxl = family_of("StableDiffusionXLPipeline")
    for conditions, words in (
        ((control("sdxl", mode=1),), "reads one kind of picture"),
        ((control("sdxl"), control("sdxl", model=key("sdxl"), mode=1)), "control models of one kind"),
        ((control("sdxl", model=key("flux"), mode=1),), "made for another kind of model: sdxl takes a ControlNetModel"),
    ):
        with pytest.raises(InputError, match=words):
            check_request(sdxl, request("sdxl", conditions=conditions))
    by_name = (control("flux", model=key("flux"), mode=1), ArgumentCondition("control_mode", 1))
    with pytest.raises(InputError, match=r"Control Condition \(--control-mode\) gives it"):
        check_request(family_of("FluxPipeline"), request("flux", conditions=by_name))

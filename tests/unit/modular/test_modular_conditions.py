"""Control pictures, clips with their masks and keyframes for modular pipelines, against bare Modular Diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from control_unions import union_key
from image_prompt_files import ip_adapter_file
from modular_twins import bare, save
from test_modular_runs import PICTURE, handle
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.image_prompts.keys import resolve_image_prompt
from fastdiffusers.pipelines.conditions.kinds import (
    ControlCondition,
    ImagePromptCondition,
    KeyframeCondition,
    MaskCondition,
    VideoCondition,
)
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.types import SampleRequest, SampleResult

PLAIN = OptimizationSettings.plain(memory_mode="gpu")
REQUEST = SampleRequest("a cat on a mat", steps=2, width=64, height=64, seed=5)
CLIP = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(3))
MASK = torch.zeros(9, 64, 64)
MASK[:, 16:48, 24:] = 1.0


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a modular model of clips, by its class."""
    root = tmp_path_factory.mktemp("modular_clips")
    sources = {"LTX2ModularPipeline": "ltx2-t2v", "Wan22VaceModularPipeline": "wan21-vace"}

    def folder(name: str) -> Path:
        if not hasattr(diffusers, name):
            pytest.skip(f"this release of diffusers has no {name}")
        if not (root / name).is_dir():
            source: Any = tiny.build(sources[name])
            parts = {**source.config, **source.components}
            parts |= {"transformer_2": source.transformer} if "Vace" in name else {}
            save(getattr(diffusers, name)(), parts, root / name)
        return root / name

    return folder


def theirs(
    folder: Path,
    without: str = "",
    parts: dict[str, Any] | None = None,
    prepare: Callable[[Any], None] | None = None,
    **inputs: Any,
) -> Any:
    """The clips or pictures of a bare call, as the result of a run has them."""
    pipeline = bare(folder)
    pipeline._blocks.sub_blocks.pop(without, None)
    if parts:
        pipeline.update_components(**parts)
    if prepare:
        prepare(pipeline)
    guider = getattr(pipeline, "guider", None)
    if guider is not None and "guidance_scale" in guider.config and "guidance" in inputs:
        scale = inputs["guidance"]
        for name in ("guider", "guider_2"):
            if getattr(pipeline, name, None) is not None:
                changed = getattr(pipeline, name).new(guidance_scale=scale, enabled=scale > 1)
                pipeline.update_components(**{name: changed})
    given = {"num_inference_steps": 2, "width": 64, "height": 64, "prompt": "a cat on a mat", "output_type": "np"}
    given |= {"generator": torch.Generator().manual_seed(5), **inputs}
    state = pipeline(**{key: value for key, value in given.items() if key in pipeline.blocks.input_names}).values
    made = torch.as_tensor(numpy.asarray(state["videos"] if "videos" in state else state["images"]))
    return made if made.ndim == 5 else made.unsqueeze(1)


def run(folder: Path, *conditions: Any, **changes: Any) -> SampleResult:
    return generate(handle(folder), replace(REQUEST, conditions=conditions, **changes), PLAIN)


@pytest.mark.parametrize("name", ["qwenimage", "sdxl"])
@pytest.mark.parametrize("case", ["text", "picture", "mask"])
def test_a_control_picture_steers_a_modular_pipeline_as_it_steers_the_bare_one(
    name: str, case: str, modular_folder: Callable[[str], Path]
) -> None:
    folder, key = modular_folder(name), resolve_controlnet(f"tiny:{name}")
    control = ControlCondition(PICTURE[None], key, strength=0.7, end=0.6)
    mask = (MaskCondition(MASK[:1]),) if case == "mask" else ()
    changes: dict[str, Any] = {} if case == "text" else {"images": (CLIP[0],), "strength": 0.9}
    changes |= {"guidance": 2.0}
    before = run(folder, **changes | {"images": (), "strength": 1.0})
    result = run(folder, control, *mask, **changes)
    again = run(folder, **changes | {"images": (), "strength": 1.0})
    assert torch.equal(again.frames, before.frames), "the control model is out of the pipeline again"
    assert CACHE.peek(handle(folder).key).pipeline.components.get("controlnet") is None
    inputs: dict[str, Any] = {
        "control_image": to_pil(PICTURE),
        "controlnet_conditioning_scale": 0.7,
        "control_guidance_end": 0.6,
        "guidance": 2.0,
    }
    if case != "text":
        inputs |= {"image": to_pil(CLIP[0]), "strength": 0.9}
    if case == "mask":
        from PIL import Image

        inputs |= {"mask_image": Image.fromarray((MASK[0] * 255).byte().numpy(), mode="L")}
    if case == "mask":
        inputs["output_type"] = "pil"
    expected = theirs(folder, parts={"controlnet": tiny.build_controlnet(name)}, **inputs)
    if case == "mask":
        assert torch.equal((result.frames * 255).round().byte(), expected)
    else:
        assert torch.equal(result.frames, expected)
    assert result.report.facts["control"].startswith(f"tiny:{name} 0.7")


def test_a_mode_and_an_image_prompt_reach_a_modular_sdxl(modular_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Both alone and together, equal to the bare pipeline, and out of it again afterwards."""
    folder, on = modular_folder("sdxl"), handle(modular_folder("sdxl"))
    adapter = ip_adapter_file(tiny.build("sdxl"), tmp_path / "adapter")
    control = ControlCondition(PICTURE[None], union_key("sdxl", tmp_path / "union"), strength=0.7, mode=2)
    prompt = ImagePromptCondition(CLIP[:1], resolve_image_prompt(str(adapter)), 0.6)
    net: Any = diffusers.ControlNetUnionModel.from_pretrained(tmp_path / "union")
    before = run(folder, guidance=2.0)
    held: Any = CACHE.peek(on.key)
    unet = held.pipeline.unet
    state = (
        dict(unet.config),
        {name: id(each) for name, each in unet.attn_processors.items()},
        dict(held.pipeline.components),
    )
    steered = {"control_image": [to_pil(PICTURE)], "control_mode": [2], "controlnet_conditioning_scale": 0.7}
    for conditions in ((control,), (prompt,), (control, prompt)):
        result = run(folder, *conditions, guidance=2.0)
        parts: dict[str, Any] = {"controlnet": net} if control in conditions else {}
        inputs: dict[str, Any] = dict(steered) if parts else {}
        if prompt in conditions:
            inputs["ip_adapter_image"] = to_pil(CLIP[0])

        def adapted(pipeline: Any) -> None:
            pipeline.image_encoder = CLIPVisionModelWithProjection.from_pretrained(adapter.parent / "image_encoder")
            pipeline.feature_extractor = CLIPImageProcessor(size=32, crop_size=32)
            pipeline.load_ip_adapter(str(adapter.parent), "", adapter.name)
            pipeline.set_ip_adapter_scale(0.6)

        prepare = adapted if prompt in conditions else None
        assert torch.equal(result.frames, theirs(folder, parts=parts, prepare=prepare, guidance=2.0, **inputs))
        assert not torch.equal(result.frames, before.frames)
    assert torch.equal(run(folder, guidance=2.0).frames, before.frames)
    assert CACHE.peek(on.key) is held
    again = (
        dict(unet.config),
        {name: id(each) for name, each in unet.attn_processors.items()},
        dict(held.pipeline.components),
    )
    assert again[:2] == state[:2]
    fresh = ("guider", "control_image_processor")  # of each run its own
    assert {n: p for n, p in again[2].items() if n not in fresh} == {
        n: p for n, p in state[2].items() if n not in fresh
    }


def test_keyframes_of_a_modular_ltx2(video_folder: Callable[[str], Path]) -> None:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    folder = video_folder("LTX2ModularPipeline")
    frames = [KeyframeCondition(CLIP[:1], 0), KeyframeCondition(CLIP[4:5], -1, 0.6)]
    result = run(folder, *frames, num_frames=17)
    items = [LTX2VideoCondition(frames=to_pil(CLIP[0])), LTX2VideoCondition(to_pil(CLIP[4]), 2, 0.6)]
    expected = theirs(folder, "prompt_enhancer", num_frames=17, frame_rate=24, conditions=items)
    assert torch.equal(result.frames, expected)
    assert not torch.equal(run(folder, num_frames=17).frames, expected)


def test_a_clip_with_its_mask_and_a_reference_for_modular_vace(video_folder: Callable[[str], Path]) -> None:
    folder = video_folder("Wan22VaceModularPipeline")
    result = run(folder, VideoCondition(CLIP), MaskCondition(MASK), images=(PICTURE,), guidance=3.0)
    inputs = {
        "video": [to_pil(frame) for frame in CLIP],
        "mask": [to_pil(plane[..., None].expand(-1, -1, 3)).convert("L") for plane in MASK],
        "reference_images": [to_pil(PICTURE)],
        "num_frames": 9,
        "guidance": 3.0,
    }
    assert torch.equal(result.frames, theirs(folder, **inputs))


def test_what_a_modular_pipeline_does_not_take_is_refused_before_loading(
    modular_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    flux = modular_folder("flux")
    for condition, said in (
        (ControlCondition(PICTURE[None], resolve_controlnet("tiny:flux")), "has no form that takes a control model"),
        (VideoCondition(CLIP), "takes no clip to start from"),
        (KeyframeCondition(CLIP[:1]), "takes no keyframes"),
    ):
        with pytest.raises(InputError, match=said) as error:
            run(flux, condition)
        assert "\n" not in str(error.value)
    assert CACHE.peek(handle(flux).key) is None
    adapter = ip_adapter_file(tiny.build("flux"), tmp_path)
    with pytest.raises(InputError, match="takes none of that kind"):
        run(flux, ImagePromptCondition(CLIP[:1], resolve_image_prompt(str(adapter))))
    two = [ControlCondition(PICTURE[None], resolve_controlnet("tiny:qwenimage"))] * 2
    with pytest.raises(InputError, match="QwenImageModularPipeline takes one"):
        run(modular_folder("qwenimage"), *two)
    with pytest.raises(InputError, match="FluxControlNetModel, made for another kind of model"):
        run(modular_folder("qwenimage"), ControlCondition(PICTURE[None], resolve_controlnet("tiny:flux")))

"""Components of every class that diffusers' pipelines have: what they need in a folder, and what is left out of one."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from guided_pipelines import GUIDED, build_guided
from PIL import Image

from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import checkpoints, components, loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest


@pytest.mark.parametrize("class_name", GUIDED)
def test_a_folder_with_a_guider_gives_what_bare_diffusers_gives(class_name: str, tmp_path: Path) -> None:
    build_guided(class_name).save_pretrained(tmp_path)
    assert (tmp_path / "guider/guider_config.json").is_file()
    bare = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    taken = inspect.signature(bare.__call__).parameters
    asked = {"width": 32, "height": 32, "num_frames": 5}
    asked = {name: value for name, value in asked.items() if name in taken}
    options: dict[str, Any] = {**asked, "num_inference_steps": 2, "output_type": "pt"}
    picture = torch.full((32, 32, 3), 51 / 255)
    images: tuple[torch.Tensor, ...] = ()
    if "image" in taken:
        images, options["image"] = (picture,), Image.new("RGB", (32, 32), (51, 51, 51))
    expected = bare(prompt="a fox 'one'", generator=torch.Generator().manual_seed(0), **options)[0]
    assert expected.std() > 0.01

    handle = PipelineHandle(loader.resolve(str(tmp_path), dtype="float32", device="cpu"))
    request = SampleRequest("a fox 'one'", steps=2, images=images, **asked)
    frames = generate(handle, request, OptimizationSettings.plain()).frames
    assert frames is not None
    found = frames.permute(0, 1, 4, 2, 3).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with CACHE.use(handle.key) as loaded:
        parts = loaded.pipeline.components
        assert {name: type(part) for name, part in parts.items()} == {
            name: type(part) for name, part in bare.components.items()
        }
        for name in (name for name in parts if "guider" in name):
            assert dict(parts[name].config) == dict(bare.components[name].config)
    CACHE.clear()


@pytest.fixture(scope="module")
def component_classes() -> set[tuple[str, type]]:
    """(library, class) of every component that a pipeline of diffusers names, and of whatever else diffusers saves."""
    found: set[tuple[str, type]] = set()
    for name in dir(diffusers):
        own = components.find_class("diffusers", name)
        if (
            own is None
            or not hasattr(own, "save_pretrained")
            or name.endswith(("Mixin", "EMAModel"))
            or "Modular" in name
            or "Blocks" in name
        ):
            continue
        if not issubclass(own, diffusers.DiffusionPipeline):
            found.add(("diffusers", own))
            continue
        for each in itertools.chain(*own._get_signature_types().values()):
            if isinstance(each, type) and each.__module__.startswith("transformers."):
                found.add(("transformers", each))
                twin = components.find_class("transformers", each.__name__ + "Pil")
                found |= {("transformers", twin)} if twin else set()
    return {(library, each) for library, each in found if not each.__name__.startswith(("Auto", "PreTrained"))}


def test_what_has_weights_is_told_from_the_class_and_from_its_name_alike(
    component_classes: set[tuple[str, type]],
) -> None:
    """A class of a newer release is judged by its name, so names have to tell: those of all classes there are do."""
    assert len(component_classes) > 200
    for library, found in component_classes:
        name, is_model = found.__name__, issubclass(found, torch.nn.Module)
        if not name.endswith(("Mixin", "AudioTokenizer")):
            assert components.has_weights("of another release", name) == is_model, name
        if not name.endswith("Mixin"):
            assert components.has_weights(library, name) == is_model, name


def test_the_configuration_of_every_component_of_a_pipeline_is_known(component_classes: set[tuple[str, type]]) -> None:
    """Whatever diffusers calls it: one of the names that a folder's check looks for and bounds."""
    for library, found in component_classes:
        name = getattr(found, "config_name", None)
        if isinstance(name, str):
            assert name in components.CONFIG_FILES
            assert name in components.proofs(library, found.__name__)


def test_a_model_whose_class_is_called_a_tokenizer_has_weights() -> None:
    assert components.has_weights("diffusers", "AceStepAudioTokenizer")
    assert not components.has_weights("transformers", "Qwen2Tokenizer")


def edit_index(folder: Path, **entries: Any) -> None:
    path = folder / checkpoints.INDEX
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


EXTRA = ["stable_diffusion", "StableDiffusionSafetyChecker"]


@pytest.mark.parametrize("files", ["none", "quantized by a package that is not there", "broken"])
def test_a_component_that_the_pipeline_does_not_take_is_dropped_and_said(
    files: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))
    edit_index(folder, safety_checker=EXTRA)
    if files != "none":
        (folder / "safety_checker").mkdir()
        settings = {"quantization_config": {"quant_method": "auto-round"}}
        (folder / "safety_checker/config.json").write_text(json.dumps(settings) if files != "broken" else "{")
    bare = diffusers.DiffusionPipeline.from_pretrained(folder)
    loaded = loader.load(loader.resolve(str(folder), dtype="float32", device="cpu"))
    assert loaded.facts["not loaded"] == "safety_checker: StableDiffusionXLPipeline takes no such component"
    assert loaded.pipeline.components.keys() == bare.components.keys()


def test_a_model_whose_components_are_all_taken_says_nothing_of_it(tiny_folder: Callable[[str], Path]) -> None:
    loaded = loader.load(loader.resolve(str(tiny_folder("sdxl")), device="cpu"))
    assert "not loaded" not in loaded.facts


def test_a_component_without_a_library_is_absent_as_for_bare_diffusers(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))
    edit_index(folder, image_encoder=[None, "CLIPVisionModelWithProjection"])
    bare = diffusers.DiffusionPipeline.from_pretrained(folder)
    loaded = loader.load(loader.resolve(str(folder), dtype="float32", device="cpu")).pipeline
    assert loaded.image_encoder is bare.image_encoder is None


def test_a_component_that_the_class_makes_itself_is_not_asked_of_a_folder() -> None:
    """diffusers lists the scheduler of this class in a folder's index, and writes none."""
    listed = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "vae": ["diffusers", "LongCatAudioDiTVae"]}
    index = {"_class_name": "LongCatAudioDiTPipeline", **listed}
    assert [*components.components(index)] == ["vae"]
    assert components.not_taken(index) == []
    index = {"_class_name": "FluxPipeline", "scheduler": listed["scheduler"], "image_encoder": listed["vae"]}
    assert [*components.components(index)] == ["scheduler", "image_encoder"], "optional ones are read"

"""Image prompts' models that do not belong together: refused in one line, from headers, before any weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_prompt_files import ip_adapter_file, redux_folder, vision
from safetensors.torch import load_file, save_file

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.image_prompts.keys import resolve_image_prompt
from fastdiffusers.pipelines.conditions.kinds import ImagePromptCondition
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest
from fastdiffusers.safetensors_header import read_header

Weights = dict[str, torch.Tensor]
PICTURE = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name: IP-Adapters of three families, a Flux Redux, and folders of vision models and of others."""
    root = tmp_path_factory.mktemp("sizes")
    made = {family: ip_adapter_file(tiny.build(family), root / family) for family in ("sdxl", "flux", "sd3")}
    made["redux"] = redux_folder(root / "redux")
    models = {
        "clip": vision(),
        "siglip": vision("SiglipVisionModel"),
        "wide clip": vision(width=64),
        "wide siglip": vision("SiglipVisionModel", width=64),
        "clip without projection": vision("CLIPVisionModel"),
        "text encoder": tiny.build("sdxl").text_encoder,
    }
    for name, model in models.items():
        model.save_pretrained(made.setdefault(name, root / name))
    (root / "empty").mkdir()
    return made | {"vae": tiny_vae(root / "vae"), "empty": root / "empty"}


def tiny_vae(folder: Path) -> Path:
    tiny.build("sdxl").vae.save_pretrained(folder)
    return folder


@pytest.fixture
def header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is read of any file."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("safetensors.torch.load_file", refuse)


@pytest.mark.usefixtures("header_alone")
@pytest.mark.parametrize(
    ("adapter", "encoder", "said"),
    [
        ("sdxl", "siglip", "it is a SigLIP model, and ip-adapter.safetensors reads pictures with CLIP"),
        ("flux", "siglip", "it is a SigLIP model, and ip-adapter.safetensors reads pictures with CLIP"),
        ("sd3", "clip", "it is a CLIP model, and ip-adapter.safetensors reads pictures with SigLIP"),
        ("sdxl", "wide clip", "it makes rows of 64 numbers, and ip-adapter.safetensors reads rows of 32"),
        ("sd3", "wide siglip", "it makes rows of 64 numbers, and ip-adapter.safetensors reads rows of 32"),
        ("flux", "clip without projection", "it is saved without its projection"),
        ("sdxl", "text encoder", "it holds no CLIP or SigLIP vision model"),
        ("sd3", "vae", "it holds no CLIP or SigLIP vision model"),
        ("sdxl", "redux", "it holds no CLIP or SigLIP vision model"),
        ("sdxl", "empty", "it holds no CLIP or SigLIP vision model"),
        ("redux", "siglip", "Flux Redux has a vision model of its own"),
    ],
)
def test_a_vision_model_of_another_kind_or_size(adapter: str, encoder: str, said: str, files: dict[str, Path]) -> None:
    with pytest.raises(InputError) as error:
        resolve_image_prompt(str(files[adapter]), str(files[encoder]))
    assert (error.value.name, error.value.value) == ("image prompt encoder", str(files[encoder]))
    assert said in error.value.reason
    assert error.value.cure
    assert "\n" not in str(error.value)


def plus(weights: Weights) -> Weights:
    """The layers of an adapter's plus form, as far as they are looked at; it reads rows of 32 numbers."""
    other = {name: value for name, value in weights.items() if not name.startswith("image_proj.")}
    sizes = {"latents": (1, 4, 16), "proj_in.weight": (16, 32), "proj_out.weight": (32, 16)}
    return other | {f"image_proj.{name}": torch.zeros(size) for name, size in sizes.items()}


@pytest.mark.parametrize("form", ["plain", "full", "plus"])
def test_the_vision_models_that_each_form_takes(form: str, files: dict[str, Path], tmp_path: Path) -> None:
    """The hidden states of a CLIP will do without its projection; those of a wider one will not."""
    weights = load_file(files["sdxl"])
    if form == "plus":
        weights = plus(weights)
    elif form == "full":
        weights = {name: value for name, value in weights.items() if not name.startswith("image_proj.")}
        weights |= {"image_proj.proj.0.weight": torch.zeros(32, 32), "image_proj.proj.3.weight": torch.zeros(32)}
    file = tmp_path / "adapter.safetensors"
    save_file(weights, file)
    for encoder in ("clip", "clip without projection", "wide clip", "siglip"):
        fits = encoder == "clip" or (encoder == "clip without projection" and form != "plain")
        if fits:
            assert resolve_image_prompt(str(file), str(files[encoder])).encoder == str(files[encoder])
            continue
        with pytest.raises(ModelFileError):
            resolve_image_prompt(str(file), str(files[encoder]))


def test_adapters_of_faces_and_of_unknown_forms(files: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(files["sdxl"])
    file = tmp_path / "adapter.safetensors"
    for old, new, said in (
        ("image_proj.proj.weight", "image_proj.proj.0.weight", "what InsightFace measures of a face"),
        ("image_proj.", "image_proj.strange.", "of no form that diffusers reads"),
    ):
        save_file({name.replace(old, new): value for name, value in weights.items()}, file)
        with pytest.raises(ModelFileError, match=said):
            resolve_image_prompt(str(file), str(files["clip"]))


def narrower(weights: Weights) -> Weights:
    """The first layer that reads a picture, with half its width."""
    name = min(name for name in weights if name.endswith("to_k_ip.weight"))
    return weights | {name: weights[name][: len(weights[name]) // 2].clone()}


def shorter(weights: Weights) -> Weights:
    """Without the last layer."""
    numbers = {int(name.split(".")[1]) for name in weights if name.startswith("ip_adapter.")}
    return {name: value for name, value in weights.items() if not name.startswith(f"ip_adapter.{max(numbers)}.")}


def other_rows(weights: Weights) -> Weights:
    """Its projection makes wider rows than its layers read."""
    name = "image_proj.norm.weight" if "image_proj.proj.weight" in weights else "image_proj.proj_out.weight"
    return weights | {name: torch.cat([weights[name]] * 2)}


@pytest.mark.parametrize("change", [narrower, shorter, other_rows])
@pytest.mark.parametrize("family", ["sdxl", "flux", "sd3"])
def test_an_adapter_of_other_sizes_than_the_model(
    family: str, change: Callable[[Weights], Weights], files: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(files[family].parent, folder)
    save_file(change(load_file(files[family])), folder / files[family].name)
    key = resolve_image_prompt(str(folder / files[family].name))
    refused(family, ImagePromptCondition(PICTURE, key))


def refused(family: str, condition: ImagePromptCondition) -> None:
    """In one line of the pack's own, before the load."""
    CACHE.clear()
    stages: list[str] = []
    handle = PipelineHandle(resolve(f"tiny:{family}", device="cpu"))
    request = SampleRequest("a ship", steps=2, width=32, height=32, conditions=(condition,), decode=False)
    callbacks = Callbacks(lambda progress: stages.append(progress.stage))
    with pytest.raises(InputError) as error:
        generate(handle, request, OptimizationSettings.plain(memory_mode="gpu"), callbacks)
    assert stages == []
    assert error.value.name == "image prompt model"
    assert f"it does not fit {family}: " in error.value.reason
    for foreign in ("size mismatch", "mat1", "Error", "state_dict", "\n"):
        assert foreign not in str(error.value)


@pytest.mark.parametrize(("family", "other"), [("sdxl", "flux"), ("flux", "sdxl"), ("sdxl", "sd3"), ("sd3", "flux")])
def test_an_adapter_of_another_family(family: str, other: str, files: dict[str, Path]) -> None:
    refused(family, ImagePromptCondition(PICTURE, resolve_image_prompt(str(files[other]))))


def test_the_parts_of_a_redux(files: dict[str, Path], tmp_path: Path) -> None:
    def changed(part: str, **entries: Any) -> Path:
        folder = tmp_path / f"{part}-{'-'.join(entries)}"
        shutil.copytree(files["redux"], folder)
        config = folder / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | entries))
        return folder

    for folder, said in (
        (changed("image_embedder", redux_dim=64), "makes rows of 32 numbers, and its image_embedder reads rows of 64"),
        (changed("image_encoder", model_type="clip_vision_model"), "its image_encoder is no SigLIP vision model"),
    ):
        with pytest.raises(ModelFileError, match=said):
            resolve_image_prompt(str(folder))
    key = resolve_image_prompt(str(changed("image_embedder", txt_in_features=64)))
    refused("flux", ImagePromptCondition(PICTURE, key))


def test_one_run_has_one_vision_model(files: dict[str, Path], tmp_path: Path) -> None:
    keys = [resolve_image_prompt(str(files["sdxl"]), encoder) for encoder in ("", str(files["clip"]))]
    shutil.copytree(files["redux"], tmp_path / "other")
    reduxes = [resolve_image_prompt(str(folder)) for folder in (files["redux"], tmp_path / "other")]
    for family, models, said in (("sdxl", keys, "one vision model"), ("flux", reduxes, "a run takes one")):
        conditions = tuple(ImagePromptCondition(PICTURE, key) for key in models)
        request = SampleRequest("a ship", steps=2, width=32, height=32, conditions=conditions)
        with pytest.raises(InputError, match=said):
            generate(PipelineHandle(resolve(f"tiny:{family}", device="cpu")), request, OptimizationSettings.plain())


def test_what_is_looked_at_is_in_the_files(files: dict[str, Path]) -> None:
    """The names that tell one form from another are those that diffusers' own layers are saved by."""
    assert "image_proj.proj.weight" in read_header(files["flux"])
    assert "image_proj.time_embedding.linear_1.weight" in read_header(files["sd3"])

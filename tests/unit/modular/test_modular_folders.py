"""Modular folders: found, checked in one line, loaded from where their entries say, and told apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.local_models import find_local_pipelines

INDEX = "modular_model_index.json"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def zimage(modular_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(modular_folder("zimage"), tmp_path / "zimage")


def edit(folder: Path, change: Change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def place(index: dict[str, Any], name: str, **values: Any) -> None:
    index[name][2].update(values)


def test_a_moved_folder_is_found_and_loads_what_lies_in_it(zimage: Path) -> None:
    assert find_local_pipelines([zimage.parent]) == [zimage]  # its entries name the folder it was saved to
    loaded = loader.load(loader.resolve(str(zimage)))
    assert type(loaded.pipeline).__name__ == "ZImageModularPipeline"
    assert loaded.family.name == loader.family_of_key(loaded.key).name == "zimage"
    assert set(loaded.mapped) <= {str(file) for file in zimage.glob("*/*.safetensors")}


def test_a_component_in_another_folder_belongs_to_the_identity(zimage: Path) -> None:
    elsewhere = zimage.parent / "shared" / "my vae"
    elsewhere.parent.mkdir()
    (zimage / "vae").rename(elsewhere)
    edit(zimage, lambda index: place(index, "vae", pretrained_model_name_or_path=str(elsewhere), subfolder=None))
    key = loader.resolve(str(zimage))
    loaded = loader.load(key)
    assert loaded.pipeline.vae.config.latent_channels == 16
    weights = next(elsewhere.glob("*.safetensors"))
    shutil.copy(weights, weights.with_name("copy"))
    weights.with_name("copy").rename(weights)
    assert loader.resolve(str(zimage)) != key


def test_progress_names_every_component_and_a_cancel_takes_effect_between_them(zimage: Path) -> None:
    from fastdiffusers.callbacks import Callbacks

    class Cancelled(BaseException):
        pass

    seen: list[str] = []

    def check_cancel() -> None:
        if len(seen) > 2:
            raise Cancelled

    def on_progress(progress: Any) -> None:
        seen.append(progress.message)

    with pytest.raises(Cancelled):
        loader.load(loader.resolve(str(zimage)), Callbacks(on_progress=on_progress, check_cancel=check_cancel))
    assert {"text_encoder", "tokenizer"} <= {message.split(",")[0] for message in seen}


MALFORMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "component missing": (
        lambda f: (
            shutil.rmtree(f / "vae"),
            edit(f, lambda i: place(i, "vae", pretrained_model_name_or_path="/gone/zimage")),
        ),
        "lists the component 'vae', but vae is missing",
    ),
    "no place": (lambda f: edit(f, lambda i: i.pop("transformer")), "gives no place for transformer"),
    "entry of two": (lambda f: edit(f, lambda i: i["vae"].pop()), "lists 'vae' in no form"),
    "place of another kind": (
        lambda f: edit(f, lambda i: place(i, "vae", pretrained_model_name_or_path=7)),
        "in no form that diffusers writes where its vae is",
    ),
    "no vae": (lambda f: edit(f, lambda i: i.update(vae=None)), "gives no place for vae"),
    "a vae that is a word": (lambda f: edit(f, lambda i: i.update(vae="x")), "gives no place for vae"),
    "subfolder is a number": (lambda f: edit(f, lambda i: place(i, "vae", subfolder=0)), "in no form that diffusers"),
    "leads out": (lambda f: edit(f, lambda i: place(i, "vae", subfolder="../vae")), "outside of where it says"),
    "over the network": (
        lambda f: edit(f, lambda i: place(i, "vae", pretrained_model_name_or_path="//host/share", subfolder="")),
        "over the network",
    ),
    "single file": (
        lambda f: edit(f, lambda i: place(i, "vae", pretrained_model_name_or_path="a/vae.safetensors")),
        "is a single file",
    ),
    "another repository": (
        lambda f: (
            shutil.rmtree(f / "vae"),
            edit(f, lambda i: place(i, "vae", pretrained_model_name_or_path="nobody/nothing-at-all")),
        ),
        "its vae is in another repository, nobody/nothing-at-all/vae, which is not on this machine",
    ),
    "custom blocks": (lambda f: (f / "block.py").write_text("raise SystemExit"), "blocks of its own (block.py)"),
    "custom class": (
        lambda f: edit(f, lambda i: i.update(_class_name="MyModularPipeline")),
        "has no MyModularPipeline",
    ),
    "custom blocks class": (lambda f: edit(f, lambda i: i.update(_blocks_class_name="Mine")), "has no Mine"),
    "classical class": (lambda f: edit(f, lambda i: i.update(_class_name="FluxPipeline")), "is no modular pipeline"),
    "unknown component class": (
        lambda f: edit(f, lambda i: place(i, "vae", type_hint=["os", "Popen"])),
        "its vae is a Popen of os, which this version does not have",
    ),
    "half a file": (
        lambda f: (path := next((f / "vae").glob("*.safetensors"))).write_bytes(path.read_bytes()[:-9]),
        "vae",
    ),
    "no JSON": (lambda f: (f / INDEX).write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_folder_is_one_line(zimage: Path, case: str) -> None:
    spoil, said = MALFORMED[case]
    spoil(zimage)
    with pytest.raises(ModelFileError) as error:
        loader.load(loader.resolve(str(zimage)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_classical_index_of_an_unknown_class_leaves_the_word_to_the_modular_one(zimage: Path) -> None:
    (zimage / "model_index.json").write_text('{"_class_name": "NewPipeline"}')
    assert loader.family_of_key(loader.resolve(str(zimage))).name == "zimage"

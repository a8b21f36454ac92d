"""Models of one name in several of ComfyUI's paths: each can be chosen, and a name is never taken for another model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastdiffusers.errors import ModelFileError


@pytest.fixture
def model_files(core: Any) -> Any:
    from fastdiffusers.nodes.host import model_files

    return model_files


@pytest.fixture
def two(core: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Path, Path]]:
    """Makes a kind of models have two paths, and nothing else."""
    import folder_paths

    def make(kind: str) -> tuple[Path, Path]:
        first, second = (tmp_path / place / kind for place in ("one", "two"))
        for folder in (first, second):
            folder.mkdir(parents=True)
        suffixes = folder_paths.folder_names_and_paths.get(kind, ([], {".safetensors"}))[1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(first), str(second)], suffixes))
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
        return first, second

    make("checkpoints")
    return make


def pipeline(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return folder


def weights(path: Path, size: int = 1) -> Path:
    save_file({"a": torch.zeros(size)}, path)
    return path


def offered(model_files: Any) -> list[str]:
    return [name for name in model_files.pipeline_choices() if not name.startswith(("embedded", "["))]


def test_pipelines_of_one_name_in_two_paths_are_told_apart(model_files: Any, two: Any) -> None:
    first, second = two("diffusers")
    expected = {
        "foo": pipeline(first / "foo"),
        f"foo (in {second})": pipeline(second / "foo"),
        "owner/bar": pipeline(second / "owner" / "bar"),
        "x.safetensors": weights(first / "x.safetensors"),
        f"x.safetensors (in {second})": weights(second / "x.safetensors"),
    }
    assert offered(model_files) == sorted(expected, key=str.lower)
    for name, path in expected.items():
        assert model_files.pipeline_source(name, "") == str(path)


def test_a_folder_that_is_no_pipeline_does_not_hide_one_of_its_name(model_files: Any, two: Any) -> None:
    first, second = two("diffusers")
    (first / "foo" / "unet").mkdir(parents=True)
    whole = pipeline(second / "foo")
    assert offered(model_files) == ["foo"]
    assert model_files.pipeline_source("foo", "") == str(whole)
    (whole / "model_index.json").unlink()
    assert model_files.pipeline_source("foo", "") == str(first / "foo"), "to be told what is wrong with it"


def test_the_same_folder_by_two_paths_is_offered_once(model_files: Any, two: Any) -> None:
    first, second = two("diffusers")
    pipeline(first / "foo")
    second.rmdir()
    second.symlink_to(first)
    assert offered(model_files) == ["foo"]


def test_checkpoints_of_one_name_in_two_paths_are_told_apart(model_files: Any, two: Any, tmp_path: Path) -> None:
    two("diffusers")
    first, second = tmp_path / "one/checkpoints", tmp_path / "two/checkpoints"
    weights(first / "a.safetensors")
    weights(second / "a.safetensors")
    assert offered(model_files) == ["checkpoints/a.safetensors", f"checkpoints/a.safetensors (in {second})"]
    assert model_files.pipeline_source("checkpoints/a.safetensors", "") == str(first / "a.safetensors")
    named = f"checkpoints/a.safetensors (in {second})"
    assert model_files.pipeline_source(named, "") == str(second / "a.safetensors")


@pytest.mark.parametrize("kind", ["loras", "vae"])
def test_loras_and_vaes_of_one_name_in_two_paths_are_told_apart(model_files: Any, two: Any, kind: str) -> None:
    first, second = two(kind)
    (first / "sub").mkdir()
    (second / "sub").mkdir()
    expected = {
        "b.safetensors": weights(second / "b.safetensors"),
        os.path.join("sub", "a.safetensors"): weights(first / "sub/a.safetensors"),
        f"{os.path.join('sub', 'a.safetensors')} (in {second})": weights(second / "sub/a.safetensors", 2),
    }
    choices = {"loras": model_files.lora_choices, "vae": model_files.video_vae_choices}[kind]()
    path_of = {"loras": model_files.lora_path, "vae": model_files.video_vae_path}[kind]
    embedded = [name for name in choices if name.startswith("embedded tiny: ")]
    assert choices == [*sorted(expected, key=str.lower), *embedded]
    for name, path in expected.items():
        assert path_of(name) == str(path)


def test_an_exchanged_path_is_another_model_to_a_graph(model_files: Any, two: Any, monkeypatch: Any) -> None:
    """What a node says its inputs are holds the path: two copies may have the same size and date."""
    from fastdiffusers.nodes.lora import LoadLora

    first, second = two("loras")
    for folder in (first, second):
        os.utime(weights(folder / "a.safetensors"), (1, 1))
    names = ("a.safetensors", f"a.safetensors (in {second})")
    assert len({LoadLora.fingerprint_inputs(lora_name=name) for name in names}) == 2


OUTSIDE = [
    "../secret/a.safetensors",
    "a.safetensors (in {secret})",
    "{secret}/a.safetensors",
    "a" * 5000,
    "a\0b",
    "\ud800",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "../a.safetensors (in {first})"])
def test_a_choice_names_nothing_outside_of_the_paths(name: str, model_files: Any, two: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    weights(tmp_path / "secret" / "a.safetensors")
    for kind, path_of in (
        ("loras", model_files.lora_path),
        ("diffusers", lambda name: model_files.pipeline_source(name, "")),
    ):
        first, _ = two(kind)
        weights(first.parent / "a.safetensors")
        with pytest.raises(ModelFileError, match="no such"):
            path_of(name.format(secret=tmp_path / "secret", first=first))

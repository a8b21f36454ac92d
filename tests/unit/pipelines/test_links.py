"""Models behind symbolic links: as the Hub's cache keeps them, as people spread them over disks, and broken ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.adapters import file as adapter_file
from fastdiffusers.pipelines.loading import checkpoints, loader, local_models, quantized_copy, single_file, sources
from fastdiffusers.vae import checkpoint as vae_checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"
SDXL_KEYS = {
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1280),
    "first_stage_model.decoder.conv_in.weight": torch.zeros(1),
}
"""What tells a checkpoint of SDXL, and that its VAE is in it."""


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A checkpoint as the Hub's cache holds it: under the hash of its contents."""
    path = tmp_path / "blobs" / "0123abcd"
    path.parent.mkdir()
    save_file(SDXL_KEYS, path)
    return path


def link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
    return path


def test_a_file_that_links_to_a_blob_without_a_suffix_is_taken_by_its_own_name(blob: Path, tmp_path: Path) -> None:
    path = link(tmp_path / "snapshots" / "main" / "model.safetensors", blob)
    key = loader.resolve(str(path), device="cpu")
    assert key.source == str(path)
    assert loader.family_of_key(key).name == "sdxl"
    assert key.identity != ""
    sources.check(key)
    before = sources.files_stamp(key)
    os.utime(blob, (1, 1))
    assert sources.files_stamp(key) != before
    assert loader.resolve(str(path), device="cpu").identity != key.identity


def test_a_file_that_links_to_one_of_another_name_is_taken_whichever_of_them_tells_what_it_is(
    blob: Path, tmp_path: Path
) -> None:
    named = blob.rename(blob.with_name("sdxl.safetensors"))
    for name in ("other.safetensors", "no_suffix", "odd.suffix"):
        key = loader.resolve(str(link(tmp_path / name, named)), device="cpu")
        assert Path(key.source).suffix == ".safetensors"
        assert Path(key.source).samefile(named)


def test_a_blob_itself_has_no_name_that_tells_what_it_is(blob: Path) -> None:
    with pytest.raises(ModelFileError, match="without a suffix"):
        loader.resolve(str(blob))


def test_the_same_file_by_way_of_a_linked_folder_is_one_model(blob: Path, tmp_path: Path) -> None:
    path = link(tmp_path / "models" / "model.safetensors", blob)
    link(tmp_path / "elsewhere", tmp_path / "models")
    around = tmp_path / "elsewhere" / ".." / "models" / "model.safetensors"
    assert (
        loader.resolve(str(around))
        == loader.resolve(str(path))
        == loader.resolve(str(tmp_path / "elsewhere" / path.name))
    )


def test_the_configuration_beside_a_linked_file_is_used(
    blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the link, else beside the file that it leads to."""
    import diffusers

    given = []
    monkeypatch.setattr(
        diffusers.StableDiffusionXLPipeline,
        "from_single_file",
        lambda path, **options: given.append(options.get("config")),
    )
    path = link(tmp_path / "here" / "model.safetensors", blob.rename(blob.with_name("x.safetensors")))
    for folder in (tmp_path / "blobs" / "x", tmp_path / "here" / "model"):
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
        single_file.read(path, torch.float32)
    assert given == [str(tmp_path / "blobs" / "x"), str(tmp_path / "here" / "model")]


def as_snapshot(folder: Path, blobs: Path) -> None:
    """Replace every file of a folder by a link to a blob without a suffix."""
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link(path, path.rename(blobs / f"{number:064}"))


def components_elsewhere(folder: Path, place: Path) -> None:
    """Replace every component by a link to a folder of another name."""
    place.mkdir()
    for number, path in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        link(path, path.rename(place / f"part{number}"))


@pytest.mark.parametrize("spread", [as_snapshot, components_elsewhere])
def test_a_folder_of_links_loads_as_bare_diffusers_loads_it(
    spread: Callable[[Path, Path], None], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))
    size = quantized_copy._weight_bytes(folder)
    spread(folder, tmp_path / "elsewhere")
    expected = DiffusionPipeline.from_pretrained(folder).unet.state_dict()
    key = loader.resolve(str(folder), dtype="float32", device="cpu")
    loaded = loader.load(key)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.pipeline.unet.state_dict().items())
    assert quantized_copy._weight_bytes(folder) == size > 0
    (folder / UNET).touch()  # follows the link
    assert sources.files_stamp(key) != loaded.stamp
    assert checkpoints.fingerprint(folder) != key.identity


def test_a_link_to_a_folder_is_that_folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_folder("sdxl")
    assert loader.resolve(str(link(tmp_path / "model", folder))) == loader.resolve(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "model", "owner/model"])
def test_a_link_that_leads_nowhere_is_one_line_and_never_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    link(tmp_path / name, tmp_path / "gone")
    assert sources.is_local(name)
    with pytest.raises(ModelFileError, match=r"a link to (\.\./)?gone, which is not there"):
        loader.resolve(name)


def test_the_list_of_models_follows_links_and_no_circle(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "models"
    link(root / "a" / "linked", tiny_folder("sdxl"))
    link(root / "a" / "circle", root)
    link(root / "a" / "gone", tmp_path / "nowhere")
    assert local_models.find_local_pipelines([root]) == [root / "a" / "linked"]


def test_a_video_vae_behind_a_link_is_read(blob: Path, tmp_path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in SDXL_KEYS.items()}
    assert vae_checkpoint.read_shapes(link(tmp_path / "vae.safetensors", blob)) == expected
    named = blob.rename(blob.with_name("vae.safetensors"))
    assert vae_checkpoint.read_shapes(link(tmp_path / "vae", named)) == expected


def test_an_adapter_behind_a_link_is_read(blob: Path, tmp_path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in SDXL_KEYS.items()}
    assert adapter_file.check(str(link(tmp_path / "lora.safetensors", blob))) == expected
    named = blob.rename(blob.with_name("lora.safetensors"))
    assert adapter_file.check(str(link(tmp_path / "lora", named))) == expected
    with pytest.raises(ModelFileError, match="cannot be read"):
        adapter_file.check(str(link(tmp_path / "gone.safetensors", tmp_path / "nowhere")))

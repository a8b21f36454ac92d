"""Folders as people have them: what bare diffusers loads from them is loaded here, and nothing else is looked at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.loading import loader

UNET = "unet/diffusion_pytorch_model"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n"


def a_pointer_of_another_variant(folder: Path) -> None:
    (folder / f"{UNET}.fp16.safetensors").write_text(POINTER)
    (folder / f"{UNET}.non_ema.safetensors").write_text(POINTER)


def notes_of_another_system(folder: Path) -> None:
    (folder / "unet/._diffusion_pytorch_model.safetensors").write_bytes(b"\0\5\x16\7" + bytes(4092))


def a_part_of_an_earlier_save(folder: Path) -> None:
    shutil.copy(folder / f"{UNET}.safetensors", folder / f"{UNET}-00001-of-00077.safetensors")


def a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "unet/extra.safetensors").symlink_to(folder / "nowhere")


def a_tokenizer_of_any_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "TokenizersBackend"]
    (folder / "model_index.json").write_text(json.dumps(index))


def a_tokenizer_without_a_configuration(folder: Path) -> None:
    (folder / "tokenizer/tokenizer_config.json").unlink()


CHANGES = [
    a_pointer_of_another_variant,
    notes_of_another_system,
    a_part_of_an_earlier_save,
    a_link_that_leads_nowhere,
    a_tokenizer_of_any_class,
    a_tokenizer_without_a_configuration,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_it_loads_what_bare_diffusers_loads(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tiny.save("sdxl", tmp_path / "model")
    change(folder)
    bare = DiffusionPipeline.from_pretrained(folder)
    loaded = loader.load(loader.resolve(str(folder), dtype="float32", device="cpu")).pipeline
    expected = bare.unet.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.unet.state_dict().items())


def test_shards_and_variants_load_as_bare_diffusers_loads_them(tmp_path: Path) -> None:
    pipeline = tiny.build("sdxl")
    for name, options in (("shards", {"max_shard_size": "200KB"}), ("fp16", {"variant": "fp16"})):
        pipeline.save_pretrained(tmp_path / name, **options)
        loaded = loader.load(loader.resolve(str(tmp_path / name), dtype="float32", device="cpu")).pipeline
        expected = pipeline.unet.state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.unet.state_dict().items())


def test_a_part_without_its_index_is_still_refused(tmp_path: Path) -> None:
    folder = tiny.save("sdxl", tmp_path / "model")
    (folder / f"{UNET}.safetensors").rename(folder / f"{UNET}-00001-of-00002.safetensors")
    with pytest.raises(ModelFileError, match="index file that joins them"):
        loader.resolve(str(folder))

"""Finding, checking and loading: every broken model is refused in one line before any weight is read."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiffusers import safetensors_header
from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.loading import checkpoints, devices, loader, local_models, single_file, sources


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny SDXL folder that a test may break."""
    return Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))


def weights_of(folder, component="unet"):
    return folder / component / "diffusion_pytorch_model.safetensors"


def shard(folder, component="unet", parts=2):
    """Split a component's weights as large models are."""
    path = weights_of(folder, component)
    tensors = load_file(path)
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = path.with_name(f"diffusion_pytorch_model-{part + 1:05}-of-{parts:05}.safetensors")
        own = names[part::parts]
        save_file({name: tensors[name] for name in own}, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file.name)
    path.unlink()
    index = path.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


def truncate(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:keep])


BREAKAGES = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "index cut off": (lambda f: truncate(f / "model_index.json", 40), "cannot be read"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "no JSON object"),
    "index names no class": (lambda f: (f / "model_index.json").write_text("{}"), "no pipeline class"),
    "component missing": (lambda f: shutil.rmtree(f / "vae"), "'vae'"),
    "tokenizer empty": (lambda f: [p.unlink() for p in (f / "tokenizer").iterdir()], "configuration file"),
    "config missing": (lambda f: (f / "unet/config.json").unlink(), "configuration file"),
    "weights missing": (lambda f: weights_of(f).unlink(), "no .safetensors"),
    "weights cut off": (lambda f: truncate(weights_of(f), -7), "unfinished download"),
    "header cut off": (lambda f: truncate(weights_of(f), 20), "beginning is damaged"),
    "empty file": (lambda f: weights_of(f).write_bytes(b""), "it is empty"),
    "not safetensors": (lambda f: weights_of(f).write_bytes(b"<html>not found</html>"), "not a safetensors file"),
    "header is no object": (lambda f: weights_of(f).write_bytes(struct.pack("<Q", 2) + b"[]"), "not a safetensors"),
    "pickle only": (lambda f: weights_of(f).rename(f / "unet/diffusion_pytorch_model.bin"), "pickle"),
    "shard missing": (
        lambda f: shard(f).with_name("diffusion_pytorch_model-00002-of-00002.safetensors").unlink(),
        "1 of 2",
    ),
    "shard index missing": (lambda f: shard(f).unlink(), "index file that joins them"),
    "shard index empty": (lambda f: shard(f).write_text('{"weight_map": {}}'), "lists no weights"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_folder_is_refused_in_one_line_without_reading_weights(folder, breakage):
    action, expected = BREAKAGES[breakage]
    loader.resolve(str(folder))
    action(folder)
    with pytest.raises(ModelFileError) as caught:
        loader.resolve(str(folder))
    text = str(caught.value)
    assert expected in text
    assert "model = " in text
    assert "\n" not in text


def test_a_revision_is_for_the_hub_alone(folder):
    for source in ("tiny:flux", str(folder)):
        with pytest.raises(InputError, match="revision = 'main'") as caught:
            loader.resolve(source, revision="main", device="cpu")
        assert "not from the Hub" in str(caught.value)


def test_missing_paths_and_foreign_files_are_named(tmp_path):
    with pytest.raises(ModelFileError, match="no such folder"):
        loader.resolve(str(tmp_path / "nothing" / "here"))
    for suffix in checkpoints.PICKLES:
        pickle = tmp_path / f"model{suffix}"
        pickle.write_bytes(b"\x80\x04.")
        with pytest.raises(ModelFileError, match="pickle"):
            loader.resolve(str(pickle))
    for name in ("model.txt", "model.gguf", "model"):
        (tmp_path / name).write_text("")
        with pytest.raises(ModelFileError, match=r"no format.*a diffusers folder, a \.safetensors file or a Hub id"):
            loader.resolve(str(tmp_path / name))
    with pytest.raises(InputError, match="tiny:flux2-klein"):
        loader.resolve("tiny:nothing")


def test_code_of_its_own_is_never_run(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "EvilPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match="never run"):
        loader.resolve(str(folder))


@pytest.mark.parametrize("shape", ["plain", "sharded", "variant"])
def test_a_folder_loads_whole_whatever_the_form_of_its_weights(folder, shape):
    expected = tiny.build("sdxl").unet.state_dict()
    if shape == "sharded":
        shard(folder, parts=3)
    if shape == "variant":
        for path in folder.glob("*/*.safetensors"):
            path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    key = loader.resolve(str(folder))
    ticks = []
    loaded = loader.load(key, Callbacks(ticks.append))
    found = loaded.pipeline.unet.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert loaded.family.name == "sdxl"
    assert loaded.device == torch.device("cpu")
    assert loaded.dtype == torch.float32
    assert loaded.facts["pipeline"] == "StableDiffusionXLPipeline"
    assert loaded.facts["weights_mib"]["unet"] > 0
    assert json.loads(json.dumps(loaded.facts)) == loaded.facts
    assert ticks[-1].done == ticks[-1].total == 7
    assert [tick.done for tick in ticks] == sorted(tick.done for tick in ticks)
    assert {tick.message for tick in ticks} > {"unet", "vae", "text_encoder"}
    assert ("unet, part 3 of 3" in {tick.message for tick in ticks}) == (shape == "sharded")


def test_a_cancel_between_components_travels_and_leaves_diffusers_as_it_was(folder):
    from diffusers.utils import logging

    class Interrupted(Exception):
        pass

    def cancel():
        raise Interrupted

    before = logging.tqdm
    with pytest.raises(Interrupted):
        loader.load(loader.resolve(str(folder)), Callbacks(check_cancel=cancel))
    assert logging.tqdm is before


def test_paths_with_dots_links_and_other_alphabets(folder, monkeypatch):
    odd = folder.parent / "модель ü 模型"
    folder.rename(odd)
    plain = loader.resolve(str(odd))
    monkeypatch.chdir(odd.parent)
    (odd.parent / "below").mkdir()
    assert loader.resolve(f"below/../{odd.name}") == plain
    link = odd.parent / "link"
    link.symlink_to(odd)
    assert loader.resolve(str(link)) == plain
    assert loader.load(plain).pipeline.unet is not None


def test_an_edited_model_gets_another_identity(folder):
    before = loader.resolve(str(folder))
    assert loader.resolve(str(folder)) == before
    path = weights_of(folder)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    touched = loader.resolve(str(folder))
    assert touched.identity != before.identity
    (folder / "unet" / "config.json").write_text((folder / "unet" / "config.json").read_text() + "\n")
    assert loader.resolve(str(folder)).identity != touched.identity


def test_dtypes_by_component_and_the_key_names_no_auto(folder):
    key = loader.resolve(str(folder), dtype="bfloat16", component_dtypes={"vae": "float32", "text_encoder": "auto"})
    assert key.dtype == "bfloat16"
    assert key.device == devices.resolve_device("auto")
    assert "auto" not in str(key)
    loaded = loader.load(key)
    assert loaded.pipeline.unet.dtype == torch.bfloat16
    assert loaded.pipeline.vae.dtype == torch.float32
    with pytest.raises(InputError, match="component_dtypes"):
        loader.load(loader.resolve(str(folder), component_dtypes={"transformer": "float16"}))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"dtype": "float8"}, "dtype"),
        ({"component_dtypes": {"vae": "int8"}}, "dtype of vae"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"device": "cuda:99"}, "device"),
        ({"quantization": "int3"}, "quantization"),
        ({"lora_rank": -1}, "lora_rank"),
    ],
)
def test_unusable_arguments_are_refused(arguments, name):
    with pytest.raises(InputError) as caught:
        loader.resolve("tiny:sdxl", **arguments)
    assert caught.value.name == name


def test_quantizing_while_loading_is_reported():
    loaded = loader.load(loader.resolve("tiny:flux", quantization="layerwise-fp8", dtype="bfloat16"))
    assert "fp8" in loaded.facts["quantization"]["transformer"]


def test_the_family_is_known_before_the_load(folder):
    assert loader.family_of_key(loader.resolve(str(folder))).name == "sdxl"
    tiny_family = loader.family_of_key(loader.resolve("tiny:wan22-i2v"))
    assert (tiny_family.name, tiny_family.num_frames, tiny_family.width) == ("wan-i2v", 9, 128)


def test_pipelines_are_found_below_several_folders_and_not_inside_each_other(folder, tmp_path):
    nested = tmp_path / "deep" / "er"
    shutil.copytree(folder, nested / "second")
    (tmp_path / "not_one").mkdir()
    found = local_models.find_local_pipelines([tmp_path, tmp_path / "missing", nested])
    assert found == [nested / "second", folder]


# --- single files -----------------------------------------------------------------------------------------------------


def write_single_file(path, tensors):
    save_file(tensors, path)
    return path


def test_a_single_file_is_recognised_by_its_header_or_refused(tmp_path):
    sdxl = {
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1280),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(4, 4, 3, 3),
    }
    assert (
        single_file.pipeline_class_of(write_single_file(tmp_path / "a.safetensors", sdxl))
        == "StableDiffusionXLPipeline"
    )
    key = loader.resolve(str(tmp_path / "a.safetensors"))
    assert loader.family_of_key(key).name == "sdxl"
    lonely = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}
    with pytest.raises(ModelFileError, match="only a part"):
        loader.resolve(str(write_single_file(tmp_path / "b.safetensors", lonely)))
    with pytest.raises(ModelFileError, match=r"its tokenizer is not on this machine.*COMFYUI_PATH=FOLDER"):
        loader.load(key)


def test_a_single_file_without_all_of_its_tensors_is_to_be_downloaded_again(tmp_path, monkeypatch):
    import diffusers

    def lacks_some(*args, **kwargs):
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "from_single_file", lacks_some)
    layer = {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1280)}
    file = write_single_file(tmp_path / "a.safetensors", {**layer, "first_stage_model.x": torch.zeros(1)})
    with pytest.raises(ModelFileError, match=r"tensors of it are missing\. Download it again"):
        loader.load(loader.resolve(str(file)))


def test_a_package_that_a_model_needs_is_one_clear_line(folder, monkeypatch):
    import diffusers

    def needs_more(*args, **kwargs):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found.\nmore")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", needs_more)
    with pytest.raises(ModelFileError, match="requires the Torchvision library") as caught:
        loader.load(loader.resolve(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_single_file_takes_its_configuration_from_the_folder_beside_it(tmp_path, folder, monkeypatch):
    import diffusers

    path = tmp_path / "sdxl.v1.safetensors"
    weights = {
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(1280),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(4, 4, 3, 3),
    }
    folder.rename(path.with_suffix(""))
    asked = {}

    def from_single_file(file, **options):
        asked.update(options, file=file)
        return tiny.build("sdxl", dtype=options["torch_dtype"])

    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "from_single_file", from_single_file)
    key = loader.resolve(str(write_single_file(path, weights)), dtype="bfloat16", component_dtypes={"vae": "float32"})
    loaded = loader.load(key)
    assert asked["file"] == str(path)
    assert (asked["config"], asked["local_files_only"]) == (str(path.with_suffix("")), True)
    assert loaded.pipeline.unet.dtype == torch.bfloat16
    assert loaded.pipeline.vae.dtype == torch.float32
    assert loaded.facts["pipeline"] == "StableDiffusionXLPipeline"


def test_a_callers_own_exception_is_not_dressed_up_as_a_file_error(folder, monkeypatch):
    key = loader.resolve(str(folder))
    failures = {
        torch.OutOfMemoryError("CUDA out of memory"): torch.OutOfMemoryError,
        RuntimeError("CUDA error: out of memory"): RuntimeError,
        RuntimeError("size mismatch\nfor weight"): ModelFileError,
    }
    for failure, expected in failures.items():
        monkeypatch.setattr(loader, "_read_folder", lambda *args, failure=failure: (_ for _ in ()).throw(failure))
        with pytest.raises(expected) as caught:
            loader.load(key)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "local"),
    [("tiny:flux", True), ("owner/name", False), ("/nowhere/at/all", True), (".", True), ("name", True)],
)
def test_local_sources_need_no_network(source, local):
    assert sources.is_local(source) is local


def test_every_header_is_read_once_per_load(tiny_folder, monkeypatch):
    key = loader.resolve(str(tiny_folder("sdxl")), device="cpu")
    parse, read = safetensors_header.parse_json, []
    monkeypatch.setattr(safetensors_header, "parse_json", lambda content: read.append(bytes(content)) or parse(content))
    loader.load(key)
    files = list(tiny_folder("sdxl").glob("*/*.safetensors"))
    assert len(read) == len(files) == len(set(read)) > 0

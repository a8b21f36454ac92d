"""Models that are none: every one ends in one line within seconds, and takes no memory to speak of."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiffusers import cli, safetensors_header
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.pipelines.loading import loader, small_files
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import SampleRequest

UNET = "unet/diffusion_pytorch_model.safetensors"
SECONDS = 60
"""Far above what any case takes, also on a busy machine; what would take for ever is stopped there."""
MEMORY = 700 * 2**20
"""Bytes that a case may add to the highest memory so far; the first one imports the libraries."""
DEEP = 100_000


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny SDXL folder that a test may break."""
    return Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))


@pytest.fixture(autouse=True)
def _within_seconds() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


Breakage = Callable[[Path], object]


def text(name: str, content: str | bytes) -> Breakage:
    return lambda f: (f / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def setting(name: str, **values: Any) -> Breakage:
    """Change settings in a JSON file of the folder."""

    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**data, **values}))

    return change


def index(**values: Any) -> Breakage:
    return setting("model_index.json", **values)


def sparse(name: str, size: int = 6 * 2**30) -> Breakage:
    """A file that is long and takes no room on the disk."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return make


def instead(name: str, make: Callable[[Path], object]) -> Breakage:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def header(content: Any, data: bytes = b"") -> Breakage:
    """Weights that consist of this header and these bytes."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return text(UNET, struct.pack("<Q", len(raw)) + raw + data)


def entry(**values: Any) -> Breakage:
    """A header with one entry of four float32, changed so."""
    return header({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **values}}, b"\0" * 16)


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], name: str = UNET) -> Breakage:
    return lambda f: save_file(change(load_file(f / name)), f / name, metadata={"format": "pt"})


def shards(weight_map: Any) -> Breakage:
    return text("unet/diffusion_pytorch_model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def many_entries() -> bytes:
    one = '"w%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]}'
    return ("{" + ",".join(one % number for number in range(600_000)) + "}").encode()


def little_objects() -> bytes:
    return b'{"__metadata__":{},"w":[' + b"[]," * 10_000_000 + b"[]]}"


TE = "text_encoder/config.json"
BROKEN: dict[str, Breakage] = {
    "index is empty": text("model_index.json", ""),
    "index is blank": text("model_index.json", " \n"),
    "index is binary": text("model_index.json", bytes(range(256))),
    "index is UTF-16": text("model_index.json", '{"_class_name": "FluxPipeline"}'.encode("utf-16")),
    "index is null": text("model_index.json", "null"),
    "index is a number": text("model_index.json", "17"),
    "index is a text": text("model_index.json", '"FluxPipeline"'),
    "index is nested lists": text("model_index.json", "[" * DEEP),
    "index is nested objects": text("model_index.json", '{"a":' * DEEP + "1" + "}" * DEEP),
    "index holds nested lists": text("model_index.json", '{"_class_name":' + "[" * DEEP + "]" * DEEP + "}"),
    "index is 6 GiB": sparse("model_index.json"),
    "index is a pipe": instead("model_index.json", os.mkfifo),
    "index is a folder": instead("model_index.json", Path.mkdir),
    "index is a link to itself": instead("model_index.json", lambda p: p.symlink_to(p)),
    "index is a device": instead("model_index.json", lambda p: p.symlink_to("/dev/zero")),
    "class is empty": index(_class_name=""),
    "class is an empty list": index(_class_name=[]),
    "class is a list of lists": index(_class_name=[[["a"]]]),
    "class is a number": index(_class_name=3),
    "class is an object": index(_class_name={"a": 1}),
    "class is null": index(_class_name=None),
    "class is true": index(_class_name=True),
    "class is a path": index(_class_name="../../evil"),
    "class is an attribute": index(_class_name="os.system"),
    "class is a module": index(_class_name="utils"),
    "class is private": index(_class_name="__doc__"),
    "class is long": index(_class_name="A" * 100_000),
    "class is half a surrogate pair": text("model_index.json", '{"_class_name": "A\\ud800"}'),
    "class is unknown": index(_class_name="NoSuchPipeline"),
    "class is no pipeline": index(_class_name="AutoencoderKL"),
    "class is that of a base": index(_class_name="DiffusionPipeline"),
    "component leads upwards": index(**{"../unet": ["diffusers", "UNet2DConditionModel"]}),
    "component is absolute": index(**{"/etc": ["diffusers", "UNet2DConditionModel"]}),
    "component has a NUL": index(**{"un\0et": ["diffusers", "UNet2DConditionModel"]}),
    "component's class is a number": index(unet=["diffusers", 5]),
    "component's class is null": index(unet=["diffusers", None]),
    "component's class is odd": index(unet=["diffusers", "a b"]),
    "component's library is a list": index(unet=[["diffusers"], "UNet2DConditionModel"]),
    "component's library is empty": index(unet=["", "UNet2DConditionModel"]),
    "component's library is unknown": index(unet=["no_such_library", "UNet2DConditionModel"]),
    "component's class is unknown": index(unet=["diffusers", "UNet9000"]),
    "component's class is another's": index(vae=["diffusers", "UNet2DConditionModel"]),
    "config is a list": text("unet/config.json", "[]"),
    "config is empty": text("unet/config.json", ""),
    "config is nested": text("unet/config.json", '{"a":' + "[" * DEEP + "]" * DEEP + "}"),
    "config is 6 GiB": sparse("unet/config.json"),
    "config is a pipe": instead("unet/config.json", os.mkfifo),
    "vocabulary is a pipe": instead("tokenizer/tokenizer.json", os.mkfifo),
    "vocabulary is cut off": text("tokenizer/tokenizer.json", '{"a": 1, '),
    "tokenizer config is a list": text("tokenizer/tokenizer_config.json", "[1]"),
    "scheduler config is a list": text("scheduler/scheduler_config.json", "[1]"),
    "ten million layers": setting("unet/config.json", layers_per_block=10**7),
    "ten million layers in a list": setting("unet/config.json", transformer_layers_per_block=[1, 10**7]),
    "1e300 layers": setting("unet/config.json", layers_per_block=1e300),
    "ten million layers of text": setting(TE, num_hidden_layers=10**7),
    "ten million layers within": setting(TE, text_config={"num_hidden_layers": 10**7}),
    "more layers than weights": setting(TE, num_hidden_layers=30),
    "a hundred million words": setting(TE, vocab_size=10**8),
    "a list of a hundred thousand": setting("unet/config.json", block_out_channels=[16] * 100_000),
    "ten thousand million timesteps": setting("scheduler/scheduler_config.json", num_train_timesteps=10**10),
    "head size zero": setting("unet/config.json", attention_head_dim=0),
    "no heads": setting(TE, num_attention_heads=0),
    "no groups": setting("unet/config.json", norm_num_groups=0),
    "no channels": setting("unet/config.json", block_out_channels=[]),
    "size is a text": setting(TE, hidden_size="many"),
    "size is negative": setting(TE, hidden_size=-32),
    "size is null": setting("vae/config.json", latent_channels=None),
    "activation is unknown": setting("unet/config.json", act_fn="none of them"),
    "block is unknown": setting("unet/config.json", down_block_types=["DownBlock2D", "NoSuchBlock"]),
    "header entry is a list": header({"w": [0, 4]}),
    "header entry is a number": header({"w": 4}),
    "header entry is null": header({"w": None}),
    "header entry is empty": header({"w": {}}),
    "dtype is a number": entry(dtype=32),
    "dtype is unknown": entry(dtype="Q4_K"),
    "dtype is of another width": entry(dtype="F16"),
    "shape is a text": entry(shape="4"),
    "shape is negative": entry(shape=[-4]),
    "shape is fractional": entry(shape=[4.0]),
    "shape is true": entry(shape=[True, 4]),
    "shape has a thousand sizes": entry(shape=[1] * 1000 + [4]),
    "shape has a size of 400 digits": entry(shape=[10**400]),
    "offsets are reversed": entry(data_offsets=[16, 0]),
    "offsets are three": entry(data_offsets=[0, 8, 16]),
    "offsets are texts": entry(data_offsets=["0", "16"]),
    "offsets are missing": entry(data_offsets=None),
    "metadata is a list": header({"__metadata__": [1]}),
    "metadata holds numbers": header({"__metadata__": {"a": 1}}),
    "header is nested": header(b"[" * DEEP + b"]" * DEEP),
    "header entry is nested": header(b'{"w":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "header has no tensors": header({}),
    "header is not UTF-8": header(b'{"\xff": {}}'),
    "header has a million entries": lambda f: header(many_entries())(f),
    "header is of little objects": lambda f: header(little_objects())(f),
    "header is 90 MB": lambda f: header(b"{" + b" " * 90_000_000 + b"}")(f),
    "two tensors share bytes": header(
        {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}, b"\0" * 16
    ),
    "weights are a pipe": instead(UNET, os.mkfifo),
    "weights are a folder": instead(UNET, Path.mkdir),
    "weights are a device": instead(UNET, lambda p: p.symlink_to("/dev/zero")),
    "weights lead nowhere": instead(UNET, lambda p: p.symlink_to("nowhere")),
    "weights lead to themselves": instead(UNET, lambda p: p.symlink_to(p)),
    "weights are scalars": tensors(lambda t: {name: torch.zeros(()) for name in t}),
    "weights are of other shapes": tensors(lambda t: {name: tensor[None].contiguous() for name, tensor in t.items()}),
    "weights have other names": tensors(lambda t: {f"other.{name}": tensor for name, tensor in t.items()}),
    "weights lack a half": tensors(lambda t: {name: t[name] for name in sorted(t)[::2]}),
    "weights lack one tensor": tensors(lambda t: {name: t[name] for name in sorted(t)[1:]}),
    "text weights lack a half": tensors(
        lambda t: {name: t[name] for name in sorted(t)[::2]}, "text_encoder/model.safetensors"
    ),
    "shard is a list": shards({"a": ["b"]}),
    "shard is a number": shards({"a": 5}),
    "shard is null": shards({"a": None}),
    "shard leads upwards": shards({"a": "../vae/diffusion_pytorch_model.safetensors"}),
    "shard leads upwards on Windows": shards({"a": "..\\vae\\diffusion_pytorch_model.safetensors"}),
    "shard is on a drive": shards({"a": "C:model.safetensors"}),
    "shard has a NUL": shards({"a": "a\0.safetensors"}),
    "shard has 5,000 characters": shards({"a": "a" * 5000 + ".safetensors"}),
    "shards are a list": shards([1, 2]),
    "shard index is 6 GiB": sparse("unet/diffusion_pytorch_model.safetensors.index.json"),
    "shard index is a pipe": lambda f: os.mkfifo(f / "unet/diffusion_pytorch_model.safetensors.index.json"),
}


def refused(source: Path) -> str:
    """The one line with which a model is refused, before or while it is loaded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with pytest.raises(ModelFileError) as caught:
        loader.load(loader.resolve(str(source)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 1000
    assert str(source) in line or str(source.resolve()) in line
    return line


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_folder_is_refused_in_one_line(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BROKEN[name](folder)
    refused(folder)
    arguments = ["--model", str(folder), "--prompt", "x", "--output", str(tmp_path / "x.png"), "--quiet"]
    assert cli.main(["generate", *arguments]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastdiffusers generate: --model = ")
    assert not (tmp_path / "x.png").exists()


SINGLE: dict[str, Breakage] = {
    "scalars where shapes are looked at": lambda p: save_file(
        {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(()),
            "first_stage_model.decoder.conv_in.weight": torch.zeros(()),
        },
        p,
    ),
    "no tensors": lambda p: save_file({}, p),
    "a pipe": os.mkfifo,
    "a device": lambda p: p.symlink_to("/dev/zero"),
    "a list": lambda p: p.write_bytes(struct.pack("<Q", 2) + b"[]"),
    "nested": lambda p: p.write_bytes(struct.pack("<Q", DEEP) + b"[" * DEEP),
    "a length beyond the file": lambda p: p.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
    "a million entries": lambda p: header(many_entries())(p),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_malformed_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if name == "a million entries":
        raw = many_entries()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    else:
        SINGLE[name](path)
    refused(path)


def test_the_limits_are_above_what_real_files_hold(tmp_path: Path) -> None:
    """100,000 tensors with names of 80 letters, and an index of them."""
    names = [f"{number:080}" for number in range(100_000)]
    entries = {name: {"dtype": "F32", "shape": [0, 8, 3, 3], "data_offsets": [0, 0]} for name in names}
    raw = json.dumps(entries).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    assert len(safetensors_header.read_header(path)) == 100_000
    listed = tmp_path / "index.json"
    listed.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}))
    assert len(small_files.read_json(listed, small_files.MAX_INDEX)["weight_map"]) == 100_000


@pytest.mark.parametrize("source", ["/models/a\0b", "~nobody-of-that-name/model", "/models/" + "x" * 5000, "a\ud800b"])
def test_a_path_that_no_file_can_have_is_one_line(source: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        loader.resolve(source)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("words", ["a\ud800b", "\udcff", "a\0b"])
def test_a_prompt_that_is_no_text_is_one_line(name: str, words: str) -> None:
    """As a graph can hold it: JSON can write half a surrogate pair, and no tokenizer reads one."""
    request = SampleRequest(**{"prompt": "x", name: words})
    with pytest.raises(InputError) as caught:
        check_request(loader.family_of_key(loader.resolve("tiny:sdxl")), request)
    assert caught.value.name == name
    assert len(str(caught.value).splitlines()) == 1

"""Headers of .safetensors files that are none: models, adapters and VAEs refuse the same ones, in one line."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastdiffusers import safetensors_header
from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.adapters import file as adapter_file
from fastdiffusers.pipelines.loading import single_file
from fastdiffusers.vae import checkpoint as vae_checkpoint

PACK = Path(__file__).resolve().parents[2]
DEEP = 100_000


def header(content: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(**values: Any) -> bytes:
    """One entry of four float32, changed so."""
    return header({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **values}}, bytes(16))


def many(count: int) -> bytes:
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return header(("{" + ",".join(one % number for number in range(count)) + "}").encode())


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "shorter than a length": lambda: b"\1\2\3",
    "a length beyond the file": lambda: header({}, length=2**63),
    "a length of nothing": lambda: header({}, length=0),
    "a header of 65 MiB": lambda: header(b"{" + b" " * (65 * 2**20) + b"}"),
    "too many tensors": lambda: many(1001),
    "too many objects": lambda: header(b'{"w":[' + b"[]," * 2_000_000 + b"[]]}"),
    "nested": lambda: header(b'{"w":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "not UTF-8": lambda: header(b'{"\xff": {}}'),
    "a list": lambda: header(b"[]"),
    "an entry that is a number": lambda: header({"w": 4}),
    "metadata that holds numbers": lambda: header({"__metadata__": {"a": 1}}),
    "a negative size": lambda: entry(shape=[-4]),
    "a size of 400 digits": lambda: entry(shape=[10**400]),
    "sizes whose product overflows": lambda: entry(shape=[2**62, 2**62], dtype="F7"),
    "sizes whose product overflows but for a zero": lambda: entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
    "a thousand sizes": lambda: entry(shape=[1] * 1000 + [4]),
    "a type of another width": lambda: entry(dtype="F16"),
    "offsets beyond the file": lambda: entry(shape=[8], data_offsets=[0, 32]),
    "more bytes than the header says": lambda: entry() + b"more",
}
READERS: dict[str, Callable[[Path], Any]] = {
    "a model's file": safetensors_header.read_header,
    "a whole pipeline": single_file.pipeline_class_of,
    "an adapter": lambda path: adapter_file.check(str(path)),
    "a VAE": vae_checkpoint.read_shapes,
}


def refused(read: Callable[[Path], Any], path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        read(path)
    assert caught.value.value == str(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", BROKEN)
def test_every_reader_refuses_a_broken_header(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_ENTRIES", 1000)
    path = tmp_path / "file.safetensors"
    path.write_bytes(BROKEN[name]())
    for read in READERS.values():
        refused(read, path)
    assert not vae_checkpoint.is_video_vae(path)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_every_reader_refuses_what_is_no_file(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    make(path)
    for name, read in READERS.items():
        if name != "a whole pipeline":  # of which a folder is one
            refused(read, path)


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int8)}, path, metadata={"format": "pt"})
    expected = {"a": (2, 3), "b": ()}
    assert safetensors_header.read_shapes(path) == vae_checkpoint.read_shapes(path) == expected
    assert adapter_file.check(str(path)) == expected


def test_a_header_is_read_in_one_place_only() -> None:
    places = [path for path in PACK.rglob("*.py") if "tests" not in path.parts and ".venv" not in path.parts]
    reading = [path.name for path in places if 'unpack("<Q"' in path.read_text(encoding="utf-8")]
    assert reading == ["safetensors_header.py"]

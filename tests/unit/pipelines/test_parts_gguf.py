"""A diffusion model as GGUF: the weights that gguf's own code reads from it, and one line for what cannot be read."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from further_parts import BUILDERS, changed
from original_families import FAMILIES, MODEL_NAMES, build, original_zimage, restored, write
from test_parts_families import in_own_memory, picture, resolve

from fastdiffusers.errors import InputError, MissingDependencyError, ModelFileError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.parts import DIFFUSION_MODEL, UNREADABLE, kind_of_part

pytestmark = pytest.mark.usefixtures("small_edit_pictures", "widened_convolutions")

HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (-2,), "Q3_K": (-2,), "Q2_K": (-4, -2)}
"""Where the float16 factors of a block lie: any other byte may be anything."""


FACTOR = 0.0004
LARGEST = FACTOR * 127 * 63
"""The largest term that a weight is a sum of: the factor, a scale of at most 7 bits and 6 bits of the weight."""


def blocks(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A random matrix in a K-quant: [rows, bytes of a row]."""
    import gguf

    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = generator.integers(0, 256, (shape[0], shape[1] // values, size), dtype=np.uint8)
    for at in HALVES[kind]:
        half = np.array([FACTOR], dtype=np.float16).view(np.uint8)
        data[..., at % size : at % size + 2] = half
    return data.reshape(shape[0], -1)


def write_gguf(path: Path, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], set[str]]:
    """A file of every form that is read, what it stands for, and the types in it."""
    import gguf
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    writer, meant, used = gguf.GGUFWriter(path, "lumina2"), {}, []
    generator = np.random.default_rng(0)
    next_quant = itertools.cycle(HALVES)
    for key, value in state.items():
        plain = value.float().numpy()
        if value.ndim == 2 and key.endswith(".weight") and value.shape[1] % 256 == 0:
            kind = Kind[next(next_quant)]
            data = blocks(kind.name, tuple(value.shape), generator)
        elif value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = Kind.BF16 if key.endswith("pad_token") else Kind.Q8_0
            data = quants.quantize(plain, kind)
        else:
            kind = Kind.F16 if value.ndim == 2 else Kind.F32
            data = plain.astype(np.float16 if kind is Kind.F16 else np.float32)
        if value.ndim > 4:  # more than the format has
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(value.shape))
            data = data.reshape(value.shape[0], -1)
        writer.add_tensor(key, data, raw_dtype=kind)
        dense = data if kind in (Kind.F16, Kind.F32) else quants.dequantize(data, kind)
        meant[key] = torch.from_numpy(np.array(dense, dtype=np.float32)).reshape(value.shape)
        used.append(kind.name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant, set(used)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Z-Image with heads of the published size, which says its configuration, as GGUF and as a diffusers folder."""
    pytest.importorskip("gguf")
    from diffusers import ZImageTransformer2DModel

    place = tmp_path_factory.mktemp("gguf")
    pipeline = tiny.build("zimage")
    torch.manual_seed(0)
    sizes = {"dim": 256, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32}
    transformer = ZImageTransformer2DModel(**sizes, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512]).eval()
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        pad.data.normal_(std=0.1)
    pipeline.register_modules(transformer=transformer)
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    path = place / "model.gguf"
    meant, used = write_gguf(path, original_zimage(before))
    transformer.load_state_dict(restored(before, original_zimage, meant))
    files, twin = write("zimage", pipeline, place)
    (place / "model" / "transformer" / "config.json").unlink()
    files["model"].unlink()
    return {"files": {**files, "model": path}, "twin": twin, "used": used, "transformer": transformer}


def test_the_weights_are_those_that_gguf_reads(model: dict[str, Any]) -> None:
    from diffusers import DiffusionPipeline
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    assert model["used"] == {*HALVES, "Q8_0", "BF16", "F16", "F32"}
    assert kind_of_part(model["files"]["model"]) == DIFFUSION_MODEL
    loaded = loader.load(resolve(model["files"]))
    network = loaded.pipeline.transformer
    assert sum(isinstance(part, GGUFLinear) for part in network.modules()) >= 12, "quantized layers stay quantized"
    held = {key: dequantize_gguf_tensor(value).float() for key, value in network.state_dict().items()}
    expected = model["transformer"].state_dict()
    assert held.keys() == expected.keys()
    for key, value in expected.items():
        # diffusers multiplies in float16: each of the two terms of a weight is off by half its last bit, and their sum.
        torch.testing.assert_close(held[key], value, rtol=2**-10, atol=2**-10 * LARGEST, msg=lambda text: text)
    reference = DiffusionPipeline.from_pretrained(model["twin"])
    reference.transformer.load_state_dict(held)
    made, expected_picture = picture(loaded.pipeline), picture(reference)
    assert expected_picture.std() > 0
    np.testing.assert_allclose(made, expected_picture, atol=1e-5)
    parts = loaded.facts["parts"]["transformer"]
    assert "model.gguf (GGUF " in parts
    assert "Q4_K" in parts


WIDE: dict[str, dict[str, Any]] = {
    "flux": {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)},
    "flux-kontext": {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)},
    "flux2-klein": {"attention_head_dim": 128, "axes_dims_rope": (32, 32, 32, 32)},
    "qwenimage": {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)},
    "qwenimage-edit": {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)},
    "wan22-t2v": {"ffn_dim": 256, "attention_head_dim": 16},
    "wan22-i2v": {"ffn_dim": 256, "attention_head_dim": 16},
}
"""Embedded families -> sizes with which blocks of 256, as K-quants have them, fit their layers."""


def wide(family: str) -> Any:
    pipeline = build(family)
    torch.manual_seed(4)
    for name, _ in models_of(family).values() if family in WIDE else ():
        network = getattr(pipeline, name)
        config = changed(network.config, **WIDE[family])
        pipeline.register_modules(**{name: type(network).from_config(config).eval()})
    return pipeline


def models_of(family: str) -> dict[str, Any]:
    """File -> component and renaming, of a family's one or two diffusion models."""
    return {file: model for file, model in FAMILIES[family].items() if file.startswith("model")}


@pytest.mark.parametrize("family", [*BUILDERS, *WIDE])
def test_the_weights_of_every_family_are_those_that_gguf_reads(family: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from diffusers import DiffusionPipeline
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    pipeline = wide(family)
    written = {}
    for file, (name, original) in models_of(family).items():
        network = getattr(pipeline, name)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        written[file] = tmp_path / f"{file.replace('model', MODEL_NAMES.get(family, 'model'))}.gguf"
        meant, used = write_gguf(written[file], original(before))
        assert used >= {"Q8_0", "Q4_K"}
        network.load_state_dict(restored(before, original, meant))
    files, twin = write(family, pipeline, tmp_path)
    for file in written:
        files[file].unlink()
    loaded = loader.load(resolve({**files, **written}))
    reference = DiffusionPipeline.from_pretrained(twin)
    assert type(loaded.pipeline) is type(reference)
    for name, _ in models_of(family).values():
        made = getattr(loaded.pipeline, name)
        assert sum(isinstance(part, GGUFLinear) for part in made.modules()) >= 12
        held = {key: dequantize_gguf_tensor(value).float() for key, value in made.state_dict().items()}
        expected = getattr(pipeline, name).state_dict()
        assert held.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(held[key], value, rtol=2**-10, atol=2**-10 * LARGEST, msg=lambda text: text)
        getattr(reference, name).load_state_dict(held)
    ours, theirs = picture(loaded.pipeline), picture(reference)
    assert theirs.std() > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_what_cannot_be_read_is_one_line(
    model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    whole = model["files"]["model"].read_bytes()
    other = tmp_path / "integers.gguf"
    writer = gguf.GGUFWriter(other, "lumina2")
    writer.add_tensor("layers.0.x.weight", np.zeros((4, 32), dtype=np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for content, said in (
        (whole[:-64], "broken or unfinished download"),
        (whole[:100], "broken or unfinished download"),
        (b"\x80\x04\x95pickle", "not a GGUF file"),
        (b"", "not a GGUF file"),
        (other.read_bytes(), "GGUF type I8"),
    ):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=said) as error:
            resolve(model["files"], model=str(path))
        assert "\n" not in str(error.value)
        assert kind_of_part(path) == UNREADABLE, "it is offered, so that choosing it says what is wrong"
    with pytest.raises(InputError, match="GGUF is read for diffusion models only"):
        resolve(model["files"], text_encoders=[str(model["files"]["model"])])
    with pytest.raises(InputError, match="quantized already") as refused:
        resolve(model["files"], quantization="torchao-int8")
    assert refused.value.name == "quantization"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(MissingDependencyError, match="pip install gguf"):
        resolve(model["files"])


def test_saved_as_a_folder_its_weights_are_what_it_computes_with(model: dict[str, Any], tmp_path: Path) -> None:
    from fastdiffusers.pipelines.loading.saving.folder import save_folder

    key = resolve(model["files"])
    saved = save_folder(key, tmp_path / "new")
    assert saved.components["transformer"].endswith(", written as float32")
    parts = loader.load(key).pipeline
    folder = loader.load(loader.resolve(str(saved.folder), dtype="float32", device="cpu")).pipeline
    assert {value.dtype for value in folder.transformer.state_dict().values()} == {torch.float32}
    assert np.array_equal(picture(in_own_memory(folder)), picture(in_own_memory(parts)))

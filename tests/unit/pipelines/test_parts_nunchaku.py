"""Files of Nunchaku's as diffusion models: handed to its own package, for which a stand-in with its published
interface is here, since it runs on cards alone; and what is said where it is missing, or does not read one."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from original_families import build, write
from safetensors.torch import save_file

from fastdiffusers.errors import InputError, MissingDependencyError, ModelFileError
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.parts import (
    DIFFUSION_MODEL,
    UNREADABLE,
    check_quantized,
    family_of_parts,
    kind_of_part,
    locate_parts,
    read_parts,
    write_parts,
)

CLASSES = {
    "flux": "NunchakuFluxTransformer2dModel",
    "qwenimage": "NunchakuQwenImageTransformer2DModel",
    "zimage": "NunchakuZImageTransformer2DModel",
}
PACKAGE = """
import json
import diffusers
import torch
from safetensors import safe_open
from . import utils


def _quantized(base):
    class Quantized(base):
        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
            assert sorted(kwargs) == ["device", "torch_dtype"], kwargs
            assert kwargs["device"].startswith("cuda"), kwargs
            with safe_open(pretrained_model_name_or_path, framework="pt") as file:
                metadata, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
            utils.check_hardware_compatibility(json.loads(metadata["quantization_config"]), kwargs["device"])
            model = cls.from_config(json.loads(metadata["config"])).to(kwargs["torch_dtype"])
            weights = {}
            for key, value in state.items():
                if key.endswith(".qweight"):
                    value = value.float() * state[key.replace("qweight", "wscales")]
                if not key.endswith(".wscales"):
                    weights[key.replace("qweight", "weight")] = value.to(kwargs["torch_dtype"])
            model.load_state_dict(weights)
            return model

    return Quantized


NunchakuFluxTransformer2dModel = _quantized(diffusers.FluxTransformer2DModel)
NunchakuQwenImageTransformer2DModel = _quantized(diffusers.QwenImageTransformer2DModel)
"""
ZIMAGE = "NunchakuZImageTransformer2DModel = _quantized(diffusers.ZImageTransformer2DModel)\n"
UTILS = """
CARD = "89"


def check_hardware_compatibility(quantization_config, device="cuda"):
    if CARD in ["120", "121"]:
        if quantization_config["weight"]["dtype"] != "fp4_e2m1_all":
            raise ValueError('Please use "fp4" quantization for Blackwell GPUs. ')
    elif CARD in ["75", "80", "86", "89"]:
        if quantization_config["weight"]["dtype"] != "int4":
            raise ValueError('Please use "int4" quantization for Turing, Ampere and Ada GPUs. ')
    else:
        raise ValueError(f"Unsupported GPU architecture {CARD} due to the lack of 4-bit tensorcores. ")


def is_turing(device="cuda"):
    return CARD == "75"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the stand-in, which can be imported."""
    place = tmp_path / "packages" / "nunchaku"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(PACKAGE + ZIMAGE)
    (place / "utils.py").write_text(UTILS)
    monkeypatch.syspath_prepend(place.parent)
    yield place
    for name in [name for name in sys.modules if name.split(".")[0] == "nunchaku"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def quantized(family: str, pipeline: Any, files: dict[str, Path], kind: str = "int4", **metadata: Any) -> Path:
    """The diffusion model of a pipeline as a file in Nunchaku's form; the pipeline computes with what it stands for."""
    model = pipeline.transformer
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.ndim != 2 or not re.search(r"(blocks|layers)\..*\.weight$", key):
                tensors[key] = value.clone()
                continue
            scales = value.abs().amax(1, keepdim=True) / 127 + 1e-9
            tensors[key.replace("weight", "qweight")] = (value / scales).round().to(torch.int8)
            tensors[key.replace("weight", "wscales")] = scales
            value.copy_(tensors[key.replace("weight", "qweight")].float() * scales)
    quantization = {"method": "svdquant", "weight": {"dtype": "fp4_e2m1_all" if kind == "fp4" else kind}, "rank": 32}
    said = {
        "model_class": CLASSES[family],
        "config": json.dumps(dict(model.config)),
        "quantization_config": json.dumps(quantization),
    }
    said |= metadata
    save_file(tensors, files["model"], metadata={key: value for key, value in said.items() if value})
    return files["model"]


def located(files: dict[str, Path]) -> Any:
    texts = [str(path) for name, path in files.items() if name.startswith("text")]
    return locate_parts(str(files["model"]), texts, str(files["vae"]))[0]


@pytest.mark.parametrize("family", ["zimage", "qwenimage"])
def test_a_file_is_read_by_the_package(family: str, package: Path, tmp_path: Path) -> None:
    from fastdiffusers.callbacks import Callbacks
    from fastdiffusers.fallback import Signals

    pipeline = build(family)
    files, _ = write(family, pipeline, tmp_path)
    path = quantized(family, pipeline, files)
    assert kind_of_part(path) == DIFFUSION_MODEL
    parts = located(files)
    assert check_quantized(parts, "cuda:0", "bfloat16") == str(path)
    assert family_of_parts(path).name == family
    made, found = read_parts(parts, "", torch.float32, Signals(Callbacks()), device="cuda:0")
    assert type(made.transformer).__name__ == "Quantized"
    assert found["transformer"].startswith("Nunchaku svdq int4")
    call: dict[str, Any] = {"num_inference_steps": 2, "width": 32, "height": 32, "output_type": "pt"}
    pictures = []
    for each in (made, pipeline):
        each.set_progress_bar_config(disable=True)
        pictures.append(each("a fox", generator=torch.Generator().manual_seed(1), **call).images)
    torch.testing.assert_close(pictures[0], pictures[1], atol=1e-4, rtol=0)
    with pytest.raises(ModelFileError, match="whose weights only its package's layers read"):
        write_parts(parts, "", torch.float32, tmp_path / "out", tmp_path / "out", Signals(Callbacks()))


def test_what_the_card_or_the_package_does_not_run_is_one_line(package: Path, tmp_path: Path) -> None:
    pipeline = build("zimage")
    files, _ = write("zimage", pipeline, tmp_path)
    path = quantized("zimage", pipeline, files)
    utils = importlib.import_module("nunchaku.utils")
    texts, vae = [str(files["text"])], str(files["vae"])
    with pytest.raises(InputError, match=r"device = .cpu.: .* runs on NVIDIA cards alone\. Use a copy in bf16"):
        loader.resolve(str(path), in_parts=True, device="cpu", text_encoders=texts, vae=vae)
    for card, dtype, error, said in (
        ("89", "float32", InputError, "computes in bfloat16 and float16. Choose bfloat16"),
        ("75", "bfloat16", InputError, "computes in float16 on this card"),
        ("120", "bfloat16", ModelFileError, "this card does not run it .*svdq int4.*use .fp4"),
        ("90", "bfloat16", ModelFileError, "Unsupported GPU architecture 90 due to the lack of 4-bit tensorcores"),
    ):
        utils.CARD = card
        with pytest.raises(error, match=f"(?i){said}") as refused:
            check_quantized(located(files), "cuda", dtype)
        assert "\n" not in str(refused.value)
    utils.CARD = "75"
    assert check_quantized(located(files), "cuda", "float16") == str(path)
    (package / "__init__.py").write_text(PACKAGE)
    del sys.modules["nunchaku"]
    with pytest.raises(ModelFileError, match=r"gives no NunchakuZImageTransformer2DModel .*releases"):
        located(files)
    (package / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    del sys.modules["nunchaku"]
    with pytest.raises(ModelFileError, match=r"gives no NunchakuZImage.*libcudart"):
        located(files)


def test_a_file_that_is_not_read_is_one_line(tmp_path: Path) -> None:
    pipeline = build("flux")
    files, _ = write("zimage", build("zimage"), tmp_path)
    path = files["model"]
    for metadata, said in (
        ({"model_class": ""}, "does not say which model it is.*nunchaku.merge_safetensors"),
        ({"model_class": "NunchakuSanaTransformer2DModel"}, "for its NunchakuSanaTransformer2DModel, which is not"),
        ({"config": "{"}, r"cannot be read \("),
        ({"config": "{}"}, r"cannot be read \(.*attention_head_dim"),
        ({"quantization_config": json.dumps({"weight": {"dtype": "int2"}})}, r"cannot be read \(.*int2"),
    ):
        quantized("flux", pipeline, files, **metadata)
        with pytest.raises(ModelFileError, match=said) as error:
            located(files)
        assert "\n" not in str(error.value)
        assert kind_of_part(path) == UNREADABLE, "it is offered, so that choosing it says why"
    quantized("flux", pipeline, files)
    assert importlib.util.find_spec("nunchaku") is None
    assert kind_of_part(path) == UNREADABLE
    with pytest.raises(MissingDependencyError, match=r"\(svdq\) needs the package 'nunchaku'.*releases"):
        located(files)


def test_flux_is_told_by_the_configuration_in_the_file(package: Path, tmp_path: Path) -> None:
    from fastdiffusers.pipelines.loading.parts.plan import family_of_part, problem_of

    pipeline = build("flux")
    head, (zimage, _) = 128, write("zimage", build("zimage"), tmp_path)
    published = {
        "attention_head_dim": head,
        "num_attention_heads": 24,
        "axes_dims_rope": [16, 56, 56],
        "in_channels": 64,
    }
    published |= {"num_layers": 19, "num_single_layers": 38, "joint_attention_dim": 4096, "pooled_projection_dim": 768}
    for name, more, title in (
        ("svdq-int4_r32-flux.1-dev", {"guidance_embeds": True}, "FLUX.1 dev"),
        ("svdq-int4_r32-flux.1-kontext-dev", {"guidance_embeds": True}, "FLUX.1 Kontext"),
        ("svdq-int4_r32-flux.1-schnell", {"guidance_embeds": False}, "FLUX.1 schnell"),
        (
            "svdq-int4_r32-flux.1-fill-dev",
            {"guidance_embeds": True, "in_channels": 384, "out_channels": 64},
            "FLUX.1 Fill",
        ),
    ):
        path = tmp_path / f"{name}.safetensors"
        quantized("flux", pipeline, {"model": path}, config=json.dumps(published | more))
        family = family_of_part(path)
        assert family.title == title
        assert problem_of(family, "transformer", path, path, "diffusion_model") == ""
    odd = published | {"guidance_embeds": True, "axes_dims_rope": [32, 48, 48]}
    quantized("flux", pipeline, {"model": path}, config=json.dumps(odd))
    with pytest.raises(
        ModelFileError, match=r"axes_dims_rope is \[32, 48, 48\] in its configuration and \[16, 56, 56\]"
    ):
        located({**zimage, "model": path})
    with pytest.raises(ModelFileError, match="read as diffusion models only"):
        located({**zimage, "text": path, "model": zimage["model"]})

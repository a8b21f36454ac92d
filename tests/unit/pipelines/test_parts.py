"""FLUX.1 from the files that ComfyUI takes: the picture of their diffusers folder, or one line of refusal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_layout import make_files
from PIL import Image
from safetensors.torch import load_file, save_file

from fastdiffusers import cli
from fastdiffusers.commands.latent_file import read_latent
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.parts import DIFFUSION_MODEL, TEXT_ENCODER, UNREADABLE, VAE, kind_of_part


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("flux-random", tmp_path_factory.mktemp("diffusers") / "flux")


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> dict[str, Path]:
    return make_files(folder, tmp_path, "float32")[0]


def options(files: dict[str, Path]) -> list[str]:
    encoders = ["--text-encoder", str(files["t5xxl"]), "--text-encoder", str(files["clip_l"])]
    return ["--diffusion-model", str(files["model"]), *encoders, "--vae", str(files["ae"])]


def picture(model: list[str], output: Path, dtype: str) -> np.ndarray:
    size = ["--steps", "2", "--width", "64", "--height", "64", "--device", "cpu", "--quiet"]
    report = output.with_suffix(".json")
    rest = ["--prompt", "a fox", "--output", str(output), "--report", str(report), "--dtype", dtype]
    assert cli.main(["generate", *model, *rest, *size]) == 0
    with Image.open(output) as image:
        return np.asarray(image).astype(int)


def nearly_equal(made: np.ndarray, whole: np.ndarray, dtype: str = "float32") -> bool:
    """But for rounding: weights of two files lie otherwise in memory, where a processor may round otherwise."""
    return bool(np.abs(made - whole).max() <= (1 if dtype == "float32" else 3))


def report_of(output: Path) -> str:
    return json.dumps(json.loads(output.with_suffix(".json").read_text()), ensure_ascii=False)


@pytest.mark.parametrize(
    ("precision", "encoder", "dtype"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
        ("fp8", "scaled fp8", "float32"),
        ("scaled fp8", "fp8", "float32"),
    ],
)
def test_the_picture_is_that_of_the_folder(
    precision: str, encoder: str, dtype: str, folder: Path, tmp_path: Path
) -> None:
    parts, twin = make_files(folder, tmp_path, precision, encoder)
    made = picture(options(parts), tmp_path / "parts.png", dtype)
    assert nearly_equal(made, picture(["--model", str(twin)], tmp_path / "folder.png", dtype), dtype)
    report = report_of(tmp_path / "parts.png")
    assert f"model.safetensors ({precision}" in report
    assert re.search(rf"t5xxl\.safetensors \([^)]*{encoder}", report)
    assert "Kontext has the same tensors" in report
    assert "scaling factor 0.3611 and shift 0.1159" in report


def test_a_latent_alone_needs_no_vae(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, _ = make_files(folder, tmp_path)
    without = options(parts)[:-2]
    rest = ["--prompt", "a fox", "--steps", "2", "--width", "64", "--height", "64", "--device", "cpu", "--quiet"]
    latents = []
    for number, model in enumerate((without, options(parts))):
        output = tmp_path / f"{number}.latent.safetensors"
        assert cli.main(["generate", *model, *rest, "--output", str(output)]) == 0
        latents.append(read_latent(output)[0])
    assert torch.equal(*latents)
    assert cli.main(["generate", *without, *rest, "--output", str(tmp_path / "no.png")]) != 0
    said = capsys.readouterr().err.strip()
    assert "ae.safetensors" in said
    assert "--vae FILE, or ask for the latent alone" in said
    assert "\n" not in said
    assert not (tmp_path / "no.png").exists()


def test_a_lora_gives_what_it_gives_on_the_folder(folder: Path, tmp_path: Path) -> None:
    parts, twin = make_files(folder, tmp_path)
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A": (4, 32), "lora_B": (32, 4)}
    layers = [f"transformer_blocks.{n}.attn.to_q" for n in (0, 1)] + ["single_transformer_blocks.0.attn.to_k"]
    tensors = {
        f"transformer.{layer}.{side}.weight": torch.randn(shape, generator=generator)
        for layer in layers
        for side, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = ["--lora", str(tmp_path / "lora.safetensors")]
    plain = picture(options(parts), tmp_path / "plain.png", "float32")
    made = picture(options(parts) + lora, tmp_path / "parts.png", "float32")
    assert nearly_equal(made, picture(["--model", str(twin), *lora], tmp_path / "folder.png", "float32"))
    assert not nearly_equal(made, plain)


def test_files_that_comfyui_saved_name_the_norms_otherwise(folder: Path, tmp_path: Path) -> None:
    files, twin = make_files(folder, tmp_path)
    renamed = {key.replace("_norm.scale", "_norm.weight"): value for key, value in load_file(files["model"]).items()}
    assert any(key.endswith("_norm.weight") for key in renamed)
    save_file(renamed, files["model"])
    made = picture(options(files), tmp_path / "parts.png", "float32")
    assert nearly_equal(made, picture(["--model", str(twin)], tmp_path / "folder.png", "float32"))


def test_what_a_file_may_be_is_told_from_its_header(files: dict[str, Path], tmp_path: Path) -> None:
    kinds = {"model": DIFFUSION_MODEL, "clip_l": TEXT_ENCODER, "t5xxl": TEXT_ENCODER, "ae": VAE}
    assert {name: kind_of_part(path) for name, path in files.items()} == kinds
    others: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
        "canny": ("model", {"model.diffusion_model.img_in.weight": (32, 128)}),
        "flux2_vae": ("ae", {"decoder.conv_in.weight": (64, 32, 3, 3)}),
        "lora": ("", {"transformer.x.lora_A.weight": (4, 32)}),
    }
    for name, (base, changes) in others.items():
        tensors = load_file(files[base]) if base else {}
        save_file(
            tensors | {key: torch.zeros(shape) for key, shape in changes.items()}, tmp_path / f"{name}.safetensors"
        )
        assert kind_of_part(tmp_path / f"{name}.safetensors") == "", name
    (tmp_path / "cut.safetensors").write_bytes(files["ae"].read_bytes()[:-8])
    assert kind_of_part(tmp_path / "cut.safetensors") == UNREADABLE, "it is offered, so that choosing it says why"
    assert kind_of_part(tmp_path / "missing.safetensors") == ""


def resolve(files: dict[str, Path], **changes: Any) -> Any:
    given = {"text_encoders": [str(files["clip_l"]), str(files["t5xxl"])], "vae": str(files["ae"])} | changes
    return loader.resolve(str(given.pop("model", files["model"])), in_parts=True, device="cpu", **given)


def test_the_key_holds_every_file(files: dict[str, Path]) -> None:
    before = resolve(files)
    assert [slot for slot, _ in before.parts] == ["transformer", "text_encoder", "text_encoder_2", "vae"]
    for name in ("model", "clip_l", "t5xxl", "ae"):
        save_file(load_file(files[name]), files[name])
        after = resolve(files)
        assert after.identity != before.identity, name
        before = after


def test_wrong_pairings_are_refused_by_name(files: dict[str, Path]) -> None:
    clip, t5, vae = (str(files[name]) for name in ("clip_l", "t5xxl", "ae"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text_encoders": [clip]}, "T5-XXL"),
        ({"text_encoders": [clip, clip]}, "is that too"),
        ({"text_encoders": [clip, vae]}, "no text encoder of FLUX"),
        ({"vae": ""}, "ae.safetensors"),
        ({"vae": t5}, "ae.safetensors"),
        ({"model": t5}, "not the diffusion model of a family"),
    ]
    for changes, said in cases:
        with pytest.raises(InputError, match=said):
            resolve(files, **changes)


def change(path: Path, remove: str = "", **added: torch.Tensor) -> None:
    tensors = {key: value for key, value in load_file(path).items() if not (remove and key.endswith(remove))}
    save_file(tensors | added, path)


def test_damage_is_one_line(folder: Path, tmp_path: Path) -> None:
    files, _ = make_files(folder, tmp_path, "scaled fp8")
    whole = files["model"].read_bytes()
    key = {"model.diffusion_model.img_in.comfy_quant": torch.zeros(3, dtype=torch.uint8)}
    for damage, said in (
        (lambda path: change(path, "double_blocks.1.img_attn.qkv.scale_weight"), "scale of 'double_blocks.1"),
        (lambda path: change(path, **key), "comfy_quant"),
        (lambda path: change(path, "double_blocks.1.img_attn.proj.bias"), "does not fit"),
        (lambda path: change(path, **{"text_encoders.clip_l.x": torch.zeros(1)}), "whole checkpoint"),
        (lambda path: change(path, **{"lora_unet_x": torch.zeros(1)}), "mixes models"),
        (lambda path: path.write_bytes(whole[:-8]), "unfinished download"),
        (lambda path: path.write_bytes(b"\x80\x04\x95pickle"), "not a safetensors file"),
    ):
        damage(files["model"])
        with pytest.raises(ModelFileError, match=said) as error:
            resolve(files)
        assert "\n" not in str(error.value)
        files["model"].write_bytes(whole)
    resolve(files)
    other = files["model"].with_suffix(".txt")
    other.write_bytes(whole)
    with pytest.raises(ModelFileError, match=r"\.txt is not read as parts"):
        resolve(files, model=other)
    with pytest.raises(ModelFileError, match="it is a folder"):
        resolve(files, model=files["model"].with_suffix(""))
    loud = files["model"].with_suffix(".SAFETENSORS")
    loud.write_bytes(whole)
    assert resolve(files, model=loud).parts[0] == ("transformer", str(loud))


def test_without_a_tokenizer_it_says_what_to_name(files: dict[str, Path]) -> None:
    for file in (files["model"].with_suffix("") / "tokenizer_2").iterdir():
        file.unlink()
    with pytest.raises(ModelFileError, match=r"no tokenizer_2 .* COMFYUI_PATH") as error:
        loader.load(resolve(files))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["DiffusionPipeline", "nothing", 5])
def test_what_is_no_scheduler_beside_the_file_is_one_line(files: dict[str, Path], name: object) -> None:
    own = files["model"].with_suffix("") / "scheduler"
    own.mkdir(exist_ok=True)
    (own / "scheduler_config.json").write_text(json.dumps({"_class_name": name}), encoding="utf-8")
    with pytest.raises(ModelFileError, match="which is no scheduler") as error:
        loader.load(resolve(files))
    assert "\n" not in str(error.value)

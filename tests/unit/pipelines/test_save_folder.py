"""A model in parts as a diffusers folder: it loads without this pack, and gives what the parts give, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from original_families import build, write
from original_layout import make_files
from test_parts_families import assert_same, in_own_memory, picture

from fastdiffusers import cli
from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.saving.folder import save_folder

pytestmark = pytest.mark.usefixtures("small_edit_pictures", "widened_convolutions")


def resolve(files: dict[str, Path], dtype: str = "float32", **changes: Any) -> Any:
    first, *second = (str(path) for name, path in files.items() if name.startswith("model"))
    encoders = [str(path) for name, path in files.items() if name in ("text", "clip_l", "t5xxl")]
    given: dict[str, Any] = {"text_encoders": encoders, "vae": str(files.get("vae") or files["ae"])}
    given |= {"second_expert": second[0] if second else ""} | changes
    return loader.resolve(str(given.pop("model", first)), in_parts=True, dtype=dtype, device="cpu", **given)


@pytest.mark.parametrize(
    ("family", "precision", "encoder", "dtype"),
    [
        ("flux", "bfloat16", "scaled fp8", "bfloat16"),
        ("flux", "float16", "float32", "float16"),
        ("zimage", "fp8", "float32", "float32"),
        ("qwenimage-edit", "comfy_quant", "bfloat16", "bfloat16"),
        ("wan22-t2v", "scaled fp8", "float32", "float32"),
        ("wan22-i2v", "float32", "float32", "float32"),
    ],
)
def test_the_folder_gives_what_the_parts_give(
    family: str, precision: str, encoder: str, dtype: str, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    if family == "flux":
        files, _ = make_files(tiny.save("flux", tmp_path / "saved"), tmp_path, precision, encoder)
    else:
        files, _ = write(family, build(family), tmp_path, precision, encoder)
    key = resolve(files, dtype)
    seen: list[tuple[int, int]] = []
    saved = save_folder(
        key, tmp_path / "new", Callbacks(on_progress=lambda event: seen.append((event.done, event.total)))
    )
    assert seen[0] == (0, len(key.parts))
    assert seen[-1] == (len(key.parts), len(key.parts))
    parts = loader.load(key).pipeline
    plain = DiffusionPipeline.from_pretrained(saved.folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
    assert_same(plain, parts)
    again = loader.load(loader.resolve(str(saved.folder), dtype=dtype, device="cpu"))
    made = picture(in_own_memory(parts))
    assert made.std() > 0
    for other in (plain, again.pipeline):
        assert (picture(in_own_memory(other)) == made).all()
    assert again.pipeline.scheduler.config == parts.scheduler.config
    model = saved.components[key.parts[0][0]]
    assert model == ("bfloat16" if precision == dtype == "bfloat16" else model)
    if "fp8" in precision:
        assert model == f"{precision + ' e4m3' if precision == 'fp8' else 'scaled fp8 e4m3 mixed with float32'}" + (
            f", written as {dtype}"
        )
    assert saved.bytes == sum(file.stat().st_size for file in saved.folder.glob("*/*.safetensors")) > 0


def test_the_command_writes_it_and_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _ = write("zimage", build("zimage"), tmp_path)
    model = ["--diffusion-model", str(files["model"]), "--text-encoder", str(files["text"]), "--vae", str(files["vae"])]
    command = ["convert", *model, "--output", str(tmp_path / "new"), "--dtype", "fp32", "--device", "cpu"]
    assert cli.main(command) == 0
    assert f"{tmp_path / 'new'}:" in capsys.readouterr().out
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*"))
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*")) == before


def test_an_embedded_tiny_pipeline_and_a_folder(tmp_path: Path) -> None:
    key = loader.resolve("tiny:zimage", dtype="float32", device="cpu")
    folder = save_folder(key, tmp_path / "tiny").folder
    assert_same(loader.load(loader.resolve(str(folder), dtype="float32", device="cpu")).pipeline, tiny.build("zimage"))
    with pytest.raises(InputError, match="a diffusers folder already"):
        save_folder(loader.resolve(str(folder), device="cpu"), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_it_is_complete_or_not_there(tmp_path: Path) -> None:
    files, _ = write("wan22-t2v", build("wan22-t2v"), tmp_path)
    key = resolve(files)
    target = tmp_path / "place" / "new"
    target.parent.mkdir()

    class CancelError(Exception):
        pass

    def cancel(event: Any) -> None:
        if event.done == 2:
            raise CancelError

    with pytest.raises(CancelError):
        save_folder(key, target, Callbacks(on_progress=cancel))
    assert list(target.parent.iterdir()) == []
    whole = files["vae"].read_bytes()
    files["vae"].write_bytes(whole[:-8])
    with pytest.raises(ModelFileError, match="unfinished download"):
        save_folder(key, target)
    assert list(target.parent.iterdir()) == []
    files["vae"].write_bytes(whole)
    for changes, said in (
        ({"text_encoders": ["none"]}, "chosen without its text_encoder"),
        ({"vae": "none"}, "chosen without its vae"),
        ({"quantization": "layerwise-fp8"}, "quantize the folder afterwards"),
    ):
        with pytest.raises(InputError, match=said):
            save_folder(resolve(files, **changes), target)
    with pytest.raises(InputError, match="Create the folder first"):
        save_folder(key, tmp_path / "missing" / "new")
    assert list(target.parent.iterdir()) == []

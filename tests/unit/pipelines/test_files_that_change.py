"""Model files that are deleted, cut off or replaced between runs and in a load: one line, and the next run works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import LoadedPipeline, PipelineHandle, SampleRequest

UNET = "unet/diffusion_pytorch_model.safetensors"
PLAIN = OptimizationSettings.plain()
REQUEST = SampleRequest("x", steps=1, width=64, height=64)


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny SDXL folder that a test may change."""
    return Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES: dict[str, Callable[[Path], object]] = {
    "folder gone": shutil.rmtree,
    "index gone": lambda f: (f / "model_index.json").unlink(),
    "index cut off": lambda f: cut_off(f / "model_index.json"),
    "weights gone": lambda f: (f / UNET).unlink(),
    "weights cut off": lambda f: cut_off(f / UNET),
    "weights empty": lambda f: os.truncate(f / UNET, 0),
    "config cut off": lambda f: cut_off(f / "unet/config.json"),
    "scheduler gone": lambda f: shutil.rmtree(f / "scheduler"),
    "tokenizer cut off": lambda f: cut_off(f / "tokenizer/tokenizer.json"),
    "another model's weights": lambda f: shutil.copy(f / "vae/diffusion_pytorch_model.safetensors", f / UNET),
}


def loaded_or_refused(load: Callable[[], LoadedPipeline]) -> LoadedPipeline | ModelFileError:
    try:
        return load()
    except ModelFileError as error:
        return error


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_change_between_the_check_and_the_load(change: str, folder: Path) -> None:
    key = loader.resolve(str(folder), device="cpu")
    CHANGES[change](folder)
    with pytest.raises(ModelFileError) as caught:
        loader.load(key)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("change", ["weights gone", "weights cut off", "config cut off", "another model's weights"])
@pytest.mark.parametrize("at", [0, 2])
def test_files_that_change_during_the_load(change: str, at: int, folder: Path, tmp_path: Path) -> None:
    """At the first tick of the load, and after two components. What is read already does not matter any more."""
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    expected = loader.load(loader.resolve(str(whole), device="cpu")).pipeline.unet.state_dict()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "load" and progress.done == at and not done:
            done.append(progress.message)
            CHANGES[change](folder)

    done: list[str] = []
    key = loader.resolve(str(folder), device="cpu")
    outcome = loaded_or_refused(lambda: loader.load(key, Callbacks(on_progress)))
    if isinstance(outcome, ModelFileError):
        assert len(str(outcome).splitlines()) == 1
    else:
        found = outcome.pipeline.unet.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert done
    assert loader.load(loader.resolve(str(whole), device="cpu")).pipeline.unet is not None


@pytest.mark.parametrize("change", ["weights gone", "weights cut off", "folder gone"])
def test_a_model_that_is_broken_between_runs_and_mended_again(change: str, folder: Path, tmp_path: Path) -> None:
    """A broken model is refused by name, and the same path works again once the files are back."""
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    first = generate(PipelineHandle(loader.resolve(str(folder), device="cpu")), REQUEST, PLAIN)
    CHANGES[change](folder)
    with pytest.raises(ModelFileError) as caught:
        loader.resolve(str(folder), device="cpu")
    assert len(str(caught.value).splitlines()) == 1
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    again = generate(PipelineHandle(loader.resolve(str(folder), device="cpu")), REQUEST, PLAIN)
    assert first.frames is not None
    assert again.frames is not None
    assert torch.equal(first.frames, again.frames)
    CACHE.clear()


def test_weights_that_are_cut_off_under_a_loaded_pipeline_are_not_read(folder: Path) -> None:
    """They are mapped from their file, and reading them there would end the process. So it is one of its own."""
    program = """
import os, sys
from fastdiffusers.commands.libraries import prepare_libraries
prepare_libraries(False)
from fastdiffusers.errors import ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest
handle = PipelineHandle(loader.resolve(sys.argv[1], device="cpu"))
request = SampleRequest("x", steps=1, width=64, height=64)
generate(handle, request, OptimizationSettings.plain())
os.truncate(sys.argv[2], 100)
try:
    generate(handle, request, OptimizationSettings.plain())
except ModelFileError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(folder), str(folder / UNET)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "beginning is damaged" in done.stdout


@pytest.mark.parametrize("seconds", [-86_400 * 365, 86_400 * 365])
def test_a_clock_that_is_stepped_during_a_run(seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times in the report come from a clock that is never stepped; a result is the same whatever the date is."""
    handle = PipelineHandle(loader.resolve("tiny:sdxl", device="cpu"))
    expected = generate(handle, REQUEST, PLAIN)
    real, stepped = time.time, []

    def on_progress(progress: Progress) -> None:
        if progress.stage == "denoise" and not stepped:
            stepped.append(1)
            monkeypatch.setattr(time, "time", lambda: real() + seconds)

    result = generate(handle, REQUEST, PLAIN, Callbacks(on_progress))
    assert stepped
    assert expected.frames is not None
    assert result.frames is not None
    assert torch.equal(result.frames, expected.frames)
    assert all(0 <= seconds < 60 for seconds in (*result.step_seconds, *result.stage_seconds.values()))

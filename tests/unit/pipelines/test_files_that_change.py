"""Model files that are deleted, cut off or replaced between runs and in a load: one line, and the next run works."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.commands.latent_file import read_latent, read_sound
from fastdiffusers.errors import ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.adapters.file import read as read_adapter
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.mapped_files import mapped_files
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
    """They are mapped from their file, and reading them there ends the process. So it is one of its own: between runs
    the file is looked at before it is read, and within a step the process ends, but not without a word.
    """
    program = """
import faulthandler, os, sys
from fastdiffusers.commands.libraries import prepare_libraries
prepare_libraries(False)
from fastdiffusers.errors import ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest
folder, weights = sys.argv[1:]
handle = PipelineHandle(loader.resolve(folder, device="cpu"))
request = SampleRequest("x", steps=1, width=64, height=64)
generate(handle, request, OptimizationSettings.plain())
whole = open(weights, "rb").read()
os.truncate(weights, 100)
try:
    generate(handle, request, OptimizationSettings.plain())
except ModelFileError as error:
    print(error, flush=True)
open(weights, "wb").write(whole)
handle = PipelineHandle(loader.resolve(folder, device="cpu"))
with CACHE.use(handle.key) as loaded:
    loaded.pipeline.unet.mid_block.register_forward_pre_hook(lambda *given: os.truncate(weights, 100))
assert not faulthandler.is_enabled()
generate(handle, request, OptimizationSettings.plain())
"""
    command = [sys.executable, "-c", program, str(folder), str(folder / UNET)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "beginning is damaged" in done.stdout
    assert done.returncode == -signal.SIGBUS, done.stderr[-2000:]
    assert "Fatal Python error: Bus error" in done.stderr


def rewritten(path: Path) -> None:
    """The same bytes, written into the same file."""
    with path.open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content)
    os.utime(path, (1, 1))  # whatever a clock's resolution is


def replaced(path: Path) -> None:
    """Other bytes in a new file of the name."""
    path.with_suffix(".new").write_bytes(b"none")
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("stage", ["denoise", "decode"])
@pytest.mark.parametrize("change", [rewritten, replaced, Path.unlink])
def test_what_is_written_into_a_mapped_file_during_a_run_is_said(
    change: Callable[[Path], None], stage: str, folder: Path
) -> None:
    """A result from weights that changed meanwhile is thrown away; one from a file that was replaced is what it was."""
    handle = PipelineHandle(loader.resolve(str(folder), dtype="float32", device="cpu"))
    request = SampleRequest("x", steps=2, width=64, height=64)
    expected = generate(handle, request, PLAIN).frames
    steps: list[int] = []

    def on_progress(progress: Progress) -> None:
        if progress.stage == "denoise":
            steps.append(progress.done)
        if progress.stage == stage and not changed:
            changed.append(stage)
            change(folder / UNET)

    changed: list[str] = []
    if change is rewritten:
        with pytest.raises(ModelFileError, match="was written to while the run read its weights"):
            generate(handle, request, PLAIN, Callbacks(on_progress))
        assert stage == "decode" or max(steps) < 2, "it ends at the next step"
        assert torch.equal(generate(handle, request, PLAIN).frames, expected)  # type: ignore[arg-type]
    else:
        assert torch.equal(generate(handle, request, PLAIN, Callbacks(on_progress)).frames, expected)  # type: ignore[arg-type]
    assert changed
    CACHE.clear()


def test_weights_that_were_converted_are_in_no_file_any_more(folder: Path) -> None:
    handle = PipelineHandle(loader.resolve(str(folder), dtype="bfloat16", device="cpu"))
    expected = generate(handle, REQUEST, PLAIN).frames
    with CACHE.use(handle.key) as loaded:
        assert loaded.mapped == {}
        rewritten(folder / UNET)
    CACHE.clear()
    again = PipelineHandle(loader.resolve(str(folder), dtype="bfloat16", device="cpu"))
    assert torch.equal(generate(again, REQUEST, PLAIN).frames, expected)  # type: ignore[arg-type]


def test_adapters_and_latents_are_in_no_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"samples": torch.ones(1, 4, 64, 64), "waveform": torch.ones(1, 2, 9)}, path, {"sample_rate": "9"})
    kept = [read_adapter(str(path), ["samples"]), read_latent(path), read_sound(path)]
    assert mapped_files(path) == {}
    assert len(kept) == 3


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

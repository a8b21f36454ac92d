"""Shared by all tests: OMP_NUM_THREADS threads, else one; no network; torchvision without compiled operators; tiny
pipelines."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for copied_pipelines, edit_pictures, prompt_runs and others

from copied_pipelines import copying
from edit_pictures import make_edit_pictures_small

from fastdiffusers.commands.libraries import declare_torchvision_ops

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# pytest listens to every logger at every level, and that wakes dynamo's trace, which writes thousands of lines a graph;
# while a handler waits for them, they are made even where the logger is disabled.
logging.getLogger("torch.__trace").disabled = True
logging.getLogger("torch.__trace").handlers.clear()
# Started in the background, pytest ignores Ctrl-C, and the processes that tests start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
declare_torchvision_ops()


def pytest_collection_finish() -> None:
    """What the test files have imported stays: later collections of garbage need not go through millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _quiet_libraries() -> None:
    """Progress bars and advice of the libraries would drown a failing test's own output."""
    import diffusers.utils.logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _own_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's measurements, or another test's."""
    monkeypatch.setenv("FASTDIFFUSERS_CACHE", str(tmp_path / "measurements"))
    auto = sys.modules.get("fastdiffusers.optimizations.tuning.auto")
    if auto is not None:
        auto.RUN_HISTORY.forget()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Nothing is compiled yet, and nothing stays compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a saved tiny pipeline by family name, built once for all xdist workers. Read only: copy to change."""
    from fastdiffusers.pipelines import tiny

    # Under xdist every worker has its own base folder, all in one parent.
    root = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent
    root = root / "tiny_pipelines"
    root.mkdir(exist_ok=True)

    def folder(family: str) -> Path:
        target = root / family
        if not target.exists():
            # Saved aside and renamed: a worker sees a whole folder or none. Whoever comes second throws its own away.
            aside = root / f"{family}.{os.getpid()}"
            tiny.save(family, aside)
            try:
                aside.rename(target)
            except OSError:
                shutil.rmtree(aside)
        return target

    return folder


@pytest.fixture(autouse=True, scope="session")
def _tiny_pipelines_are_copied() -> Iterator[None]:
    """Wherever a tiny pipeline is built in this process, "tiny:flux" included; test_tiny.py holds copies against it."""
    from fastdiffusers.pipelines import tiny

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "build", copying(tiny.build))
        yield


@pytest.fixture
def tiny_pipeline() -> Callable[[str], DiffusionPipeline]:
    """A fresh tiny pipeline by family name."""
    from fastdiffusers.pipelines import tiny

    return lambda family, seed=0: tiny.build(family, seed)


@pytest.fixture
def small_edit_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Qwen-Image-Edit work on small pictures."""
    make_edit_pictures_small(monkeypatch.setattr)


@pytest.fixture
def widened_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolve half precision in float32 and round, as the video VAE does, where a processor lacks half precision.

    There PyTorch's own loops take a hundred times as long, in diffusers as in this pack.
    """
    from torch.nn import functional

    from fastdiffusers.vae.network.convolution import in_float32, is_widened

    def widening(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def convolve(x: torch.Tensor, weight: torch.Tensor, bias: Any = None, *rest: Any, **named: Any) -> torch.Tensor:
            called = partial(original, **named)
            return in_float32(called, x, weight, bias, *rest) if is_widened(x) else called(x, weight, bias, *rest)

        return convolve

    for name in ("conv2d", "conv3d"):
        monkeypatch.setattr(functional, name, widening(getattr(functional, name)))

"""A real ComfyUI, started once per test process, with this pack and the tests' own probe as custom nodes.

Found through COMFYUI_PATH or in the usual folders; without one, or without its requirements, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

# pytest's importlib mode leaves sys.path alone; the helper modules beside this file are found through it.
sys.path.append(str(Path(__file__).parent))

if TYPE_CHECKING:
    from comfy_client import Client

    from fastdiffusers.scripts.browser import Browser

LONGEST = (
    "test_cluster.py",
    "test_workflows.py",
    "test_editor.py",
    "test_encoded_texts.py",
    "test_core_vae_changed.py",
)
"""Begun first, so that no worker is left with one of them at the end."""
REQUIREMENTS = ("aiohttp", "av", "comfyui_frontend_package", "comfy_kitchen", "torchsde", "alembic")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from fastdiffusers.scripts.comfyui_server import find_comfyui

    core = find_comfyui()
    absent = [
        item
        for item in items
        if core and (mark := item.get_closest_marker("core_has")) and not (core / mark.args[0]).is_file()
    ]
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if item not in absent]
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI checkout."""
    from fastdiffusers.scripts.comfyui_server import find_comfyui

    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found: COMFYUI_PATH=folder names one")
    missing = [name for name in REQUIREMENTS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"ComfyUI's requirements are not installed: {', '.join(missing)}")
    return found


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's base directory: its models, inputs and outputs."""
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="session")
def models(base: Path) -> Path:
    """Its models folder, with two saved pipelines and a few that are no good."""
    from fastdiffusers.pipelines import tiny

    diffusers = base / "models" / "diffusers"
    for family in ("sdxl", "zimage"):
        tiny.save(family, diffusers / f"saved-{family}")
    _save_video_vae(base / "models" / "vae" / "small_video_vae.safetensors")
    _save_inputs(base / "input")
    return base / "models"


@pytest.fixture(scope="session")
def server(comfyui: Path, base: Path, models: Path) -> Iterator[Client]:
    """The running server. Ended with the session, whatever happens."""
    from comfy_client import Client

    from fastdiffusers.scripts.comfyui_server import ComfyServer

    (base / "custom_nodes").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("probe_nodes.py"), base / "custom_nodes")
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with ComfyServer(base, comfyui, ["--preview-method", "latent2rgb"], environment=environment) as running:
        yield Client(running)


@pytest.fixture(scope="module")
def page(server: Client) -> Iterator[Browser]:
    """ComfyUI's editor in a headless browser."""
    from fastdiffusers.scripts.browser import Browser, find_chromium

    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed")
    with Browser(program) as page:
        page.open(server.server.url)
        yield page


@pytest.fixture(scope="session")
def core(comfyui: Path) -> Any:
    """ComfyUI's modules imported into this process, on the CPU: `core.sd`, `core.model_management`, `core.nodes`."""
    from fastdiffusers.benchmarks.core_nodes import import_comfyui

    import_comfyui(comfyui)
    import comfy

    assert Path(sys.modules["nodes"].__file__ or "").parent == comfyui
    return comfy


def _save_video_vae(path: Path) -> None:
    """A causal video VAE of the shipped one's architecture with few channels and random weights."""
    import torch
    from safetensors.torch import save_file

    from fastdiffusers.vae import VaeConfig, VideoVAE

    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(VideoVAE(VaeConfig(block_out_channels=(32, 32, 64, 64))).state_dict(), path)


def _save_inputs(folder: Path) -> None:
    """A picture, the one that ComfyUI's own example is called after, and a clip of 9 frames."""
    import av

    folder.mkdir(exist_ok=True)
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], 255 - ramp), axis=-1)
    for name in ("gradient.png", "example.png"):
        Image.fromarray(pixels).save(folder / name)
    with av.open(str(folder / "input.mp4"), "w") as clip:
        stream = clip.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shift in range(9):
            frame = av.VideoFrame.from_ndarray(np.roll(pixels, 4 * shift, axis=1), format="rgb24")
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode())

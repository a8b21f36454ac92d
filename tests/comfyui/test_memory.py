"""Memory under ComfyUI's management: what is given back, when, and that nothing is lost by it."""

from __future__ import annotations

import gc
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch

from fastdiffusers.callbacks import SILENT
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.types import PipelineHandle

if TYPE_CHECKING:
    from pathlib import Path

    from comfy_client import Client

TINY = "embedded tiny: "
SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 4}
MIB = 1 << 20


def resident_bytes(server: Client) -> int:
    """Memory of the server's process."""
    process = server.server._process
    assert process is not None
    return psutil.Process(process.pid).memory_info().rss


def core_graph(server: Client, seed: int) -> dict[str, Any]:
    """A graph of ComfyUI's own nodes alone: with it the outputs of the graph before are dropped."""
    return {
        "picture": server.node("EmptyImage", width=64, height=64, color=seed),
        "scaled": server.node("ImageScale", image=["picture", 0], width=96, height=96),
        "save": server.node("SaveImage", images=["scaled", 0], filename_prefix="core"),
    }


def free(server: Client) -> None:
    """`/free` as the manager's button sends it, until the worker has done it.

    Sent again every few seconds: ComfyUI's worker reads what was sent when it wakes, and what comes between its reading
    and its going to sleep (after each graph it collects garbage there) waits up to 1000 s for the next occasion.
    """
    deadline = time.monotonic() + 120
    while True:
        server.server.post("/free", {"unload_models": True, "free_memory": True})
        again = time.monotonic() + 5
        while time.monotonic() < again:
            if "DiffusionPipeline" not in (alive := server.server.get("/probe")["alive"]):
                return
            time.sleep(0.2)
        assert time.monotonic() < deadline, alive


def test_pipelines_and_core_graphs_alternate_without_growth(server: Client) -> None:
    first = server.images(server.succeed(server.sampling(TINY + "flux", **SMALL)))
    sizes = []
    for turn in range(10):
        server.succeed(core_graph(server, turn))
        prompt = server.sampling(TINY + ("sdxl" if turn % 2 else "flux"), **SMALL)
        pictures = server.images(server.succeed(prompt))
        if turn % 2 == 0:
            assert np.array_equal(pictures, first)
        sizes.append(resident_bytes(server))
    assert max(sizes[5:]) - sizes[1] < 64 * MIB, [size // MIB for size in sizes]


def test_nothing_of_any_graph_before_lives_on(server: Client) -> None:
    """Whatever this server has run until now, and a pipeline with everything as the nodes come: all is let go."""
    server.succeed(server.sampling(TINY + "wan22-t2v", **SMALL))
    alive = server.server.get("/probe")["alive"]
    assert alive["DiffusionPipeline"] == 1
    server.succeed(core_graph(server, seed=99))
    alive = server.server.get("/probe")["alive"]
    assert alive.keys() <= {"ExternalModelPatcher"}, alive


def test_free_gives_the_pipeline_back_and_the_next_run_equals_the_first(server: Client) -> None:
    before = server.succeed(server.sampling(TINY + "sd3", **SMALL))
    free(server)
    after = server.succeed(server.sampling(TINY + "sd3", **SMALL))
    assert np.array_equal(server.images(before), server.images(after))
    loads = [server.report(entry)["facts"]["loaded_at"] for entry in (before, after)]
    assert loads[0] != loads[1], "the pipeline had been let go and was loaded again"


@pytest.fixture
def handle(core: Any) -> PipelineHandle:
    """A tiny pipeline's handle as the loader node makes it."""
    from fastdiffusers.nodes.host import memory_management
    from fastdiffusers.pipelines.loading import loader

    CACHE.clear()
    return memory_management.keep_while_alive(PipelineHandle(loader.resolve("tiny:sdxl", device="cpu")))


def test_the_last_handle_takes_the_pipeline_along(core: Any) -> None:
    from fastdiffusers.nodes.host import memory_management
    from fastdiffusers.pipelines.loading import loader

    CACHE.clear()
    key = loader.resolve("tiny:sdxl", device="cpu")
    handles = [memory_management.keep_while_alive(PipelineHandle(key)) for _ in range(2)]
    with CACHE.use(key) as loaded:
        pipeline = weakref.ref(loaded.pipeline)
    del loaded
    handles.pop()
    assert CACHE.peek(key) is not None, "another node still uses it"
    handles.pop()
    gc.collect()
    assert CACHE.keys() == ()
    assert pipeline() is None


def test_comfyui_lists_the_pipeline_and_asks_it_to_leave(
    core: Any, handle: PipelineHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiffusers.nodes.host import memory_management

    mm = core.model_management
    mm.unload_all_models()
    with memory_management.on_card(handle), CACHE.use(handle.key) as loaded:
        total = sum(p.numel() * p.element_size() for p in loaded.pipeline.unet.parameters())
    (patcher,) = [model for model in mm.loaded_models() if isinstance(model, memory_management.ExternalModelPatcher)]
    assert patcher.loaded_size() > total, "all components count"
    assert patcher.model_size() == patcher.loaded_size()
    left = []
    monkeypatch.setattr(patcher, "leave", lambda: left.append(True))
    mm.unload_all_models()
    assert left == [True]
    assert patcher not in mm.loaded_models()
    with memory_management.on_card(handle):
        assert patcher in mm.loaded_models(), "the next run lists it again"


def test_the_weights_stay_where_they_are_from_run_to_run(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiffusers.nodes.host.memory_management import ExternalModelPatcher, make_room

    def plenty(device: torch.device, torch_free_too: bool = False) -> Any:
        return (1 << 40, 1 << 40) if torch_free_too else 1 << 40

    monkeypatch.setattr(core.model_management, "get_free_memory", plenty)
    moves = []

    class Weights(torch.nn.Linear):
        def to(self, device: torch.device) -> torch.nn.Module:  # type: ignore[override]
            moves.append(str(device))
            return self

    weights = Weights(4, 4, device="meta")
    patcher = ExternalModelPatcher(torch.device("meta"), 0)
    patcher.follow([weights])
    for _ in range(3):
        make_room(patcher, 0)
    assert moves == []
    core.model_management.free_memory(1e30, torch.device("meta"))
    assert moves == ["cpu"]


def test_a_patcher_moves_only_what_no_hook_moves(core: Any) -> None:
    from fastdiffusers.nodes.host.memory_management import ExternalModelPatcher

    class Weights(torch.nn.Linear):
        moved = ""

        def to(self, device: torch.device) -> torch.nn.Module:  # type: ignore[override]
            self.moved = str(device)
            return self

    plain, hooked = Weights(4, 4, device="meta"), Weights(4, 4, device="meta")
    hooked._hf_hook = object()
    patcher = ExternalModelPatcher(torch.device("meta"), 0)
    patcher.follow([plain, hooked])
    assert patcher.loaded_size() == patcher.model_size() == 2 * 20 * 4
    assert patcher.current_loaded_device() == torch.device("meta")
    patcher.detach()
    assert (plain.moved, hooked.moved) == ("cpu", "")
    gone = weakref.ref(plain)
    del plain
    assert gone() is None, "a patcher keeps nothing alive"
    assert patcher.loaded_size() == 20 * 4


def test_another_way_to_run_a_video_vae_loads_nothing_anew(core: Any, models: Path) -> None:
    from fastdiffusers.nodes import types, video_vae

    path = models / "vae" / "small_video_vae.safetensors"

    def handle(**how: Any) -> Any:
        return types.VideoVaeHandle(types.video_vae_file(str(path), video_vae.identity(path)), **how)

    first, second = handle(), handle(kernels="eager", overlap_tiles=True)
    loaded = weakref.ref(video_vae.load(first))
    assert video_vae.load(second) is loaded()
    del first
    gc.collect()
    assert video_vae.load(second) is loaded()
    del second
    gc.collect()
    assert loaded() is None, "the weights go with the last handle"


@pytest.mark.parametrize(
    ("dtype", "convolution", "applied", "reason"),
    [
        ("float32", "auto", "F(4,3)", ""),
        ("float32", "conv3d", "conv3d", ""),
        ("bfloat16", "auto", "conv3d", "fast allows it"),
        ("bfloat16", "fast", "F(4,3)", ""),
    ],
)
def test_how_a_video_vae_convolves_is_chosen_at_its_node(
    core: Any, models: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, convolution: str, applied: str, reason: str
) -> None:
    from fastdiffusers.nodes import vae as nodes
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices
    from fastdiffusers.vae.network import temporal

    monkeypatch.setattr(nodes, "video_vae_path", lambda name: str(models / "vae" / name))
    monkeypatch.setattr(temporal, "FEWEST_CHANNELS", 1)  # those of the small VAE that the tests have
    monkeypatch.setattr(temporal, "FEWEST_CELLS", 1)
    monkeypatch.setattr(temporal.CHOICE, "most", lambda x, weight, allowed: allowed)
    loaded = nodes.LoadVideoVAE.execute("small_video_vae.safetensors", dtype, convolution=convolution)
    z = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        frames, report = vae_engines.decode(loaded.result[0], {"samples": z}, VaeChoices(), SILENT)
    assert frames.isfinite().all()
    assert report["convolution"].requested == convolution
    assert applied in report["convolution"].applied
    assert reason in report["convolution"].reason

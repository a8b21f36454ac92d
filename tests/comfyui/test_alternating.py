"""A checkpoint of ComfyUI's own and a pipeline of this pack, again and again in one process: nothing is kept, nothing
changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import core_checkpoint
import numpy as np
import pytest

if TYPE_CHECKING:
    from comfy_client import Client

TURNS = 10
SETTLED = 3
"""Turns after which everything that is made once has been made."""
MIB = 1 << 20
CHECKPOINT = "tiny_sd3.safetensors"
SMALL = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module", autouse=True)
def _checkpoint(core: Any, server: Client) -> None:
    core_checkpoint.save(server.base / "models" / "checkpoints" / CHECKPOINT)
    server.info = server.server.object_info()


def core_branch(server: Client, seed: int) -> dict[str, Any]:
    """ComfyUI's own nodes from checkpoint to picture."""
    widths = {"width": core_checkpoint.CONTEXT, "pooled": core_checkpoint.POOLED}
    size = {"width": 64, "height": 64}
    return {
        "checkpoint": server.node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "words": server.node("TestZeroConditioning", **widths),
        "empty": server.node("EmptySD3LatentImage", **size),
        "denoise": server.node(
            "KSampler",
            model=["checkpoint", 0],
            positive=["words", 0],
            negative=["words", 0],
            latent_image=["empty", 0],
            seed=seed,
            steps=2,
        ),
        "decode": server.node("VAEDecode", samples=["denoise", 0], vae=["checkpoint", 2]),
        "core": server.node("SaveImage", images=["decode", 0], filename_prefix="core"),
    }


def pack_branch(server: Client, seed: int) -> dict[str, Any]:
    """The same with a pipeline of this pack."""
    branch = server.sampling("embedded tiny: sd3", save=False, seed=seed, **SMALL)
    return {**branch, "pack": server.node("SaveImage", images=["sample", 0], filename_prefix="pack")}


def drawn(server: Client, entry: dict[str, Any]) -> list[np.ndarray]:
    """The pictures of both branches, where the graph had both."""
    return [server.images(entry, node) for node in ("core", "pack") if node in entry["outputs"]]


def assert_no_growth(turns: list[dict[str, Any]]) -> None:
    """The same objects and bytes of tensors after every turn of a kind, and a process that grows no more."""
    for key in ("alive", "listed", "tensor_bytes", "listed_bytes"):
        for kind in (0, 1):
            values = [turn[key] for turn in turns[SETTLED:]][kind::2]
            assert all(value == values[0] for value in values), f"{key}: {values}"
    sizes = [turn["resident_bytes"] for turn in turns]
    assert max(sizes[TURNS // 2 :]) - sizes[SETTLED - 1] < 32 * MIB, [size // MIB for size in sizes]


def test_both_in_one_graph(server: Client) -> None:
    first: dict[int, list[np.ndarray]] = {}
    turns = []
    for turn in range(TURNS):
        seed = turn % 2  # a graph with the seed before would only be looked up in ComfyUI's cache
        entry = server.succeed({**core_branch(server, seed), **pack_branch(server, seed)})
        pictures = drawn(server, entry)
        assert len(pictures) == 2
        for one, other in zip(first.setdefault(seed, pictures), pictures, strict=True):
            assert np.array_equal(one, other)
        turns.append(server.server.get("/probe"))
    assert all(np.any(one != other) for one, other in zip(first[0], first[1], strict=True)), "both were run anew"
    assert turns[-1]["alive"]["DiffusionPipeline"] == 1
    assert {"SD3", "FastDiffusersModel"} <= set(turns[-1]["listed"])
    assert_no_growth(turns)


def test_one_after_the_other(server: Client) -> None:
    first: dict[int, list[np.ndarray]] = {}
    turns = []
    for turn in range(2 * TURNS):
        graph = (core_branch, pack_branch)[turn % 2](server, seed=3)
        (picture,) = drawn(server, server.succeed(graph))
        assert picture.std() > 0
        assert np.array_equal(first.setdefault(turn % 2, [picture])[0], picture)
        turns.append(server.server.get("/probe"))
    pipelines = [turn["alive"].get("DiffusionPipeline", 0) for turn in turns]
    models = [turn["alive"].get("BaseModel", 0) for turn in turns]
    assert pipelines == [0, 1] * TURNS, "a graph without the pipeline lets it go"
    assert models == [1, 0] * TURNS, "and the checkpoint goes the same way"
    assert_no_growth(turns)

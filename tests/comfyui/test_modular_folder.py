"""Modular folders in a running ComfyUI: the loader lists them, and the sampler gives what bare diffusers gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "unit" / "modular"))

if TYPE_CHECKING:
    from comfy_client import Client

pytest.importorskip("diffusers.modular_pipelines.minimax_h3", reason="this release of diffusers has no MiniMax-H3")

SMALL = {"width": 32, "height": 32, "steps": 3, "seed": 5, "num_frames": 124}
PLAIN = {"attention": "sdpa", "torch_compile": "off", "vae_tiling": "off", "step_cache": "off"}


@pytest.fixture(scope="module")
def modular(models: Path) -> Iterator[Callable[[str], Path]]:
    """Saves a tiny modular model among ComfyUI's."""
    import shutil

    from fastdiffusers.commands.libraries import declare_torchvision_ops

    declare_torchvision_ops()
    from this_year import save_model

    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(models / "diffusers" / f"modular {name}")
        return save_model(name, made[-1])

    yield make
    for folder in made:
        shutil.rmtree(folder)


def test_a_modular_folder_is_offered_and_runs_with_its_sound(server: Client, modular: Any) -> None:
    import av
    from modular_twins import bare

    folder = modular("minimax-h3")
    kind = "FastDiffusersLoadPipeline"
    assert folder.name in server.server.object_info()[kind]["input"]["required"]["model"][1]["options"]
    prompt = server.sampling(folder.name, **{**PLAIN, **SMALL})
    prompt["video"] = server.node("SaveVideo", video=["sample", 4], filename_prefix="modular")
    entry = server.succeed(prompt)
    torch.set_num_threads(1)
    inputs = {"width": 32, "height": 32, "num_frames": 124, "num_inference_steps": 3, "output_type": "np"}
    state = bare(folder)(prompt="a cat", generator=torch.Generator().manual_seed(5), **inputs).values
    expected = (np.asarray(state["videos"])[0] * 255).clip(0, 255).astype(np.uint8)
    assert np.array_equal(server.images(entry), expected)
    saved = entry["outputs"]["video"]["images"][0]
    with av.open(str(server.base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 124
        assert float(container.streams.video[0].average_rate) == 24.0
        assert (container.streams.audio[0].rate, container.streams.audio[0].channels) == (32_000, 2)
    facts = server.report(entry)["facts"]
    assert facts["family"] == "minimax-h3"
    assert facts["sound"].endswith("2 channel(s) at 32000 Hz; ComfyUI's LATENT holds the picture alone")
    assert facts["steps"] == 2


@pytest.mark.parametrize("family", ["flux3", "minimax-h3"])
def test_the_latent_of_an_embedded_one_decodes_to_the_same_picture(server: Client, family: str) -> None:
    model, small = f"embedded tiny: {family}", {**PLAIN, **SMALL, "width": 64, "height": 64}
    decoded = server.images(server.succeed(server.sampling(model, **small)))
    prompt = server.sampling(model, **small, decode=False)
    prompt["decode"] = server.node("FastDiffusersVAEDecode", samples=["sample", 1], vae=["load", 0])
    prompt["save"]["inputs"]["images"] = ["decode", 0]
    assert np.array_equal(server.images(server.succeed(prompt)), decoded)

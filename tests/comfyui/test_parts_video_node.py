"""LTX-2 in a real ComfyUI from the one file in which it is published, among its checkpoints, and Gemma beside it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "unit" / "pipelines"))

if TYPE_CHECKING:
    from comfy_client import Client

NAME = "whole-ltx2"
SMALL = {"width": 64, "height": 64, "num_frames": 9, "steps": 2, "seed": 5, "guidance": 1.0, "prompt": "a red fox"}


@pytest.fixture(scope="module")
def files(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    from fastdiffusers.commands.libraries import declare_torchvision_ops

    declare_torchvision_ops()
    from ltx2_parts import ltx2, write_ltx2

    place = tmp_path_factory.mktemp("ltx2")
    written, twin = write_ltx2(ltx2(), place, "whole", NAME)
    found = {"model": models / "checkpoints" / f"{NAME}.safetensors"}
    found["text"] = models / "text_encoders" / f"{NAME}-gemma.safetensors"
    for name, path in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        written[name].rename(path)
    beside = found["model"].with_suffix("")
    (place / NAME).rename(beside)
    folder = models / "diffusers" / f"{NAME}-twin"
    twin.rename(folder)
    yield found
    for path in found.values():
        path.unlink()
    for path in (beside, folder):
        shutil.rmtree(path)


def graph(server: Client) -> dict[str, Any]:
    prompt = server.sampling(f"{NAME}-twin", save=False, **SMALL)
    prompt["latent"] = server.node("SaveLatent", samples=["sample", 1], filename_prefix="sampled")
    return prompt


def parts_graph(server: Client, **changes: Any) -> dict[str, Any]:
    prompt = graph(server)
    chosen = {"diffusion_model": f"checkpoints/{NAME}.safetensors", **changes}
    prompt["load"] = server.node("FastDiffusersLoadPipelineParts", **chosen)
    return prompt


def test_one_file_and_its_text_encoder_give_the_clip_of_the_folder(server: Client, files: dict[str, Path]) -> None:
    inputs = server.server.object_info()["FastDiffusersLoadPipelineParts"]["input"]["required"]
    kind, *rest = inputs["diffusion_model"]
    assert f"checkpoints/{NAME}.safetensors" in (rest[0]["options"] if kind == "COMBO" else kind)
    whole = server.succeed(graph(server))
    entry = server.succeed(parts_graph(server, text_encoder_1=files["text"].name))
    assert torch.allclose(server.latent(entry), server.latent(whole), atol=1e-4)
    facts = server.report(entry)["facts"]
    assert {*facts["parts"]} == {"transformer", "connectors", "text_encoder", "vae", "audio_vae", "vocoder"}
    assert "sound" in facts
    silent = server.succeed(parts_graph(server, text_encoder_1=files["text"].name, audio_vae="none"))
    assert torch.equal(server.latent(silent), server.latent(entry))
    report = server.report(silent)
    assert report["facts"]["left out"] == "audio_vae"
    assert any(note.startswith("no sound: the model was loaded without") for note in report["notes"])

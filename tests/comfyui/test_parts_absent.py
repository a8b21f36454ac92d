"""Models in parts without text encoders or VAE, with ComfyUI's own in their place, and saved as a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from comfy_client import nearly_equal

if TYPE_CHECKING:
    from comfy_client import Client

MODEL, ENCODED, DECODED = "embedded tiny: z-image", "none (CONDITIONING)", "none (LATENT)"
SAVED = "saved-parts"


def graph(server: Client, parts: dict[str, Any], **widgets: Any) -> dict[str, Any]:
    """Parts, a tiny CLIP and VAE of ComfyUI's, its text encoding, and a sampler."""
    chosen = {"diffusion_model": MODEL, **parts}
    small = {"width": 64, "height": 64, "steps": 2, "seed": 3}
    prompt = server.sampling("embedded tiny: flux", **{"prompt": "", **small, **widgets})
    prompt["load"] = server.node("FastDiffusersLoadPipelineParts", **chosen)
    prompt["tiny"] = server.node("FastDiffusersTinyEncoder")
    prompt["text"] = server.node("CLIPTextEncode", clip=["tiny", 0], text="a red fox")
    return prompt


def test_comfyuis_vae_decodes_as_its_own_node_does(server: Client) -> None:
    texts = {"positive": ["text", 0]}
    alone = graph(server, {"text_encoder_1": ENCODED, "vae": DECODED}, **texts)
    alone["decoded"] = server.node("VAEDecode", samples=["sample", 1], vae=["tiny", 1])
    alone["save"]["inputs"]["images"] = ["decoded", 0]
    entry = server.succeed(alone)
    expected, report = server.images(entry), server.report(entry)
    assert expected.std() > 1
    assert list(report["facts"]["weights_mib"]) == ["transformer"]
    assert report["facts"]["left out"] == "text_encoder and vae"
    assert any(note.startswith("no images: the model was loaded without its VAE") for note in report["notes"])
    for vae in ("auto", DECODED):
        within = graph(server, {"text_encoder_1": ENCODED, "vae": vae, "comfyui_vae": ["tiny", 1]}, **texts)
        entry = server.succeed(within)
        assert np.array_equal(server.images(entry), expected)
        assert "decoded by" in server.report(entry)["facts"]
        assert "decode" in server.report(entry)["facts"]["seconds"]
    within["fast"] = server.node("FastDiffusersVAEDecode", samples=["sample", 1], vae=["load", 0])
    within["save"]["inputs"]["images"] = ["fast", 0]
    within["sample"]["inputs"]["decode"] = False
    assert np.array_equal(server.images(server.succeed(within)), expected)


def test_what_is_left_out_is_asked_for_by_name(server: Client) -> None:
    for parts, widgets, said in (
        ({"text_encoder_1": ENCODED}, {"prompt": "a fox"}, "loaded without a text encoder"),
        (
            {"text_encoder_1": ENCODED, "vae": DECODED},
            {"positive": ["text", 0], "images.image_1": ["picture", 0], "strength": 0.5},
            "loaded without its VAE",
        ),
        ({}, {"positive": ["text", 0], "negative": ["text", 0], "guidance": 3.0}, ""),
        ({}, {"positive": ["text", 0], "guidance": 3.0}, "guidance = 3 needs one"),
        ({}, {"negative": ["text", 0]}, "one call takes both"),
    ):
        prompt = graph(server, parts, **widgets)
        prompt["picture"] = server.node("LoadImage", image="gradient.png")
        if said:
            assert said in server.error(server.run(prompt))["exception_message"]
        else:
            server.succeed(prompt)


def test_a_vae_for_other_latents_is_refused_before_a_step_is_made(server: Client) -> None:
    """Its loader says so: after the last step the latent would be lost with the run."""
    prompt = graph(server, {"comfyui_vae": ["other", 0]}, positive=["text", 0])
    for channels, said in ((4, "it takes latents of 4 channels, and those of zimage have 16"), (16, "")):
        prompt["other"] = server.node("TestTinyVae", channels=channels)
        entry = server.run(prompt)
        if not said:
            assert entry["status"]["status_str"] == "success"
            continue
        error = server.error(entry)
        assert error["node_id"] == "load"
        assert error["exception_message"].startswith("comfyui_vae = 'connected': ")
        assert said in error["exception_message"]
        assert "\n" not in error["exception_message"].strip()


@pytest.mark.parametrize("kind", ["sound", "other"])
def test_what_a_vae_cannot_decode_is_told_from_the_object(core: Any, kind: str) -> None:
    import core_vaes

    from fastdiffusers.errors import InputError
    from fastdiffusers.nodes.host.core_vae import check_belongs

    vae = core_vaes.image_vae(core)
    if kind == "sound":
        vae.latent_dim = 1
    with pytest.raises(InputError, match=r"^comfyui_vae = "):
        check_belongs("comfyui_vae", vae, "sdxl", 4 if kind == "sound" else 128)
    if kind == "other":
        check_belongs("comfyui_vae", vae, "sdxl", 4)
        check_belongs("comfyui_vae", vae, "a model outside the table", 0)
        check_belongs("comfyui_vae", object(), "sdxl", 4)


@pytest.fixture
def vae_file(models: Path) -> Iterator[str]:
    from fastdiffusers.pipelines.loading.parts import embedded_parts

    place = models / "vae" / "embedded-ae.safetensors"
    shutil.copy(embedded_parts()["vae"], place)
    yield place.name
    place.unlink()


def test_two_vaes_are_one_too_many(server: Client, vae_file: str) -> None:
    prompt = graph(server, {"vae": vae_file, "comfyui_vae": ["tiny", 1]}, positive=["text", 0])
    assert "comfyui_vae is connected" in server.error(server.run(prompt))["exception_message"]
    prompt["load"]["inputs"].pop("comfyui_vae")
    server.succeed(prompt)


def test_the_saved_folder_gives_the_same_picture(server: Client, models: Path) -> None:
    from fastdiffusers.scripts.comfyui_server import ServerError

    parts = graph(server, {}, prompt="a red fox")
    parts["folder"] = server.node("FastDiffusersSaveFolder", pipeline=["load", 0], name=SAVED)
    target = models / "diffusers" / SAVED
    try:
        entry = server.succeed(parts)
        shown = entry["outputs"]["folder"]["text"][0]
        assert shown.splitlines()[0] == str(target)
        assert "transformer: float32" in shown
        whole = server.sampling(
            SAVED, **{k: parts["sample"]["inputs"][k] for k in ("width", "height", "steps", "seed")}
        )
        whole["sample"]["inputs"]["prompt"] = "a red fox"
        made = server.succeed(whole)
        assert nearly_equal(server.images(made), server.images(entry))
        assert torch.allclose(server.latent(made), server.latent(entry), atol=1e-4)
        parts["sample"]["inputs"]["seed"] = 4
        parts["load"]["inputs"]["memory_mode"] = "gpu"  # so that the node runs again
        assert "exists already" in server.error(server.run(parts))["exception_message"]
    finally:
        shutil.rmtree(target, ignore_errors=True)
    alone = {name: parts[name] for name in ("load", "folder")}
    for name in ("../outside", "a/b", "con"):
        alone["folder"]["inputs"]["name"] = name
        with pytest.raises(ServerError, match="the name of one folder"):
            server.server.queue(alone)

"""Bad input: one clear line that names it, and the next run works."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fastdiffusers.scripts.comfyui_server import ServerError

if TYPE_CHECKING:
    from comfy_client import Client

TINY = "embedded tiny: "


@pytest.fixture(scope="module", autouse=True)
def broken_models(server: Client) -> None:
    """Model folders that cannot work, each in its own way."""
    diffusers = server.base / "models" / "diffusers"
    saved = diffusers / "saved-sdxl"
    (diffusers / "no-index" / "unet").mkdir(parents=True)
    half = diffusers / "half"
    for source in saved.rglob("*"):
        if source.is_file() and "text_encoder_2" not in source.parts:
            target = half / source.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    corrupt = diffusers / "corrupt"
    for source in saved.rglob("*"):
        if source.is_file():
            target = corrupt / source.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            data = source.read_bytes()
            target.write_bytes(
                data[: len(data) // 2]
                if source.parent.name == "unet" and "weights" not in source.name and source.suffix == ".safetensors"
                else data
            )
    (diffusers / "pickle.bin").write_bytes(b"\x80\x04.")


def refusal(server: Client, prompt: dict[str, Any]) -> str:
    """What ComfyUI said when it refused a prompt before running anything."""
    with pytest.raises(ServerError) as caught:
        server.server.queue(prompt)
    text = str(caught.value)
    answer = json.loads(text[text.index("{") :])
    details = {error["details"] for node in answer["node_errors"].values() for error in node["errors"]}
    messages = {detail.split(" - ", 1)[-1] for detail in details}
    assert len(messages) == 1, messages
    return messages.pop()


def works(server: Client) -> None:
    server.succeed(server.sampling(TINY + "sdxl", width=64, height=64, steps=1, save=False))


@pytest.mark.parametrize(
    ("model", "custom", "words"),
    [
        ("FLUX.1-dev", "", ["model", "FLUX.1-dev", "no such model under the diffusers paths", "[custom]"]),
        ("../../etc", "", ["model", "../../etc", "no such model"]),
        ("[custom]", "", ["custom_model", "it is empty", "owner/name"]),
        ("[custom]", "/nowhere/at/all", ["/nowhere/at/all", "no such folder or file"]),
        ("no-index", "", ["no-index", "model_index.json"]),
        ("half", "", ["half", "text_encoder_2"]),
        ("corrupt", "", ["corrupt", "unet"]),
        ("pickle.bin", "", ["pickle.bin", "pickle"]),
        (TINY + "sd7", "", ["tiny:sd7", "no embedded tiny pipeline", "sdxl"]),
    ],
)
def test_a_model_that_cannot_work_is_refused_before_anything_runs(
    server: Client, model: str, custom: str, words: list[str]
) -> None:
    prompt = server.sampling(model, save=False)
    prompt["load"]["inputs"]["custom_model"] = custom
    message = refusal(server, prompt)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    works(server)


@pytest.mark.parametrize(
    ("family", "widgets", "words"),
    [
        ("wan22-t2v", {"num_frames": 100000, "width": 64, "height": 64}, ["num_frames = 100000"]),
        ("flux", {"scheduler": "EulerDiscreteScheduler", "width": 64, "height": 64}, ["scheduler"]),
        ("flux-kontext", {"strength": 0.5, "width": 64, "height": 64}, ["strength"]),
        ("qwenimage-edit", {"width": 64, "height": 64}, ["images"]),
    ],
)
def test_a_request_that_cannot_work_says_so_in_one_line(
    server: Client, family: str, widgets: dict[str, Any], words: list[str]
) -> None:
    error = server.error(server.run(server.sampling(TINY + family, save=False, **widgets)))
    assert error["exception_type"].endswith("InputError")
    message = error["exception_message"].strip()
    assert "\n" not in message
    for word in words:
        assert word in message, message
    works(server)


def test_an_input_is_called_what_the_node_calls_it(server: Client) -> None:
    """Where the engine has another name for it."""
    prompt = server.sampling(TINY + "sdxl", save=False, width=64, height=64)
    prompt["settings"] = server.node("FastDiffusersOptimizationSettings", vae_tile_size=64, vae_tile_overlap=64)
    prompt["sample"]["inputs"]["settings"] = ["settings", 0]
    assert "vae_tile_overlap = 64: " in server.error(server.run(prompt))["exception_message"]
    prompt = {
        "vae": server.node("FastDiffusersLoadVideoVAE", vae_name=TINY + "video VAE"),
        "latent": server.node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
        "decode": server.node("FastDiffusersVAEDecode", samples=["latent", 0], vae=["vae", 0], tiling="tiles"),
        "show": server.node("PreviewImage", images=["decode", 0]),
    }
    prompt["decode"]["inputs"] |= {"tile_size": 64, "overlap": 64}
    assert server.error(server.run(prompt))["exception_message"].strip().startswith("overlap = 64: ")
    works(server)


def test_a_picture_for_a_text_model_is_refused(server: Client) -> None:
    prompt = server.sampling(TINY + "sd3", save=False, width=64, height=64)
    prompt["picture"] = server.node("LoadImage", image="gradient.png")
    prompt["sample"]["inputs"]["images.image_1"] = ["picture", 0]
    message = server.error(server.run(prompt))["exception_message"]
    assert "images" in message
    works(server)


def test_transparency_that_is_not_read_and_a_prompt_that_is_cut_are_reported(server: Client) -> None:
    prompt = server.sampling(TINY + "flux-kontext", prompt="a red fox " * 12, steps=1, width=32, height=32)
    prompt["picture"] = server.node("LoadImage", image="gradient.png")
    prompt["mask"] = server.node("SolidMask", value=0.5, width=64, height=64)
    prompt["joined"] = server.node("JoinImageWithAlpha", image=["picture", 0], alpha=["mask", 0])
    prompt["sample"]["inputs"]["images.image_1"] = ["joined", 0]
    notes = server.report(server.run(prompt))["notes"]
    assert any(note.startswith("transparency of images[0] ignored") for note in notes)
    assert any(note.startswith("prompt: text_encoder reads 77 tokens, not the end: ") for note in notes)


def test_a_negative_prompt_that_means_nothing_is_reported(server: Client) -> None:
    entry = server.succeed(server.sampling(TINY + "flux", width=64, height=64, steps=1, negative_prompt="fog"))
    assert any("negative_prompt" in note for note in server.report(entry)["notes"])


@pytest.mark.parametrize(
    ("family", "widgets", "size", "note"),
    [
        ("flux", {"width": 74, "prompt": ""}, "80x64", "width: 80 instead of 74; flux takes multiples of 16."),
        ("flux", {"num_frames": 81}, "64x64", "num_frames ignored: flux makes single images."),
        ("wan22-t2v", {"num_frames": 4}, "64x64x5", "num_frames: 5 instead of 4; "),
    ],
)
def test_sizes_and_frames_are_brought_to_what_the_model_takes(
    server: Client, family: str, widgets: dict[str, Any], size: str, note: str
) -> None:
    prompt = server.sampling(TINY + family, save=False, **{"width": 64, "height": 64, "steps": 2, **widgets})
    report = server.report(server.succeed(prompt))
    assert report["facts"]["size"] == size
    assert any(said.startswith(note) for said in report["notes"]), report["notes"]


def test_out_of_range_widgets_are_refused_by_comfyui(server: Client) -> None:
    for widget, value in (("width", -8), ("steps", 10**6), ("attention", "fastest"), ("scheduler", "Nonsense")):
        with pytest.raises(ServerError, match=widget):
            server.server.queue(server.sampling(TINY + "sd3", save=False, **{widget: value}))

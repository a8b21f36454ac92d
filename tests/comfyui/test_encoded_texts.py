"""Texts that ComfyUI's own encoders encode: the picture of the pipeline's own encoding, with no text encoder in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import encoded_texts
import pytest
from safetensors.torch import load_file

from fastdiffusers.commands.paths import find_comfyui

if TYPE_CHECKING:
    from comfy_client import Client

PROMPT, NEGATIVE = "the red house on the water", "a car"
LENGTHS = {"flux": 256, "sd3": 77, "wan": 512, "chroma": 7}
"""How far ComfyUI fills a text up: the pipeline's own encoding is told the same."""
NEGATIVES = {"flux2-klein": "", "chroma": "the blue car on the hill"}
"""What a pipeline encodes for itself that takes no negative prompt; for Chroma, as many tokens as the prompt has."""
NEWER = {
    "krea2": "class Krea2TEModel",
    **dict.fromkeys(("ltx2", "ltx23"), "text_encoder_model=Gemma3_12BModel"),
    "anima": "class AnimaTEModel",
    "minimax-h3": "class MiniMaxH3TEModel",
}
"""Families whose text encoder not every version of ComfyUI has, or has at one size only; and what newer ones have."""
SIZES = {
    "ltx2": {"num_frames": 9},
    "ltx23": {"num_frames": 9},
    "minimax-h3": {"num_frames": 124, "width": 32, "height": 32},
}
SAID = {"ltx2": 3e-4, "ltx23": 3e-4}
"""How much another text changes the picture at least, where that is little."""
MARKED = ("zimage", "qwenimage", "krea2", "minimax-h3")
"""Families with whose texts a mask comes, or what kind each token is of."""
WIDGETS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 5, "num_frames": 5, "guidance": 2.0}


def has_encoder(comfyui: Path | None, family: str) -> bool:
    files = () if comfyui is None else (comfyui / "comfy/text_encoders").glob("*.py")
    return family not in NEWER or any(NEWER[family] in file.read_text(encoding="utf-8") for file in files)


HERE = [family for family in encoded_texts.FAMILIES if has_encoder(find_comfyui(), family)]
"""The families whose text encoder the ComfyUI that is tested has."""


@pytest.fixture(scope="module")
def encoders(
    comfyui: Path, models: Path, server: Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """Family -> the folder of its text encoders, as ComfyUI's classes read them."""
    from fastdiffusers.commands.libraries import declare_torchvision_ops

    declare_torchvision_ops()
    place = tmp_path_factory.mktemp("encoders")
    for family in HERE:
        encoded_texts.write(family, comfyui, models, place / family)
    yield {family: place / family for family in HERE}
    for folder in (models / "diffusers").glob("encoded-*"):
        shutil.rmtree(folder)


def encoded(server: Client, family: str, folder: Path, **widgets: Any) -> dict[str, Any]:
    """A graph that encodes with ComfyUI's nodes, and samples with a model that has no text encoder."""
    texts = {"positive": ["positive", 0], "negative": ["negative", 0]}
    sizes = SIZES.get(family, {})
    prompt = server.sampling(f"encoded-{family}-bare", **{**WIDGETS, **sizes, "prompt": "", **texts, **widgets})
    prompt["load"]["inputs"]["dtype"] = "float32"
    prompt["clip"] = server.node("TestTinyTextEncoder", folder=str(folder))
    for name, text in (("positive", PROMPT), ("negative", NEGATIVES.get(family, NEGATIVE))):
        prompt[name] = server.node("CLIPTextEncode", clip=["clip", 0], text=text)
    return prompt


def own(server: Client, family: str, **widgets: Any) -> dict[str, Any]:
    """A graph in which the pipeline encodes its prompts."""
    negative = NEGATIVES.get(family) or NEGATIVE
    texts = {"prompt": PROMPT, "negative_prompt": negative, "max_sequence_length": LENGTHS.get(family, 0)}
    sizes = SIZES.get(family, {})
    prompt = server.sampling(f"encoded-{family}-whole", **{**WIDGETS, **sizes, **texts, **widgets})
    prompt["load"]["inputs"]["dtype"] = "float32"
    return prompt


def pictures(server: Client, prompt: dict[str, Any], place: Path) -> tuple[Any, dict[str, Any]]:
    """The pictures of a graph in float32, and its entry in the history."""
    prompt["keep"] = server.node("TestKeepImages", images=["sample", 0], path=str(place))
    entry = server.succeed(prompt)
    return load_file(place)["images"], entry


@pytest.mark.parametrize("family", HERE)
def test_the_picture_is_that_of_the_pipelines_own_encoding(
    server: Client, encoders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    expected, whole = pictures(server, own(server, family), tmp_path / "own")
    made, entry = pictures(server, encoded(server, family, encoders[family]), tmp_path / "encoded")
    assert expected.std() > 0.01
    assert float((made - expected).abs().max()) < 1e-4
    other, _ = pictures(server, own(server, family, prompt="the man"), tmp_path / "other")
    assert float((other - expected).abs().max()) > SAID.get(family, 1e-3), "the text changes the picture"
    weights = server.report(entry)["facts"]["weights_mib"]
    assert not [name for name in weights if name.startswith("text_encoder")]
    assert [name for name in server.report(whole)["facts"]["weights_mib"] if name.startswith("text_encoder")]


def failed(server: Client, prompt: dict[str, Any]) -> str:
    return str(server.error(server.run(prompt))["exception_message"])


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        ("ConditioningSetArea", {"width": 64, "height": 64, "x": 0, "y": 0}, "an area"),
        ("ConditioningSetAreaPercentage", {"width": 0.5, "height": 0.5, "x": 0.0, "y": 0.0}, "an area"),
        ("ConditioningSetAreaStrength", {"strength": 0.5}, "a strength"),
        ("ConditioningSetTimestepRange", {"start": 0.0, "end": 0.5}, "a range of timesteps"),
        ("ConditioningSetMask", {"mask": ["mask", 0], "strength": 1.0}, "a mask"),
        ("ConditioningCombine", {}, "2 entries"),
        ("ReferenceLatent", {"latent": ["empty", 0]}, "reference latents"),
        ("FluxDisableGuidance", {}, "switches the guidance off"),
        ("FluxGuidance", {"guidance": 2.5}, ""),
        ("ConditioningSetTimestepRange", {"start": 0.0, "end": 1.0}, ""),
        ("ConditioningConcat", {}, ""),
        ("ConditioningZeroOut", {}, ""),
    ],
)
def test_what_else_a_text_says_is_applied_or_refused_by_name(
    server: Client, encoders: dict[str, Path], kind: str, inputs: dict[str, Any], said: str
) -> None:
    prompt = encoded(server, "flux", encoders["flux"], guidance=-1.0, positive=["more", 0])
    prompt["mask"] = server.node("SolidMask", value=1.0, width=64, height=64)
    prompt["empty"] = server.node("EmptySD3LatentImage", width=64, height=64)
    first = {
        "ConditioningCombine": {"conditioning_1": ["positive", 0], "conditioning_2": ["negative", 0]},
        "ConditioningConcat": {"conditioning_to": ["positive", 0], "conditioning_from": ["negative", 0]},
    }.get(kind, {"conditioning": ["positive", 0]})
    prompt["more"] = server.node(kind, **first, **inputs)
    if said:
        assert said in failed(server, prompt)
        return
    entry = server.succeed(prompt)
    report = server.report(entry)
    assert report["facts"]["guidance"] == (2.5 if kind == "FluxGuidance" else 3.5)
    if kind == "FluxGuidance":
        assert "guidance: 2.5, as positive has it" in report["notes"]
        prompt["sample"]["inputs"]["guidance"] = 2.5
        assert (server.latent(server.succeed(prompt)) == server.latent(entry)).all()
        prompt["sample"]["inputs"]["guidance"] = 4.0
        other = server.report(server.succeed(prompt))
        assert "guidance of positive, 2.5, ignored: the sampler's own, 4, goes before it" in other["notes"]
    plain = server.latent(server.succeed(encoded(server, "flux", encoders["flux"], guidance=-1.0)))
    assert bool((server.latent(entry) == plain).all()) == (kind == "ConditioningSetTimestepRange")


@pytest.mark.parametrize("family", [each for each in HERE if each in MARKED])
def test_of_texts_behind_each_other_all_tokens_count(
    server: Client, encoders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """Conditioning (Concat) keeps what marks the tokens of the first text alone."""
    joined = encoded(server, family, encoders[family], positive=["joined", 0], guidance=1.0)
    joined["joined"] = server.node("ConditioningConcat", conditioning_to=["positive", 0], conditioning_from=["more", 0])
    joined["more"] = server.node("CLIPTextEncode", clip=["clip", 0], text="two men in the snow, far away from the sea")
    made, _ = pictures(server, joined, tmp_path / "joined")
    first, _ = pictures(server, encoded(server, family, encoders[family], guidance=1.0), tmp_path / "first")
    assert made.shape == first.shape
    assert float((made - first).abs().max()) > SAID.get(family, 1e-3)


def test_a_text_of_another_family_is_refused_before_anything_loads(server: Client, encoders: dict[str, Path]) -> None:
    prompt = encoded(server, "flux", encoders["sdxl"], seed=77)
    assert "64 wide, and flux takes 32" in failed(server, prompt)
    prompt = encoded(server, "zimage", encoders["flux"], seed=77)
    assert "it has one of 32, and zimage takes none" in failed(server, prompt)


def test_guidance_of_klein_asks_for_a_negative_text(server: Client, encoders: dict[str, Path]) -> None:
    prompt = encoded(server, "flux2-klein", encoders["flux2-klein"])
    del prompt["sample"]["inputs"]["negative"]
    assert "guidance = 2 needs one" in failed(server, prompt)
    prompt["sample"]["inputs"]["guidance"] = 1.0
    server.succeed(prompt)


def test_sizes_of_sdxl_are_read(server: Client, encoders: dict[str, Path]) -> None:
    prompt = encoded(server, "sdxl", encoders["sdxl"])
    plain = server.latent(server.succeed(prompt))
    sizes = {"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}
    texts = {"text_g": PROMPT, "text_l": PROMPT, "clip": ["clip", 0]}
    prompt["positive"] = server.node("CLIPTextEncodeSDXL", **texts, **sizes)
    assert (server.latent(server.succeed(prompt)) == plain).all()
    prompt["positive"] = server.node("CLIPTextEncodeSDXL", **texts, **{**sizes, "width": 512, "crop_h": 32})
    assert not (server.latent(server.succeed(prompt)) == plain).all()


def test_the_prompt_goes_behind_and_a_batch_shares_a_text(server: Client, encoders: dict[str, Path]) -> None:
    entry = server.succeed(encoded(server, "flux", encoders["flux"], prompt="the man", batch_size=2))
    assert "prompt ignored: positive is connected and goes before it." in server.report(entry)["notes"]
    alone = encoded(server, "flux", encoders["flux"], seed=WIDGETS["seed"] + 1)
    difference = server.latent(entry)[1:] - server.latent(server.succeed(alone))
    assert float(difference.abs().max()) < 1e-4

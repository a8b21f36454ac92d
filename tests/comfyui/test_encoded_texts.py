"""Texts that ComfyUI's own encoders encode: the picture of the pipeline's own encoding, with no text encoder in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import encoded_texts
import pytest
from safetensors.torch import load_file

if TYPE_CHECKING:
    from comfy_client import Client

PROMPT, NEGATIVE = "the red house on the water", "a car"
LENGTHS = {"flux": 256, "sd3": 77, "wan": 512}
"""How far ComfyUI fills a text up: the pipeline's own encoding is told the same."""
WIDGETS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 5, "num_frames": 5, "guidance": 3.0}


@pytest.fixture(scope="module")
def encoders(
    comfyui: Path, models: Path, server: Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """Family -> the folder of its text encoders, as ComfyUI's classes read them."""
    from fastdiffusers.commands.libraries import declare_torchvision_ops

    declare_torchvision_ops()
    place = tmp_path_factory.mktemp("encoders")
    for family in encoded_texts.FAMILIES:
        encoded_texts.write(family, comfyui, models, place / family)
    yield {family: place / family for family in encoded_texts.FAMILIES}
    for folder in (models / "diffusers").glob("encoded-*"):
        shutil.rmtree(folder)


def encoded(server: Client, family: str, folder: Path, **widgets: Any) -> dict[str, Any]:
    """A graph that encodes with ComfyUI's nodes, and samples with a model that has no text encoder."""
    texts = {"positive": ["positive", 0], "negative": ["negative", 0]}
    prompt = server.sampling(f"encoded-{family}-bare", **{**WIDGETS, "prompt": "", **texts, **widgets})
    prompt["load"]["inputs"]["dtype"] = "float32"
    prompt["clip"] = server.node("TestTinyTextEncoder", folder=str(folder))
    for name, text in (("positive", PROMPT), ("negative", NEGATIVE)):
        prompt[name] = server.node("CLIPTextEncode", clip=["clip", 0], text=text)
    return prompt


def own(server: Client, family: str, **widgets: Any) -> dict[str, Any]:
    """A graph in which the pipeline encodes its prompts."""
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "max_sequence_length": LENGTHS.get(family, 0)}
    prompt = server.sampling(f"encoded-{family}-whole", **{**WIDGETS, **texts, **widgets})
    prompt["load"]["inputs"]["dtype"] = "float32"
    return prompt


def pictures(server: Client, prompt: dict[str, Any], place: Path) -> tuple[Any, dict[str, Any]]:
    """The pictures of a graph in float32, and its entry in the history."""
    prompt["keep"] = server.node("TestKeepImages", images=["sample", 0], path=str(place))
    entry = server.succeed(prompt)
    return load_file(place)["images"], entry


@pytest.mark.parametrize("family", encoded_texts.FAMILIES)
def test_the_picture_is_that_of_the_pipelines_own_encoding(
    server: Client, encoders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    expected, whole = pictures(server, own(server, family), tmp_path / "own")
    made, entry = pictures(server, encoded(server, family, encoders[family]), tmp_path / "encoded")
    assert expected.std() > 0.01
    assert float((made - expected).abs().max()) < 1e-4
    other, _ = pictures(server, own(server, family, prompt="the man"), tmp_path / "other")
    assert float((other - expected).abs().max()) > 1e-3, "the text changes the picture"
    weights = server.report(entry)["facts"]["weights_mib"]
    assert not [name for name in weights if name.startswith("text_encoder")]
    assert [name for name in server.report(whole)["facts"]["weights_mib"] if name.startswith("text_encoder")]

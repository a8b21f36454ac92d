"""The pack as ComfyUI loads it: every node under its id, with nothing to complain about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from comfy_client import Client

PACK = Path(__file__).resolve().parents[2]
NODES = {
    "FastDiffusersLoadPipeline": ["FASTDIFFUSERS_PIPELINE"],
    "FastDiffusersLoadPipelineParts": ["FASTDIFFUSERS_PIPELINE"],
    "FastDiffusersLoadEngine": ["FASTDIFFUSERS_PIPELINE"],
    "FastDiffusersLoadLora": ["FASTDIFFUSERS_PIPELINE"],
    "FastDiffusersMaskCondition": ["FASTDIFFUSERS_CONDITIONS"],
    "FastDiffusersControlCondition": ["FASTDIFFUSERS_CONDITIONS"],
    "FastDiffusersLoadImagePromptModel": ["FASTDIFFUSERS_IMAGE_PROMPT_MODEL"],
    "FastDiffusersLoadControlNet": ["FASTDIFFUSERS_CONTROLNET"],
    "FastDiffusersVideoCondition": ["FASTDIFFUSERS_CONDITIONS"],
    "FastDiffusersImagePromptCondition": ["FASTDIFFUSERS_CONDITIONS"],
    "FastDiffusersKeyframeCondition": ["FASTDIFFUSERS_CONDITIONS"],
    "FastDiffusersPipelineArgument": ["FASTDIFFUSERS_CONDITIONS"],
    "FastDiffusersQuantize": ["STRING"],
    "FastDiffusersSampler": ["IMAGE", "LATENT", "FLOAT", "FASTDIFFUSERS_REPORT", "VIDEO", "AUDIO"],
    "FastDiffusersTorchCompileSettings": ["FASTDIFFUSERS_COMPILE_SETTINGS"],
    "FastDiffusersOptimizationSettings": ["FASTDIFFUSERS_OPTIMIZATION_SETTINGS"],
    "FastDiffusersClusterSettings": ["FASTDIFFUSERS_CLUSTER"],
    "FastDiffusersVAEDecode": ["IMAGE", "FASTDIFFUSERS_REPORT"],
    "FastDiffusersVAEEncode": ["LATENT", "FASTDIFFUSERS_REPORT"],
    "FastDiffusersLoadVideoVAE": ["FASTDIFFUSERS_VIDEO_VAE"],
    "FastDiffusersShowReport": ["STRING"],
    "FastDiffusersBenchmark": ["FASTDIFFUSERS_OPTIMIZATION_SETTINGS", "IMAGE", "STRING", "FASTDIFFUSERS_REPORT"],
}
LANGUAGES = ("en", "zh")


def widgets(info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every input of a node with its options."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    return {name: spec[1] if len(spec) > 1 else {} for name, spec in inputs.items()}


def test_every_node_is_there_under_its_id(server: Client) -> None:
    found = {name: info for name, info in server.info.items() if info["category"] == "FastDiffusers"}
    assert NODES.keys() <= found.keys()
    assert all(name.startswith("FastDiffusers") for name in found)
    for name, outputs in NODES.items():
        assert found[name]["output"] == outputs
        assert found[name].get("search_aliases", True), name  # ComfyUI 0.8 knows none


def test_loading_left_nothing_in_the_log(server: Client) -> None:
    log = server.server.log()
    startup = log[: log.index("Starting server")]
    assert "custom_nodes/fastdiffusers" in startup
    assert "(IMPORT FAILED): " + str(server.base) not in startup
    # ComfyUI's own nodes may complain (torchaudio is no part of the test environment); this pack may not.
    assert not [line for line in startup.splitlines() if "fastdiffusers" in line and "seconds" not in line]


def test_every_input_and_output_is_explained(server: Client) -> None:
    for name in NODES:
        info = server.info[name]
        assert info["description"], name
        silent = [widget for widget, options in widgets(info).items() if not options.get("tooltip")]
        assert not silent, f"{name}: no tooltip for {silent}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(server: Client, language: str) -> None:
    texts = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for name in NODES:
        info = server.info[name]
        assert texts[name]["display_name"]
        assert texts[name]["description"]
        inputs = texts[name]["inputs"]
        assert set(widgets(info)) <= set(inputs), f"{name}: {set(widgets(info)) - set(inputs)}"
        assert all(entry.get("name") for entry in inputs.values())
        assert len(texts[name]["outputs"]) == len(info["output"])
    served = server.server.get("/i18n")
    assert served[language]["nodeDefs"]["FastDiffusersSampler"] == texts["FastDiffusersSampler"]


def test_english_texts_are_those_of_the_schemas(server: Client) -> None:
    from fastdiffusers.scripts.node_texts import locale_file, node_texts

    written = json.loads(locale_file("en").read_text(encoding="utf-8"))
    assert written == node_texts(server.info), "run: python . scripts.node_texts"


@pytest.mark.parametrize("name", NODES)
def test_every_node_has_a_help_page(server: Client, name: str) -> None:
    from fastdiffusers.scripts.node_texts import help_page, locale_file, with_inputs

    for language in LANGUAGES:
        page = help_page(name, language).relative_to(PACK / "web").as_posix()
        text = server.server.request(f"/extensions/fastdiffusers/{page}").decode()
        assert text.startswith("# ")
        assert len(text.split("\n")) > 5
        inputs = json.loads(locale_file(language).read_text(encoding="utf-8"))[name]["inputs"]
        assert text == with_inputs(text, inputs), "run: python . scripts.node_texts"

"""The example workflows: every one runs, is drawn without an error, and has a thumbnail."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine_server import EngineServer, serving
from PIL import Image

from fastdiffusers.scripts.browser import Browser, find_chromium
from fastdiffusers.scripts.workflow import to_prompt

if TYPE_CHECKING:
    from comfy_client import Client

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
WORKFLOWS = sorted(path.stem for path in FOLDER.glob("*.json"))
LOADERS = (
    "FastDiffusersLoadPipeline",
    "FastDiffusersLoadPipelineParts",
    "FastDiffusersLoadLora",
    "FastDiffusersLoadVideoVAE",
)
OF_A_FOLDER = ("FLUX.3",)
"""Those whose real model diffusers' documentation names no repository of."""
ENGINE = "FastDiffusersLoadEngine"
"""What stands in the place of a loader where a server runs the model."""
RUNNING = ("FastDiffusersSampler", "FastDiffusersVAEDecode", "FastDiffusersVAEEncode")
"""The nodes that run a model."""
SECONDS = 900
"""How long a workflow may take: a cluster has to start first."""


def read(name: str) -> dict[str, Any]:
    """A workflow as it is shipped."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def engine() -> Iterator[EngineServer]:
    """The server that the workflow of one asks for."""
    with serving("sglang") as running:
        yield running


def with_server(graph: dict[str, Any], engine: EngineServer) -> dict[str, Any]:
    """A workflow that finds its server, if it asks for one."""
    for node in graph["nodes"]:
        if node["type"] == ENGINE:
            node["widgets_values"][0] = engine.url
    return graph


def test_the_documented_workflows_are_there() -> None:
    assert WORKFLOWS == [
        "Cluster",
        "ComfyUI Text Encoders and VAE",
        "ControlNet",
        "Engine",
        "FLUX.3",
        "First and Last Frame",
        "Image Edit",
        "Image Prompt",
        "Inpaint",
        "Latent to VAE Decode",
        "MiniMax-H3, Video with Sound",
        "Model in Parts",
        "References and Mask, VACE",
        "Text to Image",
        "Text to Image, Optimized",
        "Video VAE Round Trip",
        "Video to Video",
        "Wan Image to Video, 4 Steps",
        "Wan Two-Expert Video",
    ]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_its_note_says_what_to_download(name: str) -> None:
    """Hub id, size and licence of the real model; where the workflow's own is an embedded one."""
    graph = read(name)
    (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    (real,) = [part for part in note.split("\n\n") if part.startswith("**For real:**")]
    if name in OF_A_FOLDER:
        assert "`models/diffusers`" in real
    else:
        assert re.search(r"`[\w-]+/[\w.-]+`", real), "a Hub id"
        assert re.search(r"\d GB", real)
        assert any(licence in real for licence in ("Apache-2.0", "Non-Commercial License", "Community License"))
    loaders = [node for node in graph["nodes"] if node["type"] in LOADERS]
    assert loaders or any(node["type"] == ENGINE for node in graph["nodes"])
    for node in loaders:
        assert node["widgets_values"][0].startswith("embedded tiny: ")


def test_single_files_to_download_are_named_for_the_editor(server: Client) -> None:
    """Where they come from and in which folder they go: the editor offers them once they are chosen and missing."""
    found = [
        (node["type"], model)
        for name in WORKFLOWS
        for node in read(name)["nodes"]
        for model in node["properties"].get("models", [])
    ]
    assert {kind for kind, _ in found} == {"FastDiffusersLoadVideoVAE", "FastDiffusersLoadLora"}
    folders = server.server.get("/models")
    for _, model in found:
        assert model["directory"] in folders
        assert re.fullmatch(r"https://huggingface\.co/[\w-]+/[\w.-]+/resolve/main/(.+/)?" + model["name"], model["url"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_is_drawn_without_a_red_node_and_runs_as_it_comes(
    server: Client, engine: EngineServer, request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """In the editor; without a browser it is at least run."""
    graph = with_server(read(name), engine)
    prompt = to_prompt(graph, server.info)
    before = len(server.server.log())
    if find_chromium() is None:
        ran_well(server, server.succeed(prompt, SECONDS), before)
        pytest.skip("it has run, but was not drawn: no Chromium is installed")
    page = request.getfixturevalue("page")
    is_drawn(page, graph)
    entry = server.server.wait(page.run(SECONDS))  # as a person does
    assert asked(entry, prompt, server.info) == prompt, "what the editor asks for is what a run without one asks for"
    ran_well(server, entry, before)
    assert not any(node["errors"] for node in page.nodes())
    shown = page.evaluate("document.body.innerText").lower()
    assert not re.search(r"missing (models|nodes)|\d errors?\b|failed", shown)
    picture = page.screenshot(tmp_path / f"{name}.png")
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100, "something is drawn"


def is_drawn(page: Browser, graph: dict[str, Any]) -> None:
    """Put a graph on the canvas and look at every node of it."""
    nodes = page.load(graph)
    assert len(nodes) == len(graph["nodes"])
    for node in nodes:
        assert not node["missing"], node["type"]
        assert not node["errors"], node["type"]
        assert node["minimum"][1] <= node["size"][1] + 1, f"{node['type']}: its widgets do not fit"
    for one in nodes:
        for other in nodes:
            if one["id"] < other["id"]:
                assert not overlap(one, other), f"{one['type']} and {other['type']} lie on each other"
    sampler = [node for node in graph["nodes"] if node["type"] == "FastDiffusersSampler"]
    for node in sampler:
        drawn = next(n for n in nodes if n["id"] == str(node["id"]))
        values = [widget["value"] for widget in drawn["widgets"] if widget["name"] != "show_advanced"]
        assert values == node["widgets_values"], "every stored value belongs to the widget that it was stored for"


def asked(entry: dict[str, Any], prompt: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The prompt of a history entry, to be compared with ours, which leaves out widgets that a saved workflow lacks.

    Of this pack's nodes the editor gives those their defaults; core's have some that the server does not name.
    """
    found = {}
    for node, made in entry["prompt"][2].items():
        kind, known = made["class_type"], prompt.get(node, {"inputs": {}})["inputs"]
        ours, optional = kind.startswith("FastDiffusers"), info[kind]["input"].get("optional", {})
        defaults = {name: rest[0].get("default") for name, (_, *rest) in optional.items() if rest}
        left_out = lambda name, value, ours=ours, defaults=defaults: not ours or value == defaults.get(name)
        inputs = {name: value for name, value in made["inputs"].items() if name in known or not left_out(name, value)}
        found[node] = {"class_type": kind, "inputs": inputs}
    return found


def ran_well(server: Client, entry: dict[str, Any], before: int) -> None:
    """Look at what a run put out, and at what the console says from character `before` on."""
    assert entry["status"]["status_str"] == "success", server.server.log_tail()
    prompt = entry["prompt"][2]
    kinds = {prompt[node]["class_type"] for node in entry["outputs"]}
    said = server.server.log()[before:]
    assert "fingerprint_inputs" not in said, "ComfyUI then runs the node, and all after it, each time"
    console = [line for line in said.splitlines() if "FastDiffusers, " in line]
    assert len(console) == sum(node["class_type"] in RUNNING for node in prompt.values()), "one line per run"
    assert all(" s" in line and " | " in line for line in console)
    assert "FastDiffusersShowReport" in kinds
    for node, output in entry["outputs"].items():
        if prompt[node]["class_type"] in RUNNING[1:]:
            assert len(output["text"][0].splitlines()) <= 5
    saved = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    assert saved
    for file in saved:
        assert (server.base / file["type"] / file["subfolder"] / file["filename"]).stat().st_size > 0


def test_two_experts_with_their_loras_run_as_they_come(server: Client) -> None:
    """2 + 2 steps, a LoRA on each expert, and a video of 9 frames: with nothing but what is embedded."""
    prompt = to_prompt(read("Wan Image to Video, 4 Steps"), server.info)
    report = next(node for node in prompt.values() if node["class_type"] == "FastDiffusersShowReport")
    report["inputs"]["format"] = "json"
    entry = server.succeed(prompt)
    (shown,) = [output["text"][0] for node, output in entry["outputs"].items() if prompt[node] is report]
    found = json.loads(shown)
    lora = next(record for record in found["optimizations"] if record["name"] == "lora")
    assert lora["requested"] == "tiny:wan-high-noise 1 (high noise), tiny:wan-low-noise 1 (low noise)"
    assert lora["applied"] == "24 layers, rank 4"
    assert found["facts"]["steps by expert"] == "high noise 2, low noise 2"
    assert found["facts"]["size"] == "128x192x9"


def test_saved_video_has_every_frame(server: Client) -> None:
    import av

    prompt = to_prompt(read("Wan Two-Expert Video"), server.info)
    for node in prompt.values():
        if node["class_type"] == "FastDiffusersSampler":
            node["inputs"] |= {"num_frames": 13, "seed": 1, "steps": 2, "width": 64, "height": 64}
    entry = server.succeed(prompt)
    (file,) = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    with av.open(str(server.base / file["type"] / file["subfolder"] / file["filename"])) as video:
        stream = video.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(16)
        assert sum(1 for _ in video.decode(stream)) == 13


def test_the_sound_of_minimax_h3_is_in_the_saved_video(server: Client) -> None:
    import av

    entry = server.succeed(to_prompt(read("MiniMax-H3, Video with Sound"), server.info))
    (file,) = [file for output in entry["outputs"].values() for file in output.get("images", [])]
    with av.open(str(server.base / file["type"] / file["subfolder"] / file["filename"])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 124
        assert float(video.streams.video[0].average_rate) == 24
        video.seek(0)
        heard = [block.to_ndarray() for block in video.decode(audio=0)]
        assert (video.streams.audio[0].rate, heard[0].shape[0]) == (32_000, 2)
    assert sum(block.shape[1] for block in heard) / 32_000 == pytest.approx(124 / 24, abs=0.1)
    assert max(abs(block).max() for block in heard) > 0.01


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_has_a_thumbnail(name: str) -> None:
    with Image.open(FOLDER / f"{name}.jpg") as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 300


LATE_ANSWER = """
const answer = window.fetch;
window.fetch = async (...given) => {
  const asked = Date.now();
  const ours = () => window.app?.graph?.nodes.some(node => node.type.startsWith('FastDiffusers'));
  if (/\\/models\\b/.test(given[0]?.url ?? given[0]))
    while (!ours() && Date.now() < asked + 10000) await new Promise(done => setTimeout(done, 20));
  return answer(...given);
};
"""
"""Lets the editor learn that its own first graph lacks its model only when another one is there, or after 10 s."""


def test_what_another_graph_lacks_is_not_taken_for_an_error_of_this_one(server: Client) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed")
    with Browser(program) as page:
        page.command("Page.enable")
        page.command("Page.addScriptToEvaluateOnNewDocument", source=LATE_ANSWER)
        page.open(server.server.url)
        assert not any(node["errors"] for node in page.load(read("Image Edit")))


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two nodes, with their title bars, cover each other."""
    (x1, y1), (w1, h1) = one["pos"], one["size"]
    (x2, y2), (w2, h2) = other["pos"], other["size"]
    title = 30
    return x1 < x2 + w2 and x2 < x1 + w1 and y1 - title < y2 + h2 and y2 - title < y1 + h1

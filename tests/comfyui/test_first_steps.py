"""The first steps of somebody new, in the editor: finding a node, seeing what matters of it, and a first picture."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from test_registration import NODES
from test_workflows import read

from fastdiffusers.scripts.browser import CLASSIC, DARK, NODES_2, Browser

if TYPE_CHECKING:
    from comfy_client import Client

SAMPLER_ID = "FastDiffusersSampler"
LOADER, SAMPLER = "Load Diffusers Pipeline", "Diffusers Sampler"
WORDS = {
    "flux": LOADER,
    "sdxl": LOADER,
    "wan": LOADER,
    "low vram": LOADER,
    "memory": LOADER,
    "xformers": SAMPLER,
    "sage attention": SAMPLER,
    "attention": SAMPLER,
    "teacache": SAMPLER,
    "inpaint": "Mask Condition",
    "speed": "Benchmark Optimizations",
    "tiled": "VAE Decode (Fast)",
    "video upscale": "Load Video VAE",
    "gguf": "Load Diffusers Model (Parts)",
}
"""What people look for, and the node that it is about."""
FIRST = ("flux", "sdxl", "wan")
"""The words for which the node is the very first."""
ROWS = 12
TYPE = """
(text => {
  const field = document.activeElement;
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, text);
  field.dispatchEvent(new Event('input', { bubbles: true }));
})(%s)
"""
FOUND = "[...document.querySelectorAll('[role=option]')].map(e => e.innerText.split('\\n')[0])"
TOGGLE = "(async () => { await window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle'); })()"
SEEN = """
window.app.graph.nodes.map(node => ({
  type: node.type, rows: (node.widgets ?? []).filter(w => !w.hidden && w.type !== 'button').map(w => w.name),
}))
"""
BOXES = """
[...document.querySelectorAll('textarea')].filter(e => e.offsetParent)
  .map(e => e.clientHeight / parseFloat(getComputedStyle(e).fontSize))
"""
"""The boxes of text in sight: how many lines high each is."""
PRESS = "window.app.graph.nodes[0].widgets.find(w => w.name === 'show_advanced').callback()"
COLOURS = """
['FASTDIFFUSERS_PIPELINE', 'FASTDIFFUSERS_VIDEO_VAE', 'FASTDIFFUSERS_COMPILE_SETTINGS',
 'FASTDIFFUSERS_OPTIMIZATION_SETTINGS', 'FASTDIFFUSERS_CONDITIONS', 'FASTDIFFUSERS_CONTROLNET',
 'FASTDIFFUSERS_REPORT'].map(type => [
  window.app.canvas.default_connection_color_byType[type], window.LGraphCanvas.link_type_colors[type],
  getComputedStyle(document.documentElement).getPropertyValue('--color-datatype-' + type).trim(),
])
"""
SEED = "window.app.graph.nodes[1].widgets.find(w => w.name === 'seed').value = %d"
CONNECT = """
(() => {
  const [load, sample, save] = window.app.graph.nodes;
  load.widgets.find(w => w.name === 'model').value = 'embedded tiny: flux';
  load.connect(0, sample, sample.inputs.findIndex(input => input.name === 'pipeline'));
  sample.connect(0, save, save.inputs.findIndex(input => input.name === 'images'));
})()
"""
RUN_AND_CANCEL = """
(async () => {
  const api = window.app.api, node = window.app.graph.nodes.find(n => n.comfyClass === 'FastDiffusersSampler');
  node.widgets.find(w => w.name === 'steps').value = 1000;
  const over = new Promise(done => api.addEventListener('execution_interrupted', done, { once: true }));
  api.addEventListener('progress', () => api.interrupt(), { once: true });
  await window.app.queuePrompt(0);
  await over;
})()
"""
TEXTS = """
Object.fromEntries(window.app.graph.nodes.flatMap(node => (node.widgets ?? [])
  .filter(w => ['shown', '$$node-text-preview'].includes(w.name)).map(w => [node.comfyClass, w.value])))
"""
"""What nodes show of their last run, by the kind of node."""
BYPASS = "window.app.graph.nodes.find(n => n.comfyClass === 'FastDiffusersSampler').mode = 4"
LABELS = """
(() => {
  const node = window.app.graph.nodes[0], chain = window.LiteGraph.createNode('LoadImage');
  window.app.graph.add(chain);
  const socket = () => node.inputs.findIndex(i => i.name.startsWith('images.') && i.link == null);
  chain.connect(0, node, socket());
  chain.connect(0, node, socket());
  return node.inputs.filter(i => i.name.startsWith('images.')).map(i => i.label);
})()
"""


@pytest.fixture(scope="module")
def drawn(server: Client, page: Browser, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of the way in which nodes are drawn. The editor is opened once for each."""
    page.open(server.server.url, **request.param, **DARK)
    return dict(request.param)


on_the_canvas = pytest.mark.parametrize("drawn", [CLASSIC], ids=["classic"], indirect=True, scope="module")
both_ways = pytest.mark.parametrize(
    "drawn", [CLASSIC, NODES_2], ids=["classic", "nodes2"], indirect=True, scope="module"
)


@on_the_canvas
def test_words_that_people_type_find_their_node(page: Browser, drawn: dict[str, Any]) -> None:
    page.evaluate(TOGGLE)
    page.settle()
    for word, wanted in WORDS.items():
        page.evaluate(TYPE % json.dumps(word))
        rank, deadline = 1 if word in FIRST else 3, time.monotonic() + 30
        while wanted not in (shown := page.evaluate(FOUND))[:rank] and time.monotonic() < deadline:
            time.sleep(0.2)
        assert wanted in shown[:rank], f"{word}: {shown[:6]}"
    page.evaluate(TOGGLE)


@on_the_canvas
def test_a_new_node_shows_what_matters_and_a_button_the_rest(page: Browser, drawn: dict[str, Any]) -> None:
    page.add(*NODES)
    for node in page.evaluate(SEEN):
        assert len(node["rows"]) <= ROWS, node
    (before,) = page.add("FastDiffusersSampler")
    (shown,) = page.evaluate(SEEN)
    advanced = {"batch_size", "scheduler", "step_cache", "strength", "guidance_2", "frame_rate", "flow_shift", "decode"}
    assert not advanced & set(shown["rows"])
    deadline = time.monotonic() + 30  # the boxes of the nodes before stay for a moment
    while len(boxes := page.evaluate(BOXES)) != 2 or min(boxes) < 5:
        assert time.monotonic() < deadline, f"a few lines of a prompt can be read: {boxes}"
        time.sleep(0.2)
    page.evaluate(PRESS)
    page.settle()
    (opened,) = page.evaluate(SEEN)
    (after,) = page.nodes()
    assert advanced <= set(opened["rows"])
    assert after["size"][1] > before["size"][1]
    page.evaluate(PRESS)
    page.settle()
    assert page.evaluate(SEEN) == [shown]
    assert page.nodes()[0]["size"] == before["size"]


@both_ways
def test_sockets_have_colours_of_their_own(page: Browser, drawn: dict[str, Any]) -> None:
    found = page.evaluate(COLOURS)
    assert all(len(set(colours)) == 1 and colours[0].startswith("#") for colours in found), found
    assert len({colours[0] for colours in found}) == len(found)


@both_ways
def test_from_scratch_to_a_picture(server: Client, page: Browser, drawn: dict[str, Any]) -> None:
    """Three new nodes, two links, Run: as where no model is installed. ComfyUI's cache would hold a run of one seed."""
    page.add("FastDiffusersLoadPipeline", "FastDiffusersSampler", "SaveImage")
    page.evaluate(CONNECT)
    page.evaluate(SEED % (1 + int(drawn == NODES_2)))
    folder = server.base / "output"
    before = set(folder.rglob("*.png"))
    page.run()
    assert len(set(folder.rglob("*.png")) - before) == 1
    assert "show_advanced" not in page.evaluate("document.body.innerText"), "Nodes 2.0 has a button of its own"
    assert not any(node["errors"] for node in page.nodes())


@both_ways
def test_after_cancel_the_node_says_so_and_the_report_is_marked_as_old(page: Browser, drawn: dict[str, Any]) -> None:
    page.load(read("Text to Image"))
    page.evaluate(SEED.replace("nodes[1]", f"nodes.find(n => n.comfyClass === '{SAMPLER_ID}')") % int(drawn == NODES_2))
    page.run()
    before = page.evaluate(TEXTS)
    assert not any("earlier run" in text for text in before.values())
    page.evaluate(RUN_AND_CANCEL)
    page.settle()
    after = page.evaluate(TEXTS)
    assert after[SAMPLER_ID].startswith("cancelled at ")
    assert after["FastDiffusersShowReport"].startswith("(of an earlier run)")
    assert after["FastDiffusersShowReport"].endswith(before["FastDiffusersShowReport"])


@on_the_canvas
def test_a_bypassed_sampler_says_that_it_runs_nothing(page: Browser, drawn: dict[str, Any]) -> None:
    page.load(read("Text to Image"))
    page.evaluate(BYPASS)
    page.evaluate("window.app.queuePrompt(0).catch(() => null)")
    said, deadline = (
        "Diffusers Sampler is bypassed: it runs nothing, and gives no images, report.",
        time.monotonic() + 30,
    )
    while said not in page.evaluate("document.body.innerText") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert said in page.evaluate("document.body.innerText")


def test_sockets_that_grow_are_named_in_chinese(server: Client, page: Browser) -> None:
    page.open(server.server.url, **CLASSIC, **DARK, **{"Comfy.Locale": "zh"})
    try:
        page.add(SAMPLER_ID)
        assert page.evaluate(LABELS) == ["图像 1", "图像 2", "图像 3"]
    finally:
        page.open(server.server.url, **CLASSIC, **DARK, **{"Comfy.Locale": "en"})

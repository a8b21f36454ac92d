"""The first steps of somebody new, in the editor: finding a node, seeing what matters of it, and a first picture."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from test_registration import NODES

from fastdiffusers.scripts.browser import CLASSIC, DARK, NODES_2, Browser

if TYPE_CHECKING:
    from comfy_client import Client

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
    "inpaint": SAMPLER,
    "speed": "Benchmark Optimizations",
    "tiled": "VAE Decode (Fast)",
    "video upscale": "Load Video VAE",
    "gguf": "Quantize Model",
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
BOXES = "[...document.querySelectorAll('textarea')].map(e => e.clientHeight / parseFloat(getComputedStyle(e).fontSize))"
PRESS = "window.app.graph.nodes[0].widgets.find(w => w.name === 'show_advanced').callback()"
COLOURS = """
['FASTDIFFUSERS_PIPELINE', 'FASTDIFFUSERS_VIDEO_VAE', 'FASTDIFFUSERS_COMPILE_SETTINGS',
 'FASTDIFFUSERS_OPTIMIZATION_SETTINGS', 'FASTDIFFUSERS_REPORT'].map(type => [
  window.app.canvas.default_connection_color_byType[type], window.LGraphCanvas.link_type_colors[type],
  getComputedStyle(document.documentElement).getPropertyValue('--color-datatype-' + type).trim(),
])
"""
SEED = "window.app.graph.nodes[1].widgets.find(w => w.name === 'seed').value = %d"
CONNECT = """
(() => {
  const [load, sample, save] = window.app.graph.nodes;
  load.connect(0, sample, sample.inputs.findIndex(input => input.name === 'pipeline'));
  sample.connect(0, save, save.inputs.findIndex(input => input.name === 'images'));
})()
"""


def test_words_that_people_type_find_their_node(server: Client, page: Browser) -> None:
    page.open(server.server.url, **CLASSIC, **DARK)
    page.evaluate(TOGGLE)
    page.settle()
    for word, wanted in WORDS.items():
        page.evaluate(TYPE % json.dumps(word))
        rank, deadline = 1 if word in FIRST else 3, time.monotonic() + 30
        while wanted not in (shown := page.evaluate(FOUND))[:rank] and time.monotonic() < deadline:
            time.sleep(0.2)
        assert wanted in shown[:rank], f"{word}: {shown[:6]}"
    page.evaluate(TOGGLE)


def test_on_the_canvas_a_new_node_shows_what_matters_and_a_button_the_rest(server: Client, page: Browser) -> None:
    page.open(server.server.url, **CLASSIC, **DARK)
    page.add(*NODES)
    for node in page.evaluate(SEEN):
        assert len(node["rows"]) <= ROWS, node
    (before,) = page.add("FastDiffusersSampler")
    (shown,) = page.evaluate(SEEN)
    advanced = {"batch_size", "scheduler", "step_cache", "strength", "guidance_2", "frame_rate", "flow_shift", "decode"}
    assert not advanced & set(shown["rows"])
    assert all(lines >= 5 for lines in page.evaluate(BOXES)), "a few lines of a prompt can be read"
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


@pytest.mark.parametrize("rendering", [CLASSIC, NODES_2], ids=["classic", "nodes2"])
def test_sockets_have_colours_of_their_own(server: Client, page: Browser, rendering: dict[str, Any]) -> None:
    page.open(server.server.url, **rendering, **DARK)
    found = page.evaluate(COLOURS)
    assert all(len(set(colours)) == 1 and colours[0].startswith("#") for colours in found), found
    assert len({colours[0] for colours in found}) == len(found)


@pytest.mark.parametrize("rendering", [CLASSIC, NODES_2], ids=["classic", "nodes2"])
def test_from_scratch_to_a_picture(server: Client, page: Browser, rendering: dict[str, Any]) -> None:
    """Three nodes as they are when they are new, two links, Run. ComfyUI's cache would hold a run of the same seed."""
    page.open(server.server.url, **rendering, **DARK)
    page.add("FastDiffusersLoadPipeline", "FastDiffusersSampler", "SaveImage")
    page.evaluate(CONNECT)
    page.evaluate(SEED % (1 + int(rendering == NODES_2)))
    folder = server.base / "output"
    before = set(folder.rglob("*.png"))
    page.run()
    assert len(set(folder.rglob("*.png")) - before) == 1
    assert not any(node["errors"] for node in page.nodes())

"""The nodes as a person meets them in the editor: both themes, both ways in which nodes are drawn, help and report."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from test_registration import NODES
from test_workflows import read

from fastdiffusers.scripts.browser import CLASSIC, DARK, HELP_TEXT, LIGHT, NODES_2, Browser

if TYPE_CHECKING:
    from comfy_client import Client

LABELS = """
[...document.querySelectorAll('[data-node-id] [data-testid=node-widget] .truncate, [data-node-id] .truncate')]
  .map(e => ({ text: e.innerText, cut: e.scrollWidth > e.clientWidth + 1 }))
"""
REPORT = """
(() => {
  const e = document.querySelector('.fastdiffusers-report');
  return { text: e.innerText, width: e.clientWidth, textWidth: e.scrollWidth, height: e.clientHeight,
           textHeight: e.scrollHeight, colours: [getComputedStyle(e).color, getComputedStyle(e).backgroundColor] };
})()
"""
BESIDE_NODES = """
(() => {
  const onNodes = [...document.querySelectorAll('.dom-widget')], before = onNodes.map(e => e.style.display);
  onNodes.forEach(e => { e.style.display = 'none'; });
  const text = document.body.innerText;
  onNodes.forEach((e, index) => { e.style.display = before[index]; });
  return text;
})()
"""
"""What can be read, but for what nodes show themselves."""
SHOWN = """
(start => {
  const leaves = [...document.querySelectorAll('body *')].filter(e => !e.children.length);
  return leaves.filter(e => e.innerText?.startsWith(start)).map(e => {
    const bottom = e.getBoundingClientRect().bottom, range = document.createRange(), text = e.firstChild;
    let length = 0;
    while (length < text.length) {
      range.setStart(text, length);
      range.setEnd(text, length + 1);
      if (range.getBoundingClientRect().bottom > bottom + 1) break;
      length += 1;
    }
    return text.data.slice(0, length);
  });
})(%s)
"""
"""What can be read of the texts that begin so: their first lines, where they are cut."""
ASK = "window.app.queuePrompt(0).catch(() => null)"
OPEN_ERRORS = "[...document.querySelectorAll('button')].find(b => /See Errors|View details/.test(b.innerText)).click()"
HELP_WIDTHS = f"(() => {{ const e = document.querySelector('{HELP_TEXT}'); return [e.scrollWidth, e.clientWidth]; }})()"


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=["dark", "light"])
@pytest.mark.parametrize("rendering", [CLASSIC, NODES_2], ids=["classic", "nodes2"])
def test_new_nodes_and_a_report(
    server: Client, page: Browser, rendering: dict[str, Any], theme: dict[str, Any]
) -> None:
    page.open(server.server.url, **rendering, **theme)
    found = page.add(*NODES)
    assert [node["type"] for node in found] == list(NODES)
    for node in found:
        assert not node["missing"], node["type"]
        assert not node["errors"], node["type"]
        assert node["minimum"][0] <= node["size"][0] + 1, f"{node['type']} is too narrow"
        assert node["minimum"][1] <= node["size"][1] + 1, f"{node['type']} is too low"
        assert all(widget["value"] is not None for widget in node["widgets"] if widget["name"] != "show_advanced"), (
            node["widgets"]
        )
    labels = page.evaluate(LABELS)
    # A value may be the name of a file, of any length.
    values = {str(widget["value"]) for node in found for widget in node["widgets"]}
    assert not [label["text"] for label in labels if label["cut"] and label["text"] not in values]
    assert rendering == CLASSIC or len(labels) > len(NODES)

    before = {node["id"]: node["size"] for node in page.load(read("Text to Image"))}
    page.run()
    after = {node["id"]: node for node in page.nodes()}
    assert {number: node["size"] for number, node in after.items()} == before, "no node grows with what it shows"
    report = page.evaluate(REPORT)
    assert "attention: auto → sdpa" in report["text"]
    assert "model: tiny:flux" in report["text"]
    assert report["textWidth"] <= report["width"]
    assert 120 <= report["height"] < report["textHeight"], "a long report scrolls"
    assert report["colours"][0] != report["colours"][1]


def test_help_of_every_node(server: Client, page: Browser) -> None:
    page.open(server.server.url, **CLASSIC, **DARK)
    for name in NODES:
        page.add(name)
        text = page.show_help()
        assert text.startswith(server.info[name]["display_name"])
        assert "Inputs" in text
        width, room = page.evaluate(HELP_WIDTHS)
        assert width <= room, f"the help of {name} is wider than its panel"


def _set(page: Browser, node: str, widget: str, value: str) -> None:
    found = f"window.app.graph.nodes.find(n => n.type === '{node}').widgets.find(w => w.name === '{widget}')"
    page.evaluate(f"{found}.value = '{value}'")


def _shown(page: Browser, start: str) -> list[str]:
    """What can be read of the texts that begin so, as soon as there are any."""
    deadline = time.monotonic() + 30
    while not (texts := page.evaluate(SHOWN % json.dumps(start))) and time.monotonic() < deadline:
        time.sleep(0.3)
    return list(texts)


def test_of_an_error_the_cure_can_be_read(server: Client, page: Browser) -> None:
    """In the few lines that the editor shows beside the Run button, in a window of the usual width."""
    page.open(server.server.url, **CLASSIC, **DARK)
    page.load(read("Text to Image"))
    _set(page, "FastDiffusersSampler", "scheduler", "PNDMScheduler")
    page.evaluate(ASK)
    (shown,) = _shown(page, "InputError")
    assert shown.startswith("InputError: scheduler = 'PNDMScheduler': Use 'model default' or one of")


def test_of_a_refused_input_the_cure_can_be_read_and_it_is_said_once(server: Client, page: Browser) -> None:
    page.open(server.server.url, **CLASSIC, **DARK)
    page.load(read("Text to Image"))
    _set(page, "FastDiffusersLoadPipeline", "model", "no-such-model")
    page.evaluate(ASK)
    shown = _shown(page, "model = ")  # on the node, and in some editors beside it
    assert shown
    for text in shown:
        assert text.startswith("model = 'no-such-model': Put it into models/diffusers, or choose [custom]")
    page.evaluate(OPEN_ERRORS)
    text = page.evaluate(BESIDE_NODES)
    assert text.count("no-such-model': Put it") <= 1
    assert "Custom validation failed" not in text


def _cut(node: str, name: str) -> str:
    """Take the link off an input."""
    found = f"window.app.graph.nodes.find(n => n.type === '{node}')"
    return f"{found}.disconnectInput({found}.inputs.findIndex(i => i.name === '{name}'))"


ON_NODE = """
(type => {
  const node = window.app.graph.nodes.find(n => n.type === type);
  return node.widgets.find(w => w.name === '$$node-text-preview')?.value ?? '';
})(%s)
"""
LOADER, SAMPLER = "FastDiffusersLoadPipeline", "FastDiffusersSampler"
MISTAKES = [
    # workflow, what is done wrong, the node that says so, its cure, its reason
    ("Text to Image", (LOADER, "model", "gone"), LOADER, "Put it into models/diffusers", "no such model"),
    ("Text to Image", (LOADER, "model", "[custom]"), LOADER, "Enter a folder", "it is empty"),
    ("Text to Image", (SAMPLER, "pipeline"), SAMPLER, "Connect Load Diffusers Pipeline", "nothing is connected"),
    ("Text to Image", (SAMPLER, "scheduler", "PNDMScheduler"), SAMPLER, "Use 'model default'", "it does not fit"),
    ("Wan Image to Video, 4 Steps", (SAMPLER, "images.image_1"), SAMPLER, "Give one in images", "works on a picture"),
    (
        "Wan Image to Video, 4 Steps",
        (LOADER, "model", "embedded tiny: flux"),
        SAMPLER,
        "Set strength below 1",
        "flux is a text-only model",
    ),
]


def test_six_common_mistakes_are_told_on_the_node(server: Client, page: Browser) -> None:
    """Whole, with the cure and the reason; what a check of the inputs said goes with the next run."""
    page.open(server.server.url, **CLASSIC, **DARK)
    for workflow, wrong, node, cure, reason in MISTAKES:
        page.load(read(workflow))
        if len(wrong) == 3:
            _set(page, *wrong)
        else:
            page.evaluate(_cut(*wrong))
        page.evaluate(ASK)
        deadline = time.monotonic() + 60
        while cure not in (text := page.evaluate(ON_NODE % json.dumps(node))) and time.monotonic() < deadline:
            time.sleep(0.3)
        assert cure in text, wrong
        assert reason in text, wrong
    page.load(read("Text to Image"))
    _set(page, LOADER, "model", "gone")
    page.evaluate(ASK)
    assert "no such model" in page.evaluate(ON_NODE % json.dumps(LOADER))
    _set(page, LOADER, "model", "embedded tiny: flux")
    page.run()
    assert not page.evaluate(ON_NODE % json.dumps(LOADER))

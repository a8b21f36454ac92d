"""Pictures of every node of this pack in ComfyUI's editor, to look at.

`python . scripts.screenshots OUT` starts a private ComfyUI and a headless Chromium. Each node is shown
as it is when it is new, in the dark and the light theme, drawn on the canvas ("classic") and as elements of the page
("nodes2"): OUT/dark-classic/<node>.png and so on. `graph.png` and `report.png` beside them show a graph after a run,
`workflows/` every example workflow as it opens, and OUT/help/ the help page of each node in both themes, whole, at the
width that its panel has.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ..commands.paths import PACK
from .browser import CLASSIC, DARK, HELP_TEXT, LIGHT, NODES_2, Browser, BrowserError, find_chromium
from .comfyui_server import ComfyServer, ServerError
from .node_texts import CATEGORY

THEMES = {"dark": DARK, "light": LIGHT}
RENDERINGS = {"classic": CLASSIC, "nodes2": NODES_2}
EXAMPLE = PACK / "example_workflows" / "Text to Image.json"
WINDOW = (1400, 1200)
MARGIN = 20
WORKFLOWS = "workflows"
BADGE, FOOTER = 15, 35
"""Pixels above and below a node that its badge and the button for its advanced inputs take."""
PANEL = "[data-testid=properties-panel]"
HELP_HEIGHT = """
(() => {
  const text = document.querySelector('%s');
  return Math.ceil(text.getBoundingClientRect().top + text.scrollHeight);
})()
"""


def pack_nodes(server: ComfyServer) -> list[str]:
    """The ids of this pack's nodes."""
    return sorted(name for name, info in server.object_info().items() if info["category"] == CATEGORY)


def around(page: Browser, node_id: str) -> dict[str, float]:
    """The part of the window that shows a node and a little more."""
    box = page.box(node_id)
    left, top = max(0, box["x"] - MARGIN), max(0, box["y"] - MARGIN - BADGE)
    right, bottom = box["x"] + box["width"] + MARGIN, box["y"] + box["height"] + MARGIN + FOOTER
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def picture_nodes(page: Browser, nodes: list[str], folder: Path) -> Iterator[Path]:
    """Each node by itself, as it is when it is new."""
    for name in nodes:
        (node,) = page.add(name)
        yield page.screenshot(folder / f"{name}.png", around(page, node["id"]))


def picture_help(page: Browser, nodes: list[str], folder: Path) -> Iterator[Path]:
    """The help of each node, in a window that is high enough for the whole page."""
    for name in nodes:
        page.resize(*WINDOW)
        page.add(name)
        page.show_help()
        page.resize(WINDOW[0], page.evaluate(HELP_HEIGHT % HELP_TEXT) + MARGIN)
        box = page.evaluate(f"document.querySelector('{PANEL}').getBoundingClientRect().toJSON()")
        yield page.screenshot(folder / f"{name}.png", {key: box[key] for key in ("x", "y", "width", "height")})
    page.resize(*WINDOW)


def picture_run(page: Browser, folder: Path) -> Iterator[Path]:
    """The smallest example after a run: all of it, and the report by itself."""
    nodes = page.load(json.loads(EXAMPLE.read_text(encoding="utf-8")))
    page.run()
    yield page.screenshot(folder / "graph.png")
    report = next(node for node in nodes if node["type"] == "FastDiffusersShowReport")
    page.evaluate(f"window.app.canvas.centerOnNode(window.app.graph.getNodeById({report['id']}))")
    page.evaluate("window.app.canvas.setZoom(1)")
    time.sleep(1)
    yield page.screenshot(folder / "report.png", around(page, report["id"]))


def picture_workflows(page: Browser, folder: Path) -> Iterator[Path]:
    """Each example workflow as it opens."""
    folder.mkdir(exist_ok=True)
    for file in sorted(EXAMPLE.parent.glob("*.json")):
        page.load(json.loads(file.read_text(encoding="utf-8")))
        yield page.screenshot(folder / f"{file.stem}.png")


def take(server: ComfyServer, page: Browser, output: Path, only: str = "") -> Iterator[Path]:
    """Take all pictures, or those of the nodes whose id contains `only`, of which "workflows" has none."""
    nodes = [name for name in pack_nodes(server) if only in name]
    page.resize(*WINDOW)
    for theme, palette in THEMES.items():
        for rendering, choice in RENDERINGS.items():
            folder = output / f"{theme}-{rendering}"
            folder.mkdir(parents=True, exist_ok=True)
            page.open(server.url, **palette, **choice)
            yield from picture_nodes(page, nodes, folder)
            if not only:
                yield from picture_run(page, folder)
            if only in ("", WORKFLOWS):
                yield from picture_workflows(page, folder / WORKFLOWS)
        folder = output / "help" / theme
        folder.mkdir(parents=True, exist_ok=True)
        yield from picture_help(page, nodes, folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="screenshots", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for the pictures")
    parser.add_argument("--node", default="", help='only nodes whose id contains this, or "workflows"')
    args = parser.parse_args()
    program = find_chromium()
    if program is None:
        print("no Chromium is installed", file=sys.stderr)
        return 1
    try:
        with ComfyServer() as server, Browser(program, *WINDOW) as page:
            for path in take(server, page, args.output, args.node):
                print(path)
    except (BrowserError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

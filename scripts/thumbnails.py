"""The pictures of the example workflows that the template browser shows, and the README's: the graphs as they come.

`python . scripts.thumbnails [NAME ...]` starts a private ComfyUI and a headless Chromium. Those in which the embedded
Flux draws by itself are run, so that they show its picture; the other embedded models are random and would show noise.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..commands.paths import PACK
from .browser import BAR, CLASSIC, DARK, Browser, BrowserError, find_chromium
from .comfyui_server import ComfyServer, ServerError
from .editor_scripts import BOUNDS

FOLDER = PACK / "example_workflows"
README_EXAMPLE, README_PICTURE = "Text to Image", PACK / "docs" / "screenshot.png"
WINDOW = (2000, 1500)
EDGE = 14
"""Pixels around the graph."""
EXAMPLE = 10
"""Seed of the landscape that stands for a picture of one's own."""
LONGEST = 1000
"""Pixels of the longer side of a thumbnail."""
TRAINED = "embedded tiny: flux"
NOT_ALONE = {"FastDiffusersLoadControlNet", "FastDiffusersLoadImagePromptModel", "FastDiffusersClusterSettings"}
"""Nodes with weights of their own, which are random, or that start processes."""
PLACE = "[window.app.canvas.ds.scale, ...window.app.canvas.ds.offset]"


def draws(workflow: Mapping[str, Any]) -> bool:
    """Whether a graph makes a picture worth showing: the embedded Flux, whose weights were trained, does alone."""
    nodes = workflow["nodes"]
    models = {node["widgets_values"][0] for node in nodes if node["type"] == "FastDiffusersLoadPipeline"}
    return models == {TRAINED} and not NOT_ALONE & {node["type"] for node in nodes}


def graph_picture(page: Browser, workflow: Mapping[str, Any]) -> Image.Image:
    """The whole graph of a workflow, without the editor's bars, with what it has made where that is worth it."""
    page.load(workflow)
    if draws(workflow):
        page.run()
    bounds, (scale, x, y) = page.evaluate(BOUNDS), page.evaluate(PLACE)
    left, top = (bounds["left"] + x) * scale - EDGE, max(BAR - EDGE, (bounds["top"] + y) * scale - EDGE)
    width = (bounds["right"] - bounds["left"]) * scale + 2 * EDGE
    height = (bounds["bottom"] + y) * scale + EDGE - top
    clip = {"x": left, "y": top, "width": width, "height": height}
    return Image.open(io.BytesIO(page.picture(clip))).convert("RGB")


def draw_example(path: Path) -> None:
    """Draw a landscape under the name of ComfyUI's example picture, which the workflows load."""
    from .train_tiny import scenes

    picture = scenes.draw(scenes.choose(1, EXAMPLE), size=768)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((picture.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="thumbnails", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows, without the suffix; all of them")
    names = parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.json"))
    program = find_chromium()
    if program is None:
        print("no Chromium is installed", file=sys.stderr)
        return 1
    try:
        private = ComfyServer()
        draw_example(private.base / "input" / "example.png")
        with private as server, Browser(program, *WINDOW) as page:
            page.resize(*WINDOW)
            page.open(server.url, **DARK, **CLASSIC)
            for name in names:
                picture = graph_picture(page, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
                if name == README_EXAMPLE:
                    picture.save(README_PICTURE, optimize=True)
                    print(README_PICTURE)
                picture.thumbnail((LONGEST, LONGEST))
                picture.save(FOLDER / f"{name}.jpg", quality=85)
                print(FOLDER / f"{name}.jpg")
    except (BrowserError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The pictures of the example workflows that the template browser shows, and the README's: the graphs as they come.

`python . scripts.thumbnails [NAME ...]` starts a private ComfyUI and a headless Chromium. Nothing is run for them: the
embedded models' own pictures would say nothing of a real one's.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

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
PLACE = "[window.app.canvas.ds.scale, ...window.app.canvas.ds.offset]"


def graph_picture(page: Browser, workflow: Path) -> Image.Image:
    """The whole graph of a workflow, without the editor's bars."""
    page.load(json.loads(workflow.read_text(encoding="utf-8")))
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
                picture = graph_picture(page, FOLDER / f"{name}.json")
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

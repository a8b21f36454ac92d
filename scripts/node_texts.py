"""Writes the lists of inputs into the help pages of every language, from `locales/<language>/nodeDefs.json`.

Run it after a text has changed: `python . scripts.node_texts`. The texts themselves are written by hand,
but for those that a schema computes: these it writes to the English file. A test says what a file lacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..commands.paths import PACK
from .comfyui_server import ComfyServer

CATEGORY = "FastDiffusers"
LANGUAGES = ("en", "zh")


def locale_file(language: str) -> Path:
    """Where the nodes' texts of a language are."""
    return PACK / "locales" / language / "nodeDefs.json"


def help_page(node: str, language: str) -> Path:
    """Where the frontend finds a node's help."""
    docs = PACK / "web" / "docs"
    return docs / f"{node}.md" if language == "en" else docs / node / f"{language}.md"


def node_texts(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of this pack's nodes in the form of ComfyUI's `nodeDefs.json`, from the server's `/object_info`."""
    texts = {}
    for name, info in sorted(object_info.items()):
        if info["category"] != CATEGORY:
            continue
        inputs = {}
        for section in ("required", "optional"):
            for key, (_, *rest) in info["input"].get(section, {}).items():
                inputs[key] = {"name": key, "tooltip": rest[0]["tooltip"]}
        outputs = {
            str(index): {"name": output, "tooltip": tooltip}
            for index, (output, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
        }
        shown = {"display_name": info["display_name"], "description": info["description"]}
        texts[name] = {**shown, "inputs": inputs, "outputs": outputs}
    return texts


def with_inputs(page: str, inputs: Mapping[str, Mapping[str, str]]) -> str:
    """A help page whose last section lists these inputs: their name and their tooltip.

    It is a list because the editor shows help in a narrow panel, where a table is cut off.
    """
    heading = page.rindex("\n## ") + 1
    # Sockets that grow have a name each, and are explained once.
    lines = [f"- **{text['name']}**: {text['tooltip']}\n" for text in inputs.values() if "tooltip" in text]
    return page[: page.index("\n", heading)] + "\n\n" + "".join(lines)


def main() -> None:
    with ComfyServer() as server:
        texts = node_texts(server.object_info())
    locale_file("en").write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for language in LANGUAGES:
        written = json.loads(locale_file(language).read_text(encoding="utf-8"))
        for node, text in written.items():
            page = help_page(node, language)
            page.write_text(with_inputs(page.read_text(encoding="utf-8"), text["inputs"]), encoding="utf-8")
    print(f"{locale_file('en')}: {len(texts)} nodes, and their help pages in {len(LANGUAGES)} languages")


if __name__ == "__main__":
    main()

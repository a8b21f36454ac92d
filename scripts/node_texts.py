"""Writes the nodes' English texts, as their schemas have them, to `locales/en/nodeDefs.json`.

Run it after a tooltip has changed: `python -m fastdiffusers.scripts.node_texts`. The other languages are written by
hand beside it; a test says which texts they lack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..commands.paths import PACK
from .comfyui_server import ComfyServer

TARGET = PACK / "locales" / "en" / "nodeDefs.json"
CATEGORY = "FastDiffusers"


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


def main() -> None:
    with ComfyServer() as server:
        texts = node_texts(server.object_info())
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{TARGET}: {len(texts)} nodes")


if __name__ == "__main__":
    main()

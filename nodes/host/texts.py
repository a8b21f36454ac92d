"""The nodes' English texts, from the file that ComfyUI's editor reads too: code declares what a widget takes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "locales" / "en" / "nodeDefs.json"


@functools.cache
def _texts() -> dict[str, Any]:
    texts: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return texts


def add_texts(options: dict[str, Any]) -> dict[str, Any]:
    """A schema's options with its description and its tooltips; one that the code computes stays."""
    texts = _texts().get(options["node_id"], {})
    named = [(widget, texts.get("inputs", {}).get(widget.id)) for widget in options["inputs"]]
    numbered = [(output, texts.get("outputs", {}).get(str(n))) for n, output in enumerate(options["outputs"])]
    for shown, text in (*named, *numbered):
        if text and not shown.tooltip:
            shown.tooltip = text["tooltip"]
    return {"description": texts.get("description", ""), **options}

"""Small models with random weights that diffusers has in modular form alone, or first: saved as folders."""

from __future__ import annotations

from pathlib import Path

import diffusers
from modular_twins import save

from fastdiffusers.benchmarks.coverage.sources.modular_parts import PREPARED, prepared
from fastdiffusers.pipelines import tiny

EMBEDDED = ("flux3", "minimax-h3")
"""Those that are embedded in the pack."""
ANIMATED = "wananimate2"
"""It makes nothing without a picture and a clip."""
NAMES = (*(name for name in PREPARED if name != ANIMATED), *EMBEDDED)


def save_model(name: str, folder: Path) -> Path:
    """Build and save one of `NAMES`."""
    if name in EMBEDDED:
        return tiny.save(name, folder)
    class_name, parts = prepared(name)
    return save(getattr(diffusers, class_name)(), parts, folder)

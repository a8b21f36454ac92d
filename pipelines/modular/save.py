"""The `modular_model_index.json` of a folder that is being written."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_index(pipeline: Any, folder: Path, output: Path) -> None:
    """Write the index of a modular pipeline whose components are in subfolders of their names.

    Args:
        pipeline: with a component, on whatever device, for each that is there; the others have no place in the index.
        folder: where the index is written.
        output: what `folder` is going to be called.
    """
    for name in pipeline.pretrained_component_names:
        if getattr(pipeline, name, None) is not None:
            library, class_name, place = pipeline.config[name]
            place.update(pretrained_model_name_or_path=str(output), subfolder=name, variant=None, revision=None)
            pipeline.register_to_config(**{name: (library, class_name, place)})
    pipeline.save_config(folder)

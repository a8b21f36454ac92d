"""Nodes that write a model to disk: quantized, or as a diffusers folder."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ..host.model_files import download_folder


def made_download_folder() -> Path:
    """Return `download_folder()`, made where it is missing. Raises InputError where it cannot be."""
    folder = download_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the first diffusers path, {folder}, cannot be made ({error.strerror or error})"
        cure = "make it, or put another path first in extra_model_paths.yaml"
        raise InputError("name", "", reason, cure) from error
    return folder

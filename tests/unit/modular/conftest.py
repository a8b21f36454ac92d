"""Saved modular pipelines, one of each for a session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "pipelines"))

from modular_twins import save_twin


@pytest.fixture(scope="session")
def modular_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a modular tiny pipeline by the name of the embedded one. Read only: copy to change."""
    root, built = tmp_path_factory.mktemp("modular"), {}

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = save_twin(name, root / name)
        return built[name]

    return folder


@pytest.fixture(autouse=True)
def _small_edit_pictures(small_edit_pictures: None) -> None:
    """In every test here."""


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    yield
    from fastdiffusers.pipelines.cache import CACHE

    CACHE.clear()

"""What the unit tests share beyond tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.tiny import trained

TRAINED = trained.FOLDER


@pytest.fixture(autouse=True, scope="session")
def _random_flux() -> Iterator[None]:
    """Here `tiny:flux` has random weights, few of them, and takes guidance; `trained_weights` undoes that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "FOLDER", TRAINED.with_name("none"))
        yield


@pytest.fixture
def trained_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Puts the embedded trained weights back to where the pack looks for them. Their folder."""
    loader.family_of_key.cache_clear()
    monkeypatch.setattr(trained, "FOLDER", TRAINED)
    yield TRAINED
    loader.family_of_key.cache_clear()

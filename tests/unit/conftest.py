"""What the unit tests share beyond tests/conftest.py; which of them are slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.tiny import trained

TRAINED = trained.FOLDER
ALONE = Path(__file__).with_name("cluster")
"""Where `make alone-tests` looks, so that it need not import every test."""
SLOW = Path(__file__).with_name("slow.txt")
"""The tests that `make quick` leaves out, one a line; `make slow-list` measures and writes it."""
SLOW_SECONDS = 1.5
TAKEN: Counter[str] = Counter()
"""Seconds of each test, its fixtures included."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-slow", action="store_true", help=f"write {SLOW.name}: what takes {SLOW_SECONDS} s or more"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = set(SLOW.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")
        if item.get_closest_marker("alone") and ALONE not in item.path.parents:
            raise pytest.UsageError(f"{item.nodeid}: no target of the Makefile runs tests marked alone outside {ALONE}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    TAKEN[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-slow", False) and not hasattr(session.config, "workerinput"):
        slow = sorted(test for test, seconds in TAKEN.items() if seconds >= SLOW_SECONDS)
        SLOW.write_text("".join(f"{test}\n" for test in slow), encoding="utf-8")


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

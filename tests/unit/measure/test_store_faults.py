"""A store of measurements that something else has filled: it is passed over, and says so once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fastdiffusers import cache_folder
from fastdiffusers.optimizations.tuning.key import TuningKey
from fastdiffusers.optimizations.tuning.store import Row, Store

HERE = TuningKey("card", "torch 2.13", "tiny@1", "bfloat16", "none", "gpu", "1.05 Mpx")


def row() -> Row:
    return Row(HERE, (("attention", "sdpa"),), "faster", gain=0.1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "measurements.jsonl")


def test_every_row_that_is_read_can_be_listed_and_kept(store: Store, tmp_path: Path) -> None:
    """What half a surrogate pair in a reason or a path would end: writing, exporting and compacting."""
    assert store.add(replace(row(), reason="a path like /models/\udcff and \ud800"))
    (found,) = Store(store.path).rows()
    assert found.reason == "a path like /models/\udcff and \ud800"
    assert Store(store.path).export(tmp_path / "copy.jsonl") == 1
    assert Store(tmp_path / "copy.jsonl").rows() == [found]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "far too long"])
def test_a_store_that_is_no_ordinary_file_is_ignored_with_one_line(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "measurements.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    store = Store(path)
    assert store.rows() == store.rows() == store.find(HERE) == []
    (line,) = caplog.messages
    assert str(path) in line
    if kind != "far too long":
        assert not store.add(row())
        assert store.rows() == [row()], "it lasts for the session"


def test_a_home_that_is_not_there_is_a_path_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDIFFUSERS_CACHE", "~nobody-of-that-name/cache")
    assert cache_folder.cache_folder() == Path("~nobody-of-that-name/cache")

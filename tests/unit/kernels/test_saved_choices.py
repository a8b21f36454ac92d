"""What is kept about kernels between processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdiffusers.vae import remember_in
from fastdiffusers.vae.kernels import saved_choices
from fastdiffusers.vae.kernels.saved_choices import SavedChoices, versions


def test_without_a_file_it_lasts_as_long_as_the_process() -> None:
    memory = SavedChoices(None, {})
    memory.put(("a", 1), "x")
    memory.put(("a", 2), "y")
    assert (memory.get(("a", 1)), memory.get(("a", 2)), memory.get(("b", 1))) == ("x", "y", None)


def test_processes_add_to_what_others_wrote(tmp_path: Path) -> None:
    one, other = (SavedChoices(tmp_path / "kernels.json", {}) for _ in range(2))
    one.put(("a",), "1")
    other.put(("b",), "2")
    one.put(("c",), "3")
    assert [SavedChoices(tmp_path / "kernels.json", {}).get((key,)) for key in "abc"] == ["1", "2", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]


def test_the_oldest_entries_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_choices, "LIMIT", 2)
    memory = SavedChoices(tmp_path / "kernels.json", {})
    for key in "abac":
        memory.put((key,), key)
    assert [memory.get((key,)) for key in "abc"] == ["a", None, "c"]


def test_a_folder_can_be_named_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SavedChoices(None, {})
    monkeypatch.setattr(saved_choices, "SAVED", memory)
    remember_in(tmp_path / "cache")
    memory.put(("a",), "x")
    entries = json.loads((tmp_path / "cache" / "kernels.json").read_text())["entries"]
    assert list(entries.values()) == ["x"]


def test_the_versions_name_what_decides() -> None:
    assert {"card", "torch", "cudnn", "compiler"} <= set(versions())
    assert all(isinstance(value, str) for value in versions().values())

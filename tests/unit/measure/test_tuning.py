"""The store keeps what was measured: through other writers, kills, corruption and folders without permission."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fastdiffusers import cache_folder
from fastdiffusers.cache_folder import software
from fastdiffusers.optimizations.settings import (
    CompileSettings,
    OptimizationSettings,
    PrecisionSettings,
    TilingSettings,
    Workload,
)
from fastdiffusers.optimizations.tuning import store as store_module
from fastdiffusers.optimizations.tuning.key import TuningKey, label, shape_bucket
from fastdiffusers.optimizations.tuning.store import Row, Store, default_store

PLAIN: tuple[tuple[str, str], ...] = ()
HERE = TuningKey("card", "torch 2.13", "tiny@1", "bfloat16", "none", "gpu", "1.05 Mpx")


def row(name: str = "sdpa", gain: float = 0.1, key: TuningKey = HERE) -> Row:
    return Row(key, (("attention", name),), "faster", gain=gain, run_seconds=1.5, peak_bytes=2**30)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "measurements.jsonl")


def test_what_is_added_is_found_again_by_another_process_object(store: Store) -> None:
    assert store.find(HERE) == []
    assert store.add(row("xformers"))
    assert Store(store.path).find(HERE) == [row("xformers")]


def test_the_newest_row_of_the_same_settings_counts(store: Store) -> None:
    store.add(row("a", gain=0.1))
    store.add(row("b"))
    store.add(row("a", gain=0.3))
    assert [(r.settings[0][1], r.gain) for r in store.find(HERE)] == [("b", 0.1), ("a", 0.3)]


@pytest.mark.parametrize("changed", ["device", "software", "model", "dtype", "quantization", "memory_mode", "shape"])
def test_a_changed_situation_is_never_answered_with_an_old_row(store: Store, changed: str) -> None:
    store.add(row())
    assert store.find(replace(HERE, **{changed: "something else"})) == []


def test_it_is_readable_text(store: Store) -> None:
    store.add(row())
    (line,) = store.path.read_text().splitlines()
    assert json.loads(line)["situation"]["device"] == "card"
    assert json.loads(line)["settings"] == {"attention": "sdpa"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe not text \n",
        b"{}\n",
        b"[1, 2]\n",
        b'"text"\n',
        b"{half a row",
        b"SQLite format 3\x00\n" * 50,
        row().as_json().replace('"format": 1', '"format": 2').encode() + b"\n",
        row().as_json().replace('"faster"', '"wonderful"').encode() + b"\n",
        row().as_json().replace('"card"', "17").encode() + b"\n",
        row().as_json().replace("1.5", "NaN").encode() + b"\n",
        row().as_json().replace("1.5", '"1.5"').encode() + b"\n",
        row().as_json().replace('"runs"', '"laps"').encode() + b"\n",
        row().as_json().replace(f'"{row().when}"', "20261125").encode() + b"\n",
        row().as_json().replace(row().when, "yesterday").encode() + b"\n",
        row().as_json().replace('"gain": 0.1', f'"gain": 1{"0" * 400}').encode() + b"\n",
        row().as_json().replace('"gain": 0.1', f'"gain": 1{"0" * 5000}').encode() + b"\n",
        row().as_json().replace('"gain": 0.1', '"gain": null').encode() + b"\n",
        row().as_json().replace('"gain": 0.1', '"gain": true').encode() + b"\n",
        row().as_json().replace('"runs": 0', '"runs": "many"').encode() + b"\n",
        row().as_json().replace('"reason": ""', '"reason": ["a"]').encode() + b"\n",
        row().as_json().replace('"lossless": null', '"lossless": {}').encode() + b"\n",
        row().as_json().replace('"source": "benchmark"', '"source": 3').encode() + b"\n",
        row().as_json().replace('"settings": {"attention": "sdpa"}', '"settings": ["a"]').encode() + b"\n",
        b"[" * 100_000 + b"\n",
        b'{"format":' * 100_000 + b"\n",
        b'{"situation": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    ],
)
def test_lines_that_cannot_be_read_are_passed_over(store: Store, garbage: bytes) -> None:
    store.add(row("first"))
    with store.path.open("ab") as file:
        file.write(garbage)
    store.add(row("second"))
    assert [r.settings[0][1] for r in Store(store.path).find(HERE)] == ["first", "second"]


def test_no_figure_that_is_not_finite_gets_in(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        store.add(row(gain=math.nan))
    assert store.rows() == []


def test_forgetting_all_and_some(store: Store) -> None:
    store.add(row("a"))
    store.add(row("b", key=replace(HERE, model="other")))
    assert store.forget(lambda r: r.key.model == "other") == 1
    assert [r.settings[0][1] for r in Store(store.path).rows()] == ["a"]
    assert store.forget() == 1
    assert Store(store.path).rows() == []
    assert store.forget() == 0


def test_an_export_is_a_store(store: Store, tmp_path: Path) -> None:
    store.add(row("a"))
    store.add(row("a", gain=0.2))
    store.add(row("b"))
    assert store.export(tmp_path / "export.jsonl") == 2
    assert Store(tmp_path / "export.jsonl").rows() == store.rows()


WRITER = """
import sys
from pathlib import Path
from fastdiffusers.optimizations.tuning.key import TuningKey
from fastdiffusers.optimizations.tuning.store import Row, Store
store, name = Store(Path(sys.argv[1])), sys.argv[2]
here = TuningKey("card", "torch 2.13", "tiny@1", "bfloat16", "none", "gpu", "1.05 Mpx")
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    store.add(Row(here, (("attention", f"{name}{number}"),), "faster", reason="x" * 2000))
"""


def start_writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def test_two_processes_write_at_once_and_nothing_is_lost(store: Store) -> None:
    writers = [start_writer(store.path, name, 150) for name in ("left", "right")]
    for writer in writers:
        assert writer.wait(timeout=60) == 0
    names = {r.settings[0][1] for r in store.find(HERE)}
    assert names == {f"{side}{number}" for side in ("left", "right") for number in range(150)}


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_writer_loses_at_most_its_own_row(store: Store) -> None:
    store.add(row("before"))
    writer = start_writer(store.path, "killed", 10**6)
    while len(store.rows()) < 20:
        assert writer.poll() is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait(timeout=30)
    with store.path.open("ab") as file:  # the unluckiest moment: half a line is on the disk
        file.write(row("torn").as_json().encode()[:90])
    survivors = {r.settings[0][1] for r in store.rows()}
    assert store.add(row("after"))
    found = {r.settings[0][1] for r in Store(store.path).rows()}
    assert found == survivors | {"after"}
    assert "before" in found
    assert "torn" not in found


def test_threads_share_a_store(store: Store) -> None:
    threads = [threading.Thread(target=lambda n=n: store.add(row(f"t{n}"))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(store.path).rows()) == 20


def test_where_nothing_can_be_written_it_lasts_for_the_session(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("a file where the folder should be")
    store = Store(tmp_path / "in_the_way" / "measurements.jsonl")
    assert store.add(row()) is False
    assert store.find(HERE) == [row()]
    assert store.forget() == 1
    assert store.find(HERE) == []


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_read_and_not_written(store: Store) -> None:
    store.add(row("old"))
    store.path.chmod(0o444)
    store.path.parent.chmod(0o555)
    try:
        again = Store(store.path)
        assert again.add(row("new")) is False
        assert {r.settings[0][1] for r in again.rows()} == {"old", "new"}
    finally:
        store.path.parent.chmod(0o755)


def test_a_write_that_fails_in_the_middle_is_tolerated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(row("old"))

    def full_disk(handle: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    assert store.add(row("new")) is False
    assert {r.settings[0][1] for r in store.rows()} == {"old", "new"}


def test_it_does_not_grow_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_COMPACT_ABOVE", 3000)
    for number in range(50):
        store.add(row(f"n{number % 3}", gain=number / 100))
    assert store.path.stat().st_size < 4000
    assert sorted(r.gain for r in Store(store.path).rows()) == [0.47, 0.48, 0.49]


def test_the_folder_is_the_environments_then_the_given_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "_given_folder", None)
    monkeypatch.delenv(cache_folder.ENVIRONMENT_VARIABLE, raising=False)
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder.default_folder() == tmp_path / "xdg" / "fastdiffusers"
    cache_folder.use_folder(tmp_path / "given")
    assert default_store().path == tmp_path / "given" / store_module.FILE_NAME
    monkeypatch.setenv(cache_folder.ENVIRONMENT_VARIABLE, str(tmp_path / "named"))
    assert default_store() is default_store()
    assert default_store().path.parent == tmp_path / "named"


def test_a_folder_of_a_user_who_is_not_there_is_a_name_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache_folder.ENVIRONMENT_VARIABLE, "~nobody_of_that_name/cache")
    assert cache_folder.cache_folder() == Path("~nobody_of_that_name/cache")


def test_close_sizes_share_a_bucket_and_others_do_not() -> None:
    square = shape_bucket(Workload(1024, 1024))
    assert square == shape_bucket(Workload(1152, 896))
    assert square != shape_bucket(Workload(768, 768))
    assert square != shape_bucket(Workload(1024, 1024, batch=2))
    assert shape_bucket(Workload(832, 1216, frames=81)) != shape_bucket(Workload(832, 1216))
    assert shape_bucket(Workload()) == "any size"


def test_a_label_names_what_differs_from_plain() -> None:
    assert label(OptimizationSettings.plain()) == PLAIN
    settings = OptimizationSettings(
        attention="xformers",
        torch_compile="on",
        compile=CompileSettings(scope="model", compile_vae=True),
        vae_tiling=TilingSettings(mode="on", tile_size=512, overlap=64),
        step_cache="fast",
        precision=PrecisionSettings(tf32="on"),
        fused_projections="on",
    )
    assert dict(label(settings)) == {
        "attention": "xformers",
        "torch_compile": "model inductor default with vae",
        "vae_tiling": "512/64",
        "step_cache": "fast",
        "tf32": "on",
        "fused_projections": "on",
    }
    assert label(OptimizationSettings.plain(fused_projections="auto")) == PLAIN, "nothing is fused by auto"


def test_the_software_names_torch_and_diffusers() -> None:
    assert "torch 2" in software()
    assert "diffusers 0" in software()

"""The folder of a quantized copy: its name on every system, and what killed writers leave."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.loading.partial_folder import MARK, complete_or_absent, sweep
from fastdiffusers.pipelines.loading.quantized_copy import copy_name

WRITER = """
import sys, time
from pathlib import Path
from fastdiffusers.pipelines.loading.partial_folder import complete_or_absent
with complete_or_absent(Path(sys.argv[1])) as partial:
    (partial / "weights").write_bytes(bytes(1000))
    print("begun", flush=True)
    sys.stdin.read()
"""


def writer(output: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def test_what_a_killed_writer_left_is_swept_and_what_another_writes_stays(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "file").write_text("mine")
    killed, alive = writer(tmp_path / "a"), writer(tmp_path / "b")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(tmp_path.glob(f".*/{MARK}"))) == 2
    (removed,) = sweep(tmp_path)
    assert removed.name.startswith(".a.")
    assert not removed.exists()
    alive.communicate(b"")
    assert alive.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "b"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["weights"]


def test_the_next_copy_sweeps_before_it_asks_for_room(
    tmp_path: Path, tiny_folder: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sdnq")
    from fastdiffusers.pipelines.loading import quantized_copy

    killed = writer(tmp_path / "a")
    killed.kill()
    killed.wait()
    left = []

    def check_disk(*args: object) -> None:
        left.extend(tmp_path.iterdir())
        raise InputError("output", "x", "no room")

    monkeypatch.setattr(quantized_copy, "_check_disk", check_disk)
    with pytest.raises(InputError, match="no room"):
        quantized_copy.quantize_folder("tiny:flux", "int8", tmp_path / "copy")
    assert left == []


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    output = tmp_path / ("ü" * 120)
    with complete_or_absent(output) as partial:
        (partial / "file").write_text("x")
    assert (output / "file").read_text() == "x"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), complete_or_absent(tmp_path / "file" / "copy"):
        raise AssertionError("there is nothing to fill")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (str(PureWindowsPath("C:\\models\\diffusers\\FLUX.1-schnell")), "FLUX.1-schnell-sdnq-int8"),
        (str(PureWindowsPath("C:\\models\\diffusers\\FLUX.1-schnell")) + "\\", "FLUX.1-schnell-sdnq-int8"),
        (str(PureWindowsPath("\\\\server\\share\\Qwen Image")), "Qwen Image-sdnq-int8"),
        (str(PureWindowsPath("D:/models/a")), "a-sdnq-int8"),
        ("models\\b/c", "c-sdnq-int8"),
        (str(PurePosixPath("/models/diffusers/Wan2.2")), "Wan2.2-sdnq-int8"),
        ("/models/diffusers/Wan2.2//", "Wan2.2-sdnq-int8"),
        ("C:\\", "C--sdnq-int8"),
        ("/", "model-sdnq-int8"),
        ("..", "model-sdnq-int8"),
        ("owner/name", "name-sdnq-int8"),
        ("tiny:flux", "tiny-flux-sdnq-int8"),
        ("/models/" + "x" * 250, "x" * 100 + "-sdnq-int8"),
    ],
)
def test_the_default_name_is_the_models_on_every_system(source: str, name: str) -> None:
    found = copy_name(source, "int8")
    assert found == name
    assert PureWindowsPath(found).name == PurePosixPath(found).name == found
    assert PureWindowsPath("C:\\models", found).parent == PureWindowsPath("C:\\models")


@pytest.mark.parametrize(
    "name",
    [
        *("../up", "..\\up", "a/b", "a\\b", "C:", "C:x", "\\\\server\\share", ".hidden", "..", ".", "trailing."),
        *("con", "NUL", "com1", "lpt9.txt", "a\0b", "a\nb", "a\ud800", "x" * 300, "ü" * 150),
        *("a?", "a*b", "a<b", "a|b", 'a"b'),
    ],
)
def test_a_name_that_leads_elsewhere_on_any_system_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        copy_name("/models/flux", "int8", name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_chosen_name_is_kept() -> None:
    assert copy_name("/models/flux", "int8", " my copy, 模型 v1.2 ") == "my copy, 模型 v1.2"

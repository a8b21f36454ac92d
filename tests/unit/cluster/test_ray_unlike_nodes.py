"""A real Ray of two nodes that are not alike: one without the model; and a disk that is full for both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from processes import MARK, commands, end_all, marked, wait_for

from fastdiffusers import cli
from fastdiffusers.cluster.connection import TOO_SLOW

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

STORE = 100 * 2**20


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Iterator[SimpleNamespace]:
    """Two nodes with a home folder each, of which the first alone has the model, at ~/model."""
    import ray
    from ray.cluster_utils import Cluster

    homes = [tmp_path_factory.mktemp(name) for name in ("first", "second", "drivers")]
    shutil.copytree(tiny_folder("flux"), homes[0] / "model")
    os.environ[MARK] = mark = f"unlike-{os.getpid()}"
    before, os.environ["HOME"] = os.environ.get("HOME", ""), str(homes[2])
    try:
        started = two_nodes(Cluster, homes, mark)
        ray.init(address=started.address, log_to_driver=False, configure_logging=False, namespace="fastdiffusers")
        yield SimpleNamespace(address=started.address)
        ray.shutdown()
        started.shutdown()
    finally:
        os.environ["HOME"] = before
        del os.environ[MARK]
    try:
        wait_for(lambda: marked(mark) == [], "the end of all processes", lambda: commands(marked(mark)))
    finally:
        end_all(lambda: marked(mark))


def two_nodes(cluster: Any, homes: list[Path], mark: str) -> Any:
    """A cluster with a node for each of two homes. Ray gives each half a minute to start, so it is tried again."""
    options = {"num_cpus": 1, "object_store_memory": STORE}
    for left in reversed(range(5)):
        try:
            head = {**options, "include_dashboard": False, "env_vars": {"HOME": str(homes[0])}}
            started = cluster(initialize_head=True, head_node_args=head)
            started.add_node(**options, env_vars={"HOME": str(homes[1])})
            return started
        except Exception as error:
            if not left or TOO_SLOW not in str(error):
                raise
            end_all(lambda: marked(mark))
    raise AssertionError("the last try raises")


def run(nodes: SimpleNamespace, prompts: Path, output: Path, model: str, count: int = 4) -> int:
    prompts.write_text("".join(f"picture {number}\n" for number in range(count)))
    words = ["generate", "--prompts", str(prompts), "--output", str(output), "--model", model]
    words += ["--cluster", nodes.address, "--cpus", "1", "--cluster-wait", "600", "--dtype", "float32"]
    return cli.main([*words, "--width", "64", "--height", "64", "--steps", "2", "--torch-compile", "off"])


def entries(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_a_node_that_cannot_read_the_model_leaves_the_items_to_the_other(
    tmp_path: Path, nodes: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(nodes, tmp_path / "p.txt", tmp_path / "out", "~/model")
    said = capsys.readouterr()
    assert status == 0, said.err
    made = entries(tmp_path / "out")
    assert sorted(entry["item"] for entry in made) == [1, 2, 3, 4]  # type: ignore[type-var]
    assert {entry["state"] for entry in made} == {"done"}
    assert len({entry["worker"] for entry in made}) == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_a_model_that_no_node_has_fails_every_item_with_its_reason(
    tmp_path: Path, nodes: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(nodes, tmp_path / "p.txt", tmp_path / "out", "~/another") == 1
    (*_, line) = capsys.readouterr().err.strip().splitlines()
    assert "4 of 4 items failed" in line
    assert "another" in line
    assert {entry["state"] for entry in entries(tmp_path / "out")} == {"failed"}


def test_a_full_disk_ends_the_run_and_what_is_done_is_kept(
    tmp_path: Path, nodes: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        (small / "other").write_bytes(b"x" * 40000)
        assert run(nodes, tmp_path / "p.txt", small / "out", "tiny:flux", count=16) == 1
        (*_, line) = capsys.readouterr().err.strip().splitlines()
        assert "the disk is full. Free some space and run again with --resume" in line
        assert [path.name for path in (small / "out").iterdir() if path.name.startswith(".unfinished")] == []
        done = sum(entry["state"] == "done" for entry in entries(small / "out"))
        assert done < 16
        (small / "other").unlink()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)

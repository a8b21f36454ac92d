"""What may be said of a cluster, and what is said where there is none; Ray is not needed for it, or not there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdiffusers import cli
from fastdiffusers.cluster import connection
from fastdiffusers.cluster.connection import ClusterError, connected, size
from fastdiffusers.cluster.settings import ClusterSettings, parse_cluster
from fastdiffusers.cluster.survey import Machine, as_text, differences
from fastdiffusers.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", ClusterSettings("local")),
        ("local:3", ClusterSettings("local", 3)),
        ("10.0.0.1:6379", ClusterSettings("10.0.0.1:6379")),
        ("node-1.example:1", ClusterSettings("node-1.example:1")),
        ("[::1]:6379", ClusterSettings("[::1]:6379")),
    ],
)
def test_a_cluster_by_its_name(text: str, expected: ClusterSettings) -> None:
    assert parse_cluster(text) == expected


@pytest.mark.parametrize(
    "text", ["", "auto", "local:0", "local:2000", "local:x", "host", "host:0", "host:99999", "a b:1", "ray://h:1", ":1"]
)
def test_what_names_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_cluster(text)
    assert "Use" in str(caught.value) or "Run" in str(caught.value)


@pytest.mark.parametrize("values", [{"cpus": 0}, {"patience": 0}, {"patience": float("nan")}])
def test_numbers_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        parse_cluster("local", **values)


def resources(**total: float) -> Any:
    return SimpleNamespace(cluster_resources=lambda: total)


def test_there_is_a_worker_per_card_or_per_share_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "own_threads", lambda: 8)
    cards = resources(GPU=4, CPU=64)
    assert size(cards, parse_cluster("local")) == (4, {"num_gpus": 1, "num_cpus": 0}, None)
    assert size(cards, parse_cluster("h:1", cpus=2)) == (4, {"num_gpus": 1, "num_cpus": 0}, 2)
    with pytest.raises(InputError, match="has 4 card"):
        size(cards, parse_cluster("local:5"))
    processor = resources(CPU=8)
    assert size(processor, parse_cluster("local")) == (1, {"num_cpus": 1}, 8)
    assert size(processor, parse_cluster("local", cpus=2)) == (4, {"num_cpus": 1}, 2)
    assert size(processor, parse_cluster("local:2")) == (2, {"num_cpus": 1}, 4)
    assert size(resources(CPU=24), parse_cluster("h:1", cpus=8)) == (3, {"num_cpus": 8}, 8)


def run(tmp_path: Path, *more: str) -> int:
    (tmp_path / "p.txt").write_text("a fox\n")
    words = ["generate", "--prompts", str(tmp_path / "p.txt"), "--model", "tiny:flux", "--quiet"]
    return cli.main([*words, "--output", str(tmp_path / "out"), *more])


def test_without_ray_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(tmp_path, "--cluster", "local") == 1
    assert capsys.readouterr().err == (
        "fastdiffusers generate: a cluster needs the package 'ray'. Install it with: pip install 'ray>=2.50'\n"
    )


def test_ray_is_imported_for_a_cluster_alone() -> None:
    code = "import json, sys, fastdiffusers.cluster.drive, fastdiffusers.cluster.fleet, fastdiffusers.commands.generate"
    heavy = "[m for m in ('ray', 'torch') if m in sys.modules]"
    ran = subprocess.run([sys.executable, "-c", f"{code}\nprint(json.dumps({heavy}))"], capture_output=True, check=True)
    assert json.loads(ran.stdout) == []


def test_options_of_a_cluster_go_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--cpus", "2") == 2
    assert "--cluster" in capsys.readouterr().err
    assert run(tmp_path, "--cluster", "local", "--device", "cuda:1") == 2
    assert "--device = 'cuda:1'" in capsys.readouterr().err
    words = ["generate", "--model", "tiny:flux", "--prompt", "x", "--output", str(tmp_path / "a.png")]
    assert cli.main([*words, "--cluster", "local"]) == 2
    assert "it goes with --prompts" in capsys.readouterr().err


def test_an_address_where_nothing_answers_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert run(tmp_path, "--cluster", f"127.0.0.1:{port}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing answers there" in line
    assert "ray start --head" in line


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (type("AuthenticationError", (Exception,), {})("invalid"), "~/.ray/auth_token"),
        (RuntimeError("Version mismatch: 2.50 and 2.60"), "Install the same Ray"),
        (ConnectionError("gone"), "cannot be used: gone"),
    ],
)
def test_what_ray_refuses_is_one_line_with_its_cure(
    error: Exception, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> None:
        raise error

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(connection, "ray_module", lambda: ray)
    with pytest.raises(ClusterError) as caught, connected(ClusterSettings()):
        pass
    assert cure in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_differs_between_machines_is_said_with_its_cure() -> None:
    alike = {"python": "3.11.7", "torch": "2.13.0"}
    machines = [
        Machine("a", 2, 16, alike),
        Machine("b", 1, 8, {**alike, "torch": "2.12.1"}, ("/models/flux",)),
        Machine("c", 1, 8, error="the pack is not installed there"),
    ]
    assert differences(machines) == [
        "c could not be asked: the pack is not installed there",
        "torch is 2.13.0 on a; 2.12.1 on b. Install one version everywhere: results may differ else",
        "/models/flux is missing on b. Copy it there, or mount the folder at the same path",
    ]
    assert differences(machines[:1] * 2) == []
    assert "nothing differs" in as_text(machines[:1] * 2)
    assert "a: 2 card(s), 16 processor core(s); python 3.11.7, torch 2.13.0" in as_text(machines)


def test_models_of_doctor_go_with_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--look-for", "/models/flux"]) == 2
    assert "it goes with --cluster" in capsys.readouterr().err


def test_being_told_to_end_is_not_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    fake = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setattr(connection, "ray_module", lambda: fake)
    before = signal.getsignal(signal.SIGTERM)
    with connection.connected(parse_cluster("local:1")):
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("count", ["-1", "0", "1.5", "x", "", "2000", "123456", "\u0663"])
def test_a_count_of_workers_that_is_none_is_said_to_be_that(count: str) -> None:
    with pytest.raises(InputError, match="how many workers, a whole number from 1 to 1024"):
        parse_cluster(f"local:{count}")

"""What the command line finds out about the machine, and how it says it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands import doctor, environment
from fastdiffusers.commands.paths import find_comfyui, find_comfyuis, is_comfyui, model_folders


def make_comfyui(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "folder_paths.py").write_text("")
    return folder


def test_a_named_comfyui_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, at_home = make_comfyui(tmp_path / "named"), make_comfyui(tmp_path / "home" / "comfy" / "ComfyUI")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert find_comfyui() == named.resolve()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    assert find_comfyui() is None
    monkeypatch.setenv("COMFYUI_PATH", "")
    assert find_comfyui() is None
    monkeypatch.delenv("COMFYUI_PATH")
    assert find_comfyui() in (at_home.resolve(), *filter(is_comfyui, Path(doctor.PACK).parents))


def test_the_makefile_finds_a_comfyui(tmp_path: Path) -> None:
    """By the file alone, in any Python; where that fails, make says so instead of leaving tests out."""
    text = (doctor.PACK / "Makefile").read_text()
    program = re.search("^FIND := (.*)$", text, re.MULTILINE)
    assert program is not None
    found = make_comfyui(tmp_path / "ComfyUI")
    command = [sys.executable, "-S", "-c", program[1]]
    done = subprocess.run(
        command, env={"COMFYUI_PATH": str(found)}, cwd=doctor.PACK, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (str(found.resolve()), "")


def test_every_comfyui_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    old, new, own = (make_comfyui(home / name) for name in ("comfy/ComfyUI-019", "comfy/ComfyUI-033", "ComfyUI"))
    (home / "comfy" / "ComfyUI").symlink_to(old)
    (home / "ComfyUI-notes").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    around = [folder for folder in find_comfyuis() if not folder.is_relative_to(home.resolve())]
    assert find_comfyuis() == [*around, old.resolve(), own.resolve(), new.resolve()]

    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join(map(str, (new, tmp_path / "nowhere", old, new))))
    assert find_comfyuis() == [new.resolve(), old.resolve()]
    assert find_comfyui() == new.resolve()


def test_only_existing_model_folders_are_named(tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "c")
    (comfyui / "models" / "SEEDVR2").mkdir(parents=True)
    assert model_folders(comfyui) == {"diffusers": [], "vae": [comfyui / "models" / "SEEDVR2"]}
    assert model_folders(None) == {"diffusers": [], "vae": []}


def test_versions_tell_installed_from_missing() -> None:
    versions = environment.package_versions()
    assert versions["torch"] == torch.__version__
    assert set(environment.PACKAGES) < set(versions)


def test_the_cpu_is_always_there_with_its_memory() -> None:
    cpu = environment.devices()[-1]
    assert cpu["device"] == "cpu"
    assert cpu["threads"] == torch.get_num_threads()
    if Path("/proc/meminfo").is_file():
        assert 0 < cpu["free_gib"] <= cpu["total_gib"]


@pytest.mark.parametrize(
    ("version", "torch_version", "text", "defect"),
    [
        (91002, "2.9.0", "9.10.2", True),
        (91400, "2.10.1+cu128", "9.14.0", True),
        (91500, "2.10.0", "9.15.0", False),
        (91001, "2.9.0", "9.10.1", False),
        (91002, "2.8.0", "9.10.2", False),
        (None, "2.13.0", "", False),
    ],
)
def test_the_cudnn_defect_goes_by_cudnns_version(
    version: int | None, torch_version: str, text: str, defect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: version is not None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setattr(torch, "__version__", torch_version)
    assert environment.cudnn() == {"version": text, "conv3d_memory_defect": defect}


def test_without_a_compiler_the_reason_names_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = environment.compiler("cpu")
    assert not found["works"]
    assert "install g++" in found["reason"]


def facts(**changes: Any) -> dict[str, Any]:
    """Facts of a machine about which there is nothing to say."""
    return {
        "versions": dict.fromkeys((*environment.PACKAGES, "fastdiffusers", "python"), "1.0"),
        "best_device": "cuda:0",
        "cudnn": {"version": "9.15.0", "conv3d_memory_defect": False},
        "torch_compile": {"works": True, "needs": "Triton", "reason": ""},
        "allocator": {"settings": "expandable_segments:True", "expandable_segments": True},
        "torchvision": "",
        **changes,
    }


@pytest.mark.parametrize(
    ("torch_version", "ends"),
    [
        ("2.13.0+cpu", " 'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu"),
        ("2.11.0+cu130", " 'torchvision==0.26.*' --index-url https://download.pytorch.org/whl/cu130"),
        ("2.10.0", " 'torchvision==0.25.*'"),
        ("2.14.0a0+git1234", " 'torchvision==0.29.*'"),
        ("3.0", " torchvision"),
    ],
)
def test_the_torchvision_that_belongs_to_a_torch(torch_version: str, ends: str) -> None:
    assert doctor.torchvision_command(torch_version) == f"pip install --force-reinstall --no-deps{ends}"


def test_advice_is_given_only_where_something_is_wrong() -> None:
    assert doctor.advice(facts()) == []
    for change, words in (
        ({"best_device": "cpu"}, "no accelerator"),
        ({"cudnn": {"version": "9.10.2", "conv3d_memory_defect": True}}, "9.15"),
        ({"torch_compile": {"works": False, "needs": "Triton", "reason": "Triton is missing"}}, "Triton is missing"),
        ({"allocator": {"settings": "", "expandable_segments": False}}, "PYTORCH_ALLOC_CONF"),
        ({"versions": {**facts()["versions"], "peft": ""}}, "peft is not installed"),
        ({"torchvision": "operator torchvision::nms does not exist"}, "does not belong to torch"),
    ):
        advice = doctor.advice(facts(**change))
        assert len(advice) == 1
        assert words in advice[0]


def test_doctor_prints_json_that_holds_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {
        *("versions", "system", "devices", "best_device", "attention", "torch_compile", "cudnn", "allocator"),
        *("torchvision", "paths", "session", "launch", "advice"),
    }
    assert printed["attention"]["sdpa"] == ""
    assert any(reason for reason in printed["attention"].values())


def test_doctor_prints_the_same_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for title in ("versions", "devices", "attention on", "torch.compile on", "cuDNN", "allocator", "paths", "advice"):
        assert f"\n{title}" in f"\n{text}"
    assert torch.__version__ in text

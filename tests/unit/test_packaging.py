"""What is said in two places is said alike: versions, requirements, packages, the registry's facts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fastdiffusers

PACK = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 to read pyproject.toml")
    return tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))


def test_one_version(project: dict[str, Any]) -> None:
    version = project["project"]["version"]
    assert version == fastdiffusers.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"## [{version}]" in (PACK / "CHANGELOG.md").read_text(encoding="utf-8")


def test_comfyui_users_and_pip_users_get_the_same_requirements(project: dict[str, Any]) -> None:
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line and not line.startswith("#")]
    assert sorted(required) == sorted(project["project"]["dependencies"])
    assert not [line for line in required if re.match(r"torch|numpy", line)], "torch and numpy are ComfyUI's own"


def test_every_folder_with_code_is_installed(project: dict[str, Any]) -> None:
    rooms = ("cluster", "commands", "comparison", "engines", "nodes", "pipelines", "optimizations", "vae")
    folders = {file.parent for room in rooms for file in (PACK / room).rglob("*.py")}
    packages = {".".join(("fastdiffusers", *folder.relative_to(PACK).parts)) for folder in folders}
    assert packages | {"fastdiffusers"} == set(project["tool"]["setuptools"]["packages"])


def test_the_registry_finds_what_it_wants(project: dict[str, Any]) -> None:
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"]
    assert project["project"]["urls"]["Repository"].startswith("https://")
    assert "comfyui" not in project["project"]["name"].lower()
    for picture in (comfy["Icon"], comfy["Banner"]):
        assert (PACK / "docs" / picture.rsplit("/", 1)[1]).is_file()


def test_nothing_that_runs_is_left_out_of_the_archive() -> None:
    ignored = (PACK / ".comfyignore").read_text(encoding="utf-8").split("\n")
    needed = {
        "cluster/",
        "commands/",
        "comparison/",
        "engines/",
        "nodes/",
        "pipelines/",
        "optimizations/",
        "vae/",
        "web/",
        "locales/",
        "example_workflows/",
    }
    assert not needed & set(ignored)
    assert "tests/" in ignored


def test_the_readme_names_quantizations_as_the_loader_does() -> None:
    from fastdiffusers.optimizations.quantization.schemes import SCHEMES

    text = (PACK / "README.md").read_text(encoding="utf-8")
    named = text[text.index("**Quantized models**") :].split("can be applied")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", named)) == set(SCHEMES)

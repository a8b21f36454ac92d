"""Every command that the texts print runs in every install that they describe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[3]
FOLDER = "ComfyUI-FastDiffusers"
PROGRAM = re.compile(
    rf"(?:python3? (?:-m fastdiffusers\S*|{FOLDER}|FOLDER|\.|\S+\.py)(?= |`|$)|fastdiffusers(?= [a-z]))[^`\n]*"
)
"""A command that runs something of this pack, up to the end of the line or of the quotation."""


def texts() -> list[Path]:
    """What people read: documents, help pages, and the sources for the help and errors that they print."""
    documents = [
        *PACK.glob("*.md"),
        *(PACK / "docs").glob("*.md"),
        *(PACK / "web").rglob("*.md"),
        *(PACK / ".github").rglob("*.yml"),
    ]
    rooms = ("nodes", "commands", "comparison", "pipelines", "optimizations", "vae", "benchmarks", "scripts")
    sources = [*PACK.glob("*.py"), *(file for room in rooms for file in (PACK / room).rglob("*.py"))]
    return sorted(documents) + sorted(sources)


def printed() -> dict[str, list[str]]:
    """Command -> the files that print it."""
    found: dict[str, list[str]] = {}
    for path in texts():
        text = path.read_text(encoding="utf-8")
        quoted = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^(python .*)$", text, re.MULTILINE)
        for piece in quoted:
            if match := PROGRAM.match(piece.strip()):
                found.setdefault(match.group(), []).append(path.relative_to(PACK).as_posix())
    return found


def first_words(command: str) -> list[str]:
    """The subcommand or module of a command, without its options; [] where it is left to the reader."""
    words = [word.strip(".,;:") for word in re.sub(r"^(python3? (-m )?)?\S+", "", command).split()]
    known = re.compile(r"[a-z]+(\.[a-z]\w*)?")
    return words[:1] if words and known.fullmatch(words[0]) else []


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The pack as `git clone` and requirements.txt leave it, under another name than the package's."""
    target = tmp_path / "custom_nodes" / FOLDER
    ignored = shutil.ignore_patterns(".*", "tests", "__pycache__", "*.jpg", "*.png", "results", "demo_output")
    shutil.copytree(PACK, target, ignore=ignored)
    # Recognisable, so that no other install can stand in for it.
    init = target / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "0.0.77"', init.read_text()))
    return target


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with what `pip install .` installs."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 to read pyproject.toml")
    project = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    for package in project["tool"]["setuptools"]["packages"]:
        parts = package.split(".")[1:]
        target = tmp_path / "site" / Path("fastdiffusers", *parts)
        target.mkdir(parents=True, exist_ok=True)
        for file in PACK.joinpath(*parts).glob("*.py"):
            shutil.copy(file, target)
    return tmp_path / "site"


def run(arguments: list[str], folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": path} if path else {}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_commands_are_found_in_the_texts() -> None:
    found = printed()
    assert {"README.md", "CONTRIBUTING.md", "docs/claims.md"} <= {file for files in found.values() for file in files}
    assert len(found) > 20


def test_no_text_names_what_only_an_editable_install_has() -> None:
    """Benchmarks and scripts are no part of the package that pip installs."""
    assert [command for command in printed() if re.match(r"python3? -m fastdiffusers\.", command)] == []


def test_every_printed_command_runs_in_a_clone(clone: Path) -> None:
    """Each with --help, in one process for all of them: importing torch takes seconds."""
    wanted = sorted({word for command in printed() for word in first_words(command)} - {"COMMAND"})
    assert {"generate", "doctor", "bench", "quantize", "benchmarks.overhead", "scripts.comfyui"} <= set(wanted)
    program = """
import contextlib, importlib, io, json, runpy, sys
folder, words = sys.argv[1], json.loads(sys.argv[2])
runpy.run_path(folder, run_name="clone")
main = sys.modules["fastdiffusers.__main__"].main
for word in words:
    sys.argv = [folder, word, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code
    assert not status and "usage: " in out.getvalue(), (word, status, out.getvalue())
"""
    files = {word: PACK.joinpath(*word.split(".")) for word in wanted if "." in word}
    files = {word: path / "__main__.py" if path.is_dir() else path.with_suffix(".py") for word, path in files.items()}
    assert [word for word, file in files.items() if not file.is_file()] == []
    asking = [word for word in wanted if word not in files or "argparse" in files[word].read_text()]
    done = run(["-c", program, str(clone), json.dumps(asking)], clone.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [[FOLDER], [f"{FOLDER}/__main__.py"]])
def test_the_folder_runs_as_it_is_from_beside_it(line: list[str], clone: Path) -> None:
    done = run([*line, "--version"], clone.parent)
    assert (done.returncode, done.stdout) == (0, "fastdiffusers 0.0.77\n")


def test_the_folder_runs_from_within_and_through_a_link(clone: Path, tmp_path: Path) -> None:
    assert run([".", "--version"], clone).stdout == "fastdiffusers 0.0.77\n"
    link = tmp_path / "a link"
    link.symlink_to(clone, target_is_directory=True)
    assert run([str(link), "--version"], tmp_path).stdout == "fastdiffusers 0.0.77\n"


def test_the_folders_own_rooms_hide_nobodys_modules(clone: Path) -> None:
    """`nodes` and `scripts` of the pack's folder are not to be found as top-level modules."""
    program = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(clone)!r})\n"
        f"runpy.run_path({str(clone)!r}, run_name='clone')\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('comparison') is None\n"
    )
    done = run(["-c", program], clone.parent)
    assert done.returncode == 0, done.stderr


def test_a_real_command_works_in_a_clone(clone: Path) -> None:
    done = run([FOLDER, "decode", "--model", "tiny:flux", "--latents", "no.latent", "--output", "x.png"], clone.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("fastdiffusers decode: --latents = 'no.latent': there is no such file")


def test_what_pip_installs_runs_every_subcommand_and_points_to_a_clone_for_the_rest(installed: Path) -> None:
    words = {word for command in printed() for word in first_words(command)}
    for word in sorted(word for word in words if "." not in word):
        done = run(["-m", "fastdiffusers", word, "--help"], installed.parent, str(installed))
        assert done.returncode == 0, done.stderr
    # Where these tests run, an editable install may offer the rest of the folder: as if it were not there.
    program = (
        "import sys\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
        "sys.argv = ['fastdiffusers', 'benchmarks.overhead', '--help']\n"
        "from fastdiffusers.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = run(["-c", program], installed.parent, str(installed))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "folder of a clone" in line


def test_the_program_that_pip_installs_is_there(installed: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 to read pyproject.toml")
    project = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    module, function = project["project"]["scripts"]["fastdiffusers"].split(":")
    program = f"import sys; sys.argv = ['fastdiffusers', 'doctor', '--help']; from {module} import {function} as f; f()"
    done = run(["-c", program], installed.parent, str(installed))
    assert done.returncode == 0, done.stderr
    assert "usage: fastdiffusers doctor" in done.stdout


def test_what_is_not_so_yet_is_not_said() -> None:
    text = (PACK / "README.md").read_text(encoding="utf-8") + (PACK / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "github.com/fastdiffusers" not in text
    assert "search for *FastDiffusers*" not in text

"""`doctor --launch`: the start script, its quoting, and that it replaces nobody's file."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastdiffusers import cli
from fastdiffusers.commands import doctor, environment
from fastdiffusers.commands.launch.advice import EXPANDABLE, Advice
from fastdiffusers.commands.launch.start_script import Start, as_bat, as_sh, is_own, known_flags, write
from fastdiffusers.errors import InputError

RESERVE = Advice("memory ran out: 3 GiB were asked for", ("--reserve-vram 4",))
PIECES = Advice("it lies in pieces", ("--disable-cuda-malloc",), (tuple(EXPANDABLE.split("=")),))  # type: ignore[arg-type]
REMARK = Advice("these extensions failed to load: A")
KNOWN = frozenset({"--reserve-vram", "--disable-cuda-malloc", "--cuda-malloc", "--cpu"})
START = Start("/usr/bin/python3", "/home/me/ComfyUI", (RESERVE, PIECES, REMARK), KNOWN)
ODD = [
    "Comfy UI",
    "100% Comfy",
    "it's",
    'a "b"',
    "$HOME `x` $(touch hacked)",
    "-dash",
    "a&b ^c; d",
    "ünï 漢",
    "new\nline",
]

FAKE_PYTHON = """#!{python}
import json, os, sys
print(json.dumps([os.getcwd(), sys.argv[1:], {{n: v for n, v in os.environ.items() if n.startswith("PYTORCH")}}]))
"""


@pytest.mark.parametrize("name", ODD)
def test_the_shell_script_runs_whatever_the_folders_are_called(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    python = folder / "py thon"
    python.write_text(FAKE_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    script = tmp_path / "start.sh"
    write(script, replace(START, python=str(python), comfyui=str(folder)), overwrite=False)
    done = subprocess.run([script, "--port", "1 2"], capture_output=True, text=True, cwd="/", check=True)
    where, arguments, variables = json.loads(done.stdout)
    assert where == str(folder)
    assert arguments == ["main.py", "--reserve-vram", "4", "--disable-cuda-malloc", "--port", "1 2"]
    assert variables["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert {path.name for path in tmp_path.iterdir()} == {name, "start.sh"}


def test_a_folder_that_is_gone_stops_the_script(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    write(script, replace(START, python=sys.executable, comfyui=str(tmp_path / "gone")), overwrite=False)
    assert subprocess.run([script], capture_output=True, check=False).returncode == 1


def test_the_batch_file_is_as_cmd_reads_it() -> None:
    start = replace(START, python=r"C:\100% Py thon\python.exe", comfyui=r"D:\Comfy & UI\it's")
    text = as_bat(start)
    assert text.count("\n") == text.count("\r\n") == len(text.splitlines())
    lines = text.split("\r\n")
    assert lines[0] == "@echo off"
    assert lines[1].startswith("rem written by fastdiffusers")
    assert 'set "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"' in lines
    folder = "D:\\Comfy & UI\\it's"
    assert f'if not exist "{folder}\\main.py" echo There is no main.py in "{folder}" & exit /b 1' in lines
    assert f'cd /d "{folder}"' in lines
    assert '"C:\\100%% Py thon\\python.exe" main.py --reserve-vram 4 --disable-cuda-malloc %*' in lines
    assert "chcp" not in text
    assert "chcp 65001 >nul" in as_bat(replace(START, comfyui="D:\\漢"))


@pytest.mark.parametrize("path", ['C:\\a "b"', "C:\\new\nline"])
def test_a_batch_file_does_not_name_what_windows_cannot(path: str) -> None:
    with pytest.raises(InputError, match="a batch file cannot name it"):
        as_bat(replace(START, comfyui=path))


def test_every_setting_stands_with_its_reason_and_what_is_none_is_a_remark() -> None:
    for text, comment in ((as_sh(START), "# "), (as_bat(START), "rem ")):
        assert f"{comment}--reserve-vram 4: memory ran out: 3 GiB were asked for" in text
        assert f"{comment}--disable-cuda-malloc, {EXPANDABLE}: it lies in pieces" in text
        assert f"{comment}remark: these extensions failed to load: A" in text
        assert "nothing has to be set" not in text
    assert "# nothing has to be set" in as_sh(replace(START, advice=(REMARK,)))


def test_no_text_from_a_log_becomes_a_command(tmp_path: Path) -> None:
    """Names of extensions are whatever somebody called a folder."""
    names = "evil\ntouch hacked\r\ntouch hacked & touch hacked %PATH% ^"
    start = replace(START, python="/bin/true", comfyui=str(tmp_path), advice=(Advice(names),))
    script = tmp_path / "start.sh"
    write(script, start, overwrite=False)
    subprocess.run([script], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["start.sh"]
    (line,) = [line for line in as_bat(start).split("\r\n") if "evil" in line]
    assert line == "rem remark: evil touch hacked touch hacked touch hacked PATH"


def test_what_this_comfyui_does_not_know_is_left_out_with_a_word() -> None:
    older = replace(START, known=frozenset({"--disable-cuda-malloc"}), advice=(RESERVE, PIECES))
    assert older.flags() == ["--disable-cuda-malloc"]
    assert "# left out, since this ComfyUI does not know it: --reserve-vram" in as_sh(older)
    none = replace(older, known=frozenset())
    assert (none.flags(), none.variables()) == ([], {})  # a variable goes with its flag


def test_flags_that_exclude_each_other_are_not_both_given() -> None:
    other = Advice("fragments", ("--cuda-malloc",))
    assert replace(START, advice=(PIECES, other)).flags() == ["--disable-cuda-malloc"]
    assert replace(START, advice=(other, PIECES, RESERVE)).flags() == ["--cuda-malloc", "--reserve-vram 4"]
    more = Advice("more", ("--reserve-vram 9",))
    assert replace(START, advice=(RESERVE, more)).flags() == ["--reserve-vram 4"]


@pytest.mark.parametrize("name", ["start.sh", "start.bat"])
def test_only_its_own_unchanged_file_is_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, START, overwrite=False)
    first = path.read_bytes()
    assert is_own(first.decode())
    write(path, replace(START, advice=()), overwrite=False)
    assert path.read_bytes() != first
    path.write_bytes(path.read_bytes() + b"echo mine\n")
    with pytest.raises(InputError, match="it was changed since it was written"):
        write(path, START, overwrite=False)
    path.write_text("echo mine\n")
    with pytest.raises(InputError, match="not doctor's"):
        write(path, START, overwrite=False)
    assert path.read_text() == "echo mine\n"
    write(path, START, overwrite=True)
    assert path.read_bytes() == first
    assert bool(path.stat().st_mode & stat.S_IXUSR) == (name == "start.sh")


def test_an_editor_that_changes_line_ends_changes_nothing(tmp_path: Path) -> None:
    assert is_own(as_bat(START).replace("\r\n", "\n"))
    assert not is_own(as_bat(START).replace("4", "5"))
    assert not is_own("")


def test_flags_are_read_from_comfyuis_source(tmp_path: Path) -> None:
    source = tmp_path / "comfy" / "cli_args.py"
    source.parent.mkdir()
    source.write_text(
        'g.add_argument("--reserve-vram", type=float)\nparser.add_argument(\n    \'--cpu\',\n)\n# "--no-flag"\n'
    )
    assert known_flags(str(tmp_path)) == {"--reserve-vram", "--cpu"}
    assert known_flags(str(tmp_path / "none")) == frozenset()


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "Comfy UI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text('add_argument("--cpu")\nadd_argument("--reserve-vram")')
    for name in ("main.py", "folder_paths.py"):
        (folder / name).touch()
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    return folder


def test_the_command_prints_the_script_and_writes_it(
    comfyui: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (comfyui / "user").mkdir()
    error = "Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.00 GiB is free."
    log = f"!!! Exception during processing !!! {error}\nGot an OOM, unloading all loaded models.\n"
    (comfyui / "user" / "comfyui_8190.log").write_text(log)
    device = {"device": "cpu", "name": "processor", "threads": 1}
    known = {"versions": {}, "devices": [device], "best_device": "cpu", "allocator": {"settings": ""}}
    known |= {"paths": doctor.paths()}

    def examined(logs: object) -> dict[str, object]:
        session = doctor.last_session(doctor.find_logs([comfyui]))[1]
        found = doctor.launch_advice(doctor.launch_facts(known, session))
        return {**known, "launch": [doctor.asdict(one) for one in found]}

    monkeypatch.setattr(doctor, "examine", examined)
    assert cli.main(["doctor", "--launch"]) == 0
    printed = capsys.readouterr().out
    assert f'exec {sys.executable} main.py --cpu --reserve-vram 3 "$@"' in printed
    assert f"cd -- '{comfyui.resolve()}' || exit 1" in printed
    assert cli.main(["doctor", "--launch", str(tmp_path / "start.sh")]) == 0
    assert (tmp_path / "start.sh").read_text() == printed
    assert capsys.readouterr().out == f"written: {tmp_path / 'start.sh'}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--launch", "start.txt"], "it must be a file name ending in .sh or .bat"),
        (["--launch", "none/start.sh"], "its folder does not exist"),
        (["--launch", "--json"], "Leave out --json"),
        (["--overwrite"], "Name the script"),
        (["--launch", "--overwrite"], "Name the script"),
        (["--log", "none.log"], "there is no such file"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    words: str,
    comfyui: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "examine", lambda logs: {"paths": doctor.paths(), "launch": []})
    assert cli.main(["doctor", *arguments]) == cli.BAD_INPUT
    assert words in capsys.readouterr().err


def test_without_a_comfyui_there_is_nothing_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda logs: {"paths": {"comfyui": ""}, "launch": []})
    assert cli.main(["doctor", "--launch"]) == cli.BAD_INPUT
    assert "Set COMFYUI_PATH" in capsys.readouterr().err


def test_what_comfyui_requires_and_this_python_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch\nno-such-package-of-any-name>=1\n# a comment\n\npytest~=9.0\n")
    assert environment.missing_requirements(tmp_path) == ["no-such-package-of-any-name"]
    assert environment.missing_requirements(tmp_path / "nowhere") == []

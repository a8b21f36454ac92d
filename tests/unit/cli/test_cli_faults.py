"""What a shell can do to a command: signals, other locales, odd paths and texts. One line each, nothing left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import pytest

from fastdiffusers import cli
from fastdiffusers.commands.options import DTYPES, path_argument, written_text
from fastdiffusers.errors import InputError
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.devices import dtype_name

PACK = Path(__file__).resolve().parents[3]

LISTENING = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
"""Started by nohup, the tests ignore a closed terminal, and the processes that they start inherit that."""
SLOW_COPY = """
import os, sys, time
from pathlib import Path
from fastdiffusers import cli
from fastdiffusers.pipelines.loading.partial_folder import complete_or_absent

class Slow:
    HELP = "fills a folder and waits"
    def add_arguments(self, parser): pass
    def run(self, args):
        with complete_or_absent(Path(sys.argv[1])) as partial:
            (partial / "weights").write_bytes(bytes(1000))
            print("begun", flush=True)
            time.sleep(60)

cli.COMMANDS["slow"] = Slow()
sys.exit(cli.main(["slow"]))
"""


def started(program: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_like_ctrl_c_and_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    process = started(LISTENING + SLOW_COPY, str(tmp_path / "copy"))
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.CANCELLED
    assert err == "fastdiffusers slow: cancelled\n"
    assert list(tmp_path.iterdir()) == []


def test_a_closed_terminal_leaves_nothing_behind(tmp_path: Path) -> None:
    """The terminal goes, and with it stderr: saying "cancelled" must not end in another error."""
    controller, terminal = os.openpty()
    program = "import os, fcntl, termios\nos.setsid()\nfcntl.ioctl(2, termios.TIOCSCTTY, 0)\n" + LISTENING + SLOW_COPY
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "copy")], stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    os.close(terminal)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.close(controller)
    assert process.wait(timeout=60) == cli.CANCELLED
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_in_a_stream_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would try again at its end, and end with a status of its own."""

    class Closed(io.StringIO):
        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, Closed())
    assert cli._complain("", "cancelled", cli.CANCELLED) == cli.CANCELLED
    sys.stdout.flush()
    sys.stderr.flush()


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """nohup: a closed terminal does not stop the run."""
    program = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW_COPY
    process = started(program, str(tmp_path / "copy"))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=60) == cli.CANCELLED


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals as Windows has them")
def test_a_signal_that_comes_where_nothing_can_be_raised_stops_all_the_same() -> None:
    class Held: ...

    kept, seen = [Held()], []

    def gone(_: object) -> None:  # what is raised in here is dropped by Python
        seen.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    def command() -> None:
        with cli.stopped_like_ctrl_c():
            kept.clear()
            for _ in range(6000):
                time.sleep(0.01)

    watching = weakref.ref(kept[0], gone)
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        command()
    assert seen == [True]
    assert watching() is None
    assert sys.unraisablehook is hook


def test_signals_are_as_they_were_after_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    assert cli.main(["--version"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


@pytest.mark.parametrize("place", ["fastdiffusers.commands.generate", "fastdiffusers.cli", "argparse"])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(place: str) -> None:
    program = f"""
        import sys
        class Interrupting:
            def find_spec(self, name, path=None, target=None):
                if name == {place!r}:
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupting())
        sys.modules.pop({place!r}, None)
        sys.argv = ["fastdiffusers", "doctor", "--help"]
        from fastdiffusers.__main__ import main
        sys.exit(main())
        """
    process = started(program)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.CANCELLED
    assert err == "fastdiffusers: cancelled\n"


@pytest.mark.parametrize("place", ["build_parser", "OneLineParser.parse_args"])
def test_ctrl_c_while_arguments_are_read_is_no_traceback(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    owner, _, name = place.rpartition(".")
    monkeypatch.setattr(getattr(cli, owner) if owner else cli, name, interrupted)
    assert cli.main(["doctor"]) == cli.CANCELLED
    assert capsys.readouterr().err == "fastdiffusers: cancelled\n"


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}],
    ids=["C", "C without UTF-8", "ascii output"],
)
def test_a_prompt_of_any_letters_arrives_in_any_locale(locale: dict[str, str]) -> None:
    program = """
        import sys
        from fastdiffusers import cli
        from fastdiffusers.commands import generate
        def run(args):
            request = generate.sample_request(args, decode=True)
            print(ascii(request.prompt), ascii(request.negative_prompt))
            print(request.prompt)
        generate.run = run
        sys.exit(cli.main(["generate", "--model", "tiny:flux", "--output", "x.png", *sys.argv[1:]]))
        """
    prompt, negative = "a fox \N{FOX FACE}", "模型"
    process = started(program, "--prompt", prompt, "--negative-prompt", negative, env={**os.environ, **locale})
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines()[0] == f"{prompt!a} {negative!a}"


@pytest.mark.parametrize("text", ["a\ud800", "a\udfffb", "a\0b", "\udc80\udc81"])
def test_what_is_no_text_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        written_text("prompt", text)
    assert caught.value.name == "prompt"
    str(caught.value).encode()


def test_the_home_of_somebody_who_is_not_there_is_an_ordinary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output = "~nobody-of-that-name/x.png"
    assert cli.main(["generate", "--model", "tiny:flux", "--prompt", "x", "--output", output]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "its folder does not exist" in line
    vae = ["--vae", "~nobody-of-that-name/x.safetensors", "--frames", "x.png", "--output", "x.safetensors"]
    assert cli.main(["encode", *vae]) == cli.BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert path_argument("~") == Path.home()


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("fp32", "float32"),
        ("FP16", "float16"),
        ("bf16", "bfloat16"),
        ("half", "float16"),
        ("torch.bfloat16", "bfloat16"),
        ("auto", "auto"),
        ("float32", "float32"),
    ],
)
def test_dtypes_may_be_named_shortly(short: str, name: str) -> None:
    assert dtype_name(short) == name
    parser = cli.build_parser()
    for line in (
        ["generate", "--model", "x", "--prompt", "x", "--output", "x"],
        ["decode", "--model", "x", "--latents", "x", "--output", "x"],
        ["encode", "--vae", "x", "--frames", "x", "--output", "x"],
        ["bench", "--model", "x"],
    ):
        assert parser.parse_args([*line, "--dtype", short]).dtype == name
    if name in DTYPES and name != "auto":
        key = loader.resolve("tiny:flux", dtype=short, component_dtypes={"vae": short}, device="cpu")
        assert (key.dtype, dict(key.component_dtypes)) == (name, {"vae": name})
        assert parser.parse_args(["demo", "--dtype", short]).dtype == name


def test_a_dtype_of_another_name_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--dtype", "fp99"]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in DTYPES)

"""Exit statuses and the one line that goes with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from fastdiffusers import cli
from fastdiffusers.errors import FastDiffusersError, InputError, MissingDependencyError, ModelFileError


class Fake:
    """A subcommand that does what a test says."""

    HELP = "for tests"

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int)

    def run(self, args: argparse.Namespace) -> None:
        self.action()


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("width", 0, "it must be positive", "use 64"), 2),
        (ModelFileError("model", "x", "there is no such folder"), 2),
        (MissingDependencyError("sdnq", "quantization"), 1),
        (FastDiffusersError("could not"), 1),
        (RuntimeError("two\nlines"), 1),
        (MemoryError("out of memory"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_becomes_a_status_and_one_line(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "fake", Fake(raising(error)))
    assert cli.main(["fake"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastdiffusers fake: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_the_line_names_input_value_reason_and_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = InputError("width", 0, "it must be a multiple of 16", "use 1024")
    monkeypatch.setitem(cli.COMMANDS, "fake", Fake(raising(error)))
    cli.main(["fake"])
    assert capsys.readouterr().err == "fastdiffusers fake: width = 0: it must be a multiple of 16. Use 1024.\n"


def test_verbose_adds_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "fake", Fake(raising(RuntimeError("why"))))
    assert cli.main(["fake", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_success_is_zero_and_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "fake", Fake(lambda: None))
    assert cli.main(["fake"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["fake", "--number", "x"], ["fake", "--unknown"], ["generate", "--model", "x", "--output", "y"]],
)
def test_a_usage_error_is_bad_input_in_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "fake", Fake(lambda: None))
    assert cli.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_version_and_help_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert cli.main(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, command in cli.COMMANDS.items():
        assert name in out
        assert command.HELP in out

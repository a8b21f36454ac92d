"""The progress bar is for terminals: elsewhere there is nothing but results."""

from __future__ import annotations

import io
import sys

import pytest

from fastdiffusers.callbacks import Progress
from fastdiffusers.commands.prompts.progress import MOST_LINES, QueueProgress
from fastdiffusers.commands.terminal import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def draw(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, quiet: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with TerminalProgress(quiet) as callbacks:
        callbacks.tick("load", 1, 1)
        for step in range(1, 5):
            callbacks.tick("denoise", step, 4, f"sigma {step}")
    return stream.getvalue()


def test_a_terminal_shows_each_stage_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = draw(Terminal(), monkeypatch)
    assert "load: 100%" in shown
    assert "denoise:  50%" in shown
    assert "denoise: 100%" in shown
    assert "sigma 4" in shown
    assert shown.endswith("\n")


def test_a_pipe_and_quiet_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw(io.StringIO(), monkeypatch) == ""
    assert draw(Terminal(), monkeypatch, quiet=True) == ""


def test_the_bar_is_closed_when_the_run_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def cancelled_run() -> None:
        with TerminalProgress() as callbacks:
            callbacks.tick("denoise", 1, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cancelled_run()
    assert terminal.getvalue().endswith("\n")


def queue(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, quiet: bool = False) -> str:
    """Two workers with an item each, of which one ends and another takes its line."""
    monkeypatch.setattr(sys, "stderr", stream)
    with QueueProgress(12, 4, quiet) as progress:
        progress.working("host/1", "00005", Progress("denoise", 3, 20))
        progress.working("host/2", "00006", Progress("load", 0, 1))
        progress.finished("00005", "made")
        progress.gone("host/1")
        progress.working("host/3", "00007", None)
        bars = len(progress._bars)
        for number in range(4, 4 + 2 * MOST_LINES):
            progress.working(f"host/{number}", "00008", None)
        assert (bars, len(progress._bars)) == ((3, 1 + MOST_LINES) if stream.isatty() and not quiet else (0, 0))
    return stream.getvalue()


def test_a_file_of_prompts_has_one_bar_and_a_line_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = queue(Terminal(), monkeypatch)
    assert "items:  42%" in shown, "five of twelve"
    for line in ("host/1  00005  denoise 3/20", "host/2  00006  load 0/1", "host/3  00007"):
        assert line in shown
    assert queue(io.StringIO(), monkeypatch) == ""
    assert queue(Terminal(), monkeypatch, quiet=True) == ""

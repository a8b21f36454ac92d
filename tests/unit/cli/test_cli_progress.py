"""The progress bar is for terminals: elsewhere there is nothing but results."""

from __future__ import annotations

import io
import sys

import pytest

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

"""Progress bars, previews and texts that fail: the run goes on; a cancel does not."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiffusers.callbacks import Progress
from fastdiffusers.errors import InputError
from fastdiffusers.report import OptimizationRecord, OptimizationReport


@pytest.fixture
def bridge(core: Any) -> Any:
    from fastdiffusers.nodes.host import comfy_bridge

    return comfy_bridge


class _Broken:
    """Stands in for whatever shows something."""

    def __init__(self, *_args: Any) -> None:
        self.calls = 0

    def fail(self, *_args: Any, **_options: Any) -> None:
        self.calls += 1
        raise ValueError("the display is broken")

    update_absolute = send_progress_text = decode_latent_to_preview_image = fail


def _ticks(bridge: Any) -> list[Progress]:
    """Six ticks of two stages, each with a preview, through one node's callbacks."""
    latent = torch.zeros(4, 8, 8)
    ticks = [Progress(stage, done, 3, "", latent, "SDXL") for stage in ("denoise", "decode") for done in (1, 2, 3)]
    progress = bridge.NodeProgress("7")
    for tick in ticks:
        progress.callbacks.on_progress(tick)
    progress.show_report("a node", OptimizationReport())
    return ticks


@pytest.mark.parametrize("broken", ["progress bar", "preview", "previewer", "text"])
def test_what_cannot_be_shown_is_logged_and_dropped(
    bridge: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    display, shown = _Broken(), []
    bar = SimpleNamespace(update_absolute=lambda done, total, preview: shown.append(done))
    server = SimpleNamespace(send_progress_text=lambda text, node: shown.append(text))
    monkeypatch.setattr(bridge.comfy.utils, "ProgressBar", lambda total: display if broken == "progress bar" else bar)
    monkeypatch.setattr(bridge.PromptServer, "instance", display if broken == "text" else server, raising=False)
    previewer = display.fail if broken == "previewer" else lambda *_args: display if broken == "preview" else None
    monkeypatch.setattr(bridge.latent_preview, "get_previewer", previewer)
    with caplog.at_level(logging.WARNING):
        ticks = _ticks(bridge)
    assert display.calls >= 1
    assert len([record for record in caplog.records if "cannot be shown" in record.message]) == 1
    others = [tick.done for tick in ticks] if broken != "progress bar" else []
    assert [value for value in shown if isinstance(value, int)] == others
    assert any(isinstance(value, str) for value in shown) == (broken != "text")


def test_a_cancel_that_the_progress_bar_raises_travels(bridge: Any, core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's own hook of the progress bar asks for a cancel."""
    interrupt = core.model_management.InterruptProcessingException

    def hook(*_args: Any, **_options: Any) -> None:
        raise interrupt

    monkeypatch.setattr(bridge.comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(interrupt):
        bridge.NodeProgress(None).callbacks.on_progress(Progress("denoise", 1, 3))


def test_a_closed_terminal_travels(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bridge.comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(KeyboardInterrupt):
        bridge.NodeProgress(None).callbacks.on_progress(Progress("denoise", 1, 3))


def test_the_node_shows_the_summary_and_the_console_one_line(
    bridge: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[str] = []
    server = SimpleNamespace(send_progress_text=lambda text, node: shown.append(text))
    monkeypatch.setattr(bridge.PromptServer, "instance", server, raising=False)
    record = OptimizationRecord("attention", "sage", "sdpa", "it is not installed", failed=True)
    report = OptimizationReport([record], facts={"seconds": {"decode": 2.0}})
    with caplog.at_level(logging.INFO, logger="fastdiffusers.run"):
        bridge.NodeProgress("7").show_report("Diffusers Sampler", report)
    (line,) = [record.getMessage() for record in caplog.records]
    assert [part.strip() for part in shown[0].splitlines()] == report.summary()
    assert line.startswith("FastDiffusers, Diffusers Sampler: attention sdpa | ")
    assert line.endswith("attention sage declined (it is not installed) | decode 2.00 s")


def test_a_run_that_fails_says_on_the_node_when_where_and_why(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    server = SimpleNamespace(send_progress_text=lambda text, node: shown.append(text))
    monkeypatch.setattr(bridge.PromptServer, "instance", server, raising=False)
    error = InputError("width", 0, "it must be a multiple of 16", "set it to 1024")
    progress = bridge.NodeProgress("7")
    progress.callbacks.on_progress(Progress("denoise", 1, 3))
    with pytest.raises(InputError), progress.running():
        raise error
    first, why = shown[-1].splitlines()
    assert re.fullmatch(r"failed at \d\d:\d\d:\d\d, in denoise 1/3", first.strip())
    assert why == str(error)

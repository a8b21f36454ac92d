"""ComfyUI's side of the engine's callbacks: progress, previews, cancelling, and how much memory is free."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod
from comfy.latent_formats import LatentFormat
from server import PromptServer

from ...cache_folder import use_folder
from ...callbacks import Callbacks, Progress
from ...errors import FastDiffusersError
from ...fallback import describe
from ...memory import MemoryState
from ...report import log_run

if TYPE_CHECKING:
    from ...report import OptimizationReport

log = logging.getLogger(__name__)

LINE_BREAK = "  \n"
"""The editor takes a node's text as it is, or, with its newer nodes, as Markdown: two spaces keep the break there."""
TEXT_INTERVAL = 0.2
"""Seconds between two progress texts of one stage: a text is a websocket message, and a fast stage has many ticks."""


def device_choices() -> list[str]:
    """ "auto" and every device that this machine has."""
    devices = ["auto", "cpu"]
    devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    devices += [f"xpu:{index}" for index in range(torch.xpu.device_count())] if hasattr(torch, "xpu") else []
    return devices


def device_name(choice: str) -> str:
    """Return the device to load on. "auto" is ComfyUI's own, as `--cpu` and `--cuda-device` set it."""
    return str(comfy.model_management.get_torch_device()) if choice == "auto" else choice


def keep_measurements_with_the_user() -> None:
    """Keep measurements in ComfyUI's user folder, beside workflows and settings."""
    use_folder(Path(folder_paths.get_user_directory()) / "fastdiffusers")


def memory_state(device: torch.device) -> MemoryState:
    """Return free and total bytes as ComfyUI counts them (blocks that torch holds but does not use are free)."""
    free = int(comfy.model_management.get_free_memory(device))
    return MemoryState(free=free, total=int(comfy.model_management.get_total_memory(device)))


def check_interrupted() -> None:
    """Raise ComfyUI's own interrupt exception when the user has pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def is_cancel(error: BaseException) -> bool:
    """Return whether an error is a cancel: ComfyUI's interrupt, or one that is not an `Exception` (Ctrl-C)."""
    return not isinstance(error, Exception) or isinstance(error, comfy.model_management.InterruptProcessingException)


class NodeProgress:
    """Shows one execution of one node: its bar, its latent preview and one line of text under its widgets.

    What cannot be shown costs nothing but the display: a preview, a bar or a text that raises is logged once and left
    out. A cancel travels: ComfyUI raises it from its progress bar too.

    Args:
        node_id: the node's `hidden.unique_id`; None shows no text (a node that runs without a graph).
    """

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._stage = ""
        self._reached = ""
        self._bar: Any = None
        self._text_time = 0.0
        self._preview_format: Any = None
        self._previewer: Any = None
        self._failed: set[str] = set()

    @property
    def callbacks(self) -> Callbacks:
        """Return the callbacks for the engine."""
        shown = latent_preview.args.preview_method != LatentPreviewMethod.NoPreviews
        return Callbacks(on_progress=self._show, check_cancel=check_interrupted, previews=shown)

    @contextmanager
    def running(self) -> Iterator[Callbacks]:
        """Give the callbacks for a run in the block. How it was cancelled or failed is then said on the node."""
        try:
            yield self.callbacks
        except BaseException as error:
            at = datetime.datetime.now().strftime("%H:%M:%S")
            where = f", in {self._reached}" if self._reached else ""
            if is_cancel(error):
                self.show_text(f"cancelled at {at}{where}")
            else:
                why = str(error) if isinstance(error, FastDiffusersError) else describe(error)
                self.show_text(f"failed at {at}{where}{LINE_BREAK}{why}")
            raise

    def show_report(self, node: str, report: OptimizationReport) -> None:
        """Show a summary of what was active on the node, and one line of it on the console.

        Args:
            node: its display name.
        """
        log_run(f"FastDiffusers, {node}", report)
        with self._display("report"):
            self.show_text(LINE_BREAK.join(summary_lines(report)))

    def show_text(self, text: str) -> None:
        """Put `text` under the node's widgets in the browser."""
        with self._display("text"):
            server = getattr(PromptServer, "instance", None)
            if server is not None and self._node_id is not None:
                server.send_progress_text(text, self._node_id)

    @contextmanager
    def _display(self, what: str) -> Iterator[None]:
        """Drop errors of the code inside, which shows `what`; log the first with its traceback."""
        try:
            yield
        except Exception as error:
            if is_cancel(error):
                raise
            if what not in self._failed:
                log.warning("the %s of this node cannot be shown: %s", what, error, exc_info=True)
            self._failed.add(what)

    def _show(self, progress: Progress) -> None:
        new_stage = progress.stage != self._stage
        self._stage = progress.stage
        preview = None
        if "preview" not in self._failed:
            with self._display("preview"):
                preview = self._preview(progress)
        with self._display("progress bar"):
            if new_stage or self._bar is None:
                self._bar = comfy.utils.ProgressBar(progress.total)
            self._bar.update_absolute(progress.done, progress.total, preview)
        detail = f": {progress.message}" if progress.message else ""
        self._reached = f"{progress.stage} {progress.done}/{progress.total}{detail}"
        now = time.monotonic()
        if new_stage or now - self._text_time >= TEXT_INTERVAL:
            self._text_time = now
            self.show_text(self._reached)

    def _preview(self, progress: Progress) -> tuple[str, Any, int] | None:
        """Return the denoised estimate as an image of ComfyUI's previewer for that latent format, None without one."""
        if progress.preview_latent is None:
            return None
        if self._preview_format is None:
            self._preview_format = getattr(comfy.latent_formats, progress.preview_format or "", LatentFormat)()
            device = comfy.model_management.get_torch_device()
            self._previewer = latent_preview.get_previewer(device, self._preview_format)
        if self._previewer is None:
            return None
        latent = self._preview_format.process_in(progress.preview_latent[None].float())
        image: tuple[str, Any, int] = self._previewer.decode_latent_to_preview_image("JPEG", latent)
        return image


def summary_lines(report: OptimizationReport) -> Iterator[str]:
    """Yield the lines of a report that fit on a node."""
    yield from report.summary()

"""What the engine tells whoever started it, and how it is told to stop. A leaf: it imports nothing from the pack.

The engine never knows who shows the progress: a ComfyUI node, a terminal or a test hands in a `Callbacks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Progress:
    """One tick of progress.

    Attributes:
        stage: what is running: "load", "text encode", "compile", "denoise", "decode", "encode", ...
        done: units finished, 0..total.
        total: units in this stage (steps, tiles, slices, files), >= 1.
        message: one short line for a person, or "".
        preview_latent: denoised estimate in ComfyUI's latent convention, [C, H, W] or [C, T, H, W], or None.
        preview_format: which convention that is, as the family's `comfy_format` names it ("Flux", "Wan21"), or "".
        step_seconds: of a denoising run, seconds of every step so far, without the time spent in these callbacks. The
            newest follows one step later where asking for it would wait for the device; at the end all are there.
    """

    stage: str
    done: int
    total: int
    message: str = ""
    preview_latent: torch.Tensor | None = None
    preview_format: str = ""
    step_seconds: tuple[float, ...] = ()


def _ignore(progress: Progress) -> None:
    return None


def _never_cancel() -> None:
    return None


@dataclass(frozen=True)
class Callbacks:
    """Plain functions handed in from above.

    Attributes:
        on_progress: called after every unit of work.
        check_cancel: called between units of work; it stops the run by raising. Whatever it raises (ComfyUI's own
            interrupt exception, KeyboardInterrupt) travels to the caller unchanged: the engine never catches it.
        previews: whether `on_progress` has a use for `preview_latent`, which costs a few small operations per step.
    """

    on_progress: Callable[[Progress], None] = _ignore
    check_cancel: Callable[[], None] = _never_cancel
    previews: bool = True

    def tick(
        self,
        stage: str,
        done: int,
        total: int,
        message: str = "",
        preview_latent: torch.Tensor | None = None,
        preview_format: str = "",
        step_seconds: tuple[float, ...] = (),
    ) -> None:
        """Report progress, then give the caller the chance to stop the run."""
        self.on_progress(Progress(stage, done, total, message, preview_latent, preview_format, step_seconds))
        self.check_cancel()


SILENT = Callbacks(previews=False)

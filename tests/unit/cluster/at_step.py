"""Callbacks of a run that is watched, and cut in on."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastdiffusers.callbacks import Callbacks, Progress


class Cancelled(BaseException):
    """What ComfyUI's interrupt is here."""


class AtStep:
    """Callbacks that do something once, at the given step of the batch; `cancel` raises from then on.

    With the stage "decode", at so many tiles.
    """

    def __init__(
        self,
        step: int,
        act: Callable[[str], None] = lambda message: None,
        cancel: bool = False,
        stage: str = "denoise",
    ) -> None:
        self.stage = stage
        self.seen: list[Progress] = []
        self.acted_at = 0.0
        self._step, self._act, self._cancel = step, act, cancel

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        if not self.acted_at and progress.stage == self.stage and progress.done >= self._step:
            self.acted_at = time.monotonic()
            self._act(progress.message)

    def check(self) -> None:
        if self._cancel and self.acted_at:
            raise Cancelled

    @property
    def callbacks(self) -> Callbacks:
        return Callbacks(self, self.check)

"""The network of one of ComfyUI's VAE objects while this pack runs it: with progress, cancelling and streamed clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import core_streaming

if TYPE_CHECKING:
    import torch

    from ...callbacks import Callbacks


class Observer(Protocol):
    """The run that is told. Attributes: data, all of its batch; stage, its name in progress."""

    data: torch.Tensor
    stage: str
    callbacks: Callbacks

    def streamed_frames(self, batch: torch.Tensor) -> int:
        """Frames of the clip if it is to leave the card run by run, else 0."""


class ObservedNetwork:
    """A VAE's network that asks for a cancel before each batch and reports it afterwards; all else is the network's."""

    def __init__(self, network: Any, job: Observer) -> None:
        self._network, self._job, self._done = network, job, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def decode(self, batch: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        frames = self._job.streamed_frames(batch)
        if not frames or args or options:
            return self._observe(self._network.decode, batch, *args, **options)
        items, total = batch.shape[0], self._job.data.shape[0] * frames
        before = self._done * frames
        told = lambda made: self._job.callbacks.tick(self._job.stage, before + items * made, total)
        result = core_streaming.decode(self._network, batch, frames, told)
        self._done += items
        return result

    def encode(self, batch: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return self._observe(self._network.encode, batch, *args, **options)

    def _observe(
        self, run: Callable[..., torch.Tensor], batch: torch.Tensor, *args: Any, **options: Any
    ) -> torch.Tensor:
        self._job.callbacks.check_cancel()
        result = run(batch, *args, **options)
        self._done += batch.shape[0]
        total = self._job.data.shape[0]
        self._job.callbacks.tick(self._job.stage, min(self._done, total), total)
        return result

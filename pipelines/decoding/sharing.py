"""The tiles of one decode made by several processes: what a group of them is to a decode. None is started here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

MakeTile = Callable[[], "torch.Tensor"]
"""Makes one tile, on the CPU."""


class TileSharing(Protocol):
    """A member of a group whose every member decodes the same at the same time.

    Attributes:
        leads: whether this one has the result. The others help.
    """

    leads: bool

    def made(self, vae: Any, latents: torch.Tensor, tiles: Sequence[MakeTile]) -> Generator[torch.Tensor, None, None]:
        """The leader's: all tiles in their order, its own among them, each the same as `tiles` makes it here.

        Args:
            vae: its numbers for tiles go to the others.
            latents: as `vae.decode` takes them; they go to the others.
            tiles: what makes each. Close the iterator when not all are taken.
        """
        ...

    def declined(self, reason: str) -> None:
        """The leader's: the others can go, and why."""
        ...

    def over(self) -> None:
        """The leader's: the others can go if they have not."""
        ...

    def help(self, vae: Any, tiles_of: Callable[[torch.Tensor], Sequence[MakeTile]]) -> None:
        """The others': make tiles until the leader needs no more.

        Args:
            vae: it has the leader's numbers for tiles meanwhile.
            tiles_of: what makes each tile of latents, which are on the CPU.
        """
        ...

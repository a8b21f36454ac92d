"""The tiles of a decode, made by all processes of a group: each makes one in every round, and the first has them all.

A process in which the memory does not suffice for a tile makes none any more, and its tile is made in the next round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import torch

from ...fallback import is_out_of_memory
from ...memory import release_cache
from ...optimizations.vae_tiles import values_of, write_values
from ...pipelines.decoding.sharing import MakeTile
from ...report import OptimizationRecord
from ..worker import Stopped

DECODE = "parallel_decode"
"""Of the record in a report."""
MADE, NO_MEMORY, ENDED = range(3)
"""What became of a process's part in a round."""


class Members(Protocol):
    """What this needs of a `Group`."""

    rank: int
    size: int
    device: torch.device

    def told(self, content: bytes) -> bytes: ...

    def gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]: ...

    def send(self, tensor: torch.Tensor) -> None: ...

    def received(self, member: int, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor: ...


class SharedTiles:
    """A `TileSharing` of one run. Every member has one, and the first leads.

    Attributes:
        leads: see there.
        counts: tiles that each member has made, in the leader.
        reason: why the leader decodes alone, or "".
        short: members whose memory did not suffice.
        used: whether there was a decode.
    """

    def __init__(self, members: Members) -> None:
        self.leads = members.rank == 0
        self.counts = [0] * members.size
        self.reason = ""
        self.short: list[int] = []
        self.used = False
        self._members = members
        self._over = False

    def declined(self, reason: str) -> None:
        if not self._over:
            self.reason = reason
        self.over()

    def over(self) -> None:
        self.used = True
        if not self._over:
            self._over = True
            self._members.told(b"")

    def record(self, devices: Sequence[str], alike: bool) -> OptimizationRecord | None:
        """What became of it, for the leader's report; None where nothing was decoded.

        Args:
            devices: of the members.
            alike: whether all of them compute alike, bit for bit.
        """
        if not self.used:
            return None
        if self.reason:
            return OptimizationRecord(DECODE, "auto", "off", f"the first process decodes alone: {self.reason}")
        makers = sum(1 for count in self.counts if count)
        kind = "processes" if devices[0] == "cpu" else "cards"
        told = [f"{', '.join(map(str, self.counts))} each, and each is the one that one process makes"]
        if not alike:
            told = [f"{', '.join(map(str, self.counts))} each, by cards that are not alike and may round differently"]
        told += [f"the memory of process {member + 1} ({devices[member]}) was short" for member in self.short]
        return OptimizationRecord(DECODE, "auto", f"{sum(self.counts)} tiles over {makers} {kind}", "; ".join(told))

    def made(self, vae: Any, latents: torch.Tensor, tiles: Sequence[MakeTile]) -> Generator[torch.Tensor, None, None]:
        if self._over:  # the others were let go: it was to be decoded as a whole, for which the memory was short
            for make in tiles:
                yield make()
            return
        own = latents.detach().cpu().contiguous()
        head = {"tiling": values_of(vae), "shape": list(own.shape), "dtype": str(own.dtype).removeprefix("torch.")}
        self._members.told(json.dumps(head).encode())
        self._members.told(own.reshape(-1).view(torch.uint8).numpy().tobytes())
        self.counts = [0] * self._members.size
        rounds = _Rounds(self._members, tiles)
        found: dict[int, torch.Tensor] = {}
        try:
            for number in range(len(tiles)):
                while number not in found:
                    found |= rounds.make()
                yield found.pop(number)
        finally:
            self.counts, self.short = rounds.counts, rounds.short
            rounds.end()

    def help(self, vae: Any, tiles_of: Callable[[torch.Tensor], Sequence[MakeTile]]) -> None:
        before = values_of(vae)
        try:
            while head := self._members.told(b""):
                asked = json.loads(head)
                content = bytearray(self._members.told(b""))
                latents = torch.frombuffer(content, dtype=getattr(torch, asked["dtype"])).reshape(asked["shape"])
                write_values(vae, asked["tiling"])
                rounds = _Rounds(self._members, tiles_of(latents))
                while rounds.left:
                    rounds.make()
        finally:
            write_values(vae, before)


class _Rounds:
    """All rounds of one decode, which every member goes through alike.

    Attributes:
        left: the tiles that are still to be made; none once it has ended early.
        counts: tiles that each member has made.
        short: members whose memory did not suffice.
    """

    def __init__(self, members: Members, tiles: Sequence[MakeTile]) -> None:
        self.left = list(range(len(tiles)))
        self.counts = [0] * members.size
        self.short: list[int] = []
        self._members, self._tiles = members, tiles
        self._failure: BaseException | None = None

    def make(self) -> dict[int, torch.Tensor]:
        """Make a round. Returns, in the leader, the tiles that it brought, by their numbers.

        Raises:
            BaseException: what the leader's tile ended with; in another member, what has to end its process.
            Stopped: another member was told to stop.
        """
        rank, left = self._members.rank, self.left
        able = [member for member in range(self._members.size) if member not in self.short]
        mine = dict(zip(able, left, strict=False))
        own, outcome = self._own(mine.get(rank))
        self.left = []  # where the others do not answer, there are no more rounds
        shape = own.shape if own is not None else (0,) * 5
        marks = self._members.gathered(torch.tensor([outcome, *shape], dtype=torch.int64))
        if any(int(mark[0]) == ENDED for mark in marks):
            if rank == 0:
                raise self._failure or Stopped
            return {}
        short = [member for member in mine if int(marks[member][0]) == NO_MEMORY]
        done = {member: tile for member, tile in mine.items() if member not in short}
        self.short += short
        self.left = [tile for tile in left if tile not in done.values()]
        for member in done:
            self.counts[member] += 1
        if rank:
            if own is not None:
                self._members.send(own)
            return {}
        assert own is not None  # noqa: S101 - the leader makes a tile in every round
        received = {
            tile: self._members.received(member, own, marks[member][1:].tolist())
            for member, tile in done.items()
            if member
        }
        return {mine[0]: own} | received

    def end(self) -> None:
        """The leader's: no more rounds."""
        if self.left:
            self.left = []
            self._members.gathered(torch.tensor([ENDED, *(0,) * 5]))

    def _own(self, tile: int | None) -> tuple[torch.Tensor | None, int]:
        """This member's tile, if there is one for it, and what became of it."""
        if tile is None:
            return None, MADE
        try:
            return self._tiles[tile](), MADE
        except BaseException as error:
            short = is_out_of_memory(error)
            if self._members.rank == 0:
                self._failure = error
                return None, ENDED
            # Another error than these ends this process, and with it all of them.
            if not short and not isinstance(error, Stopped):
                raise
        # Outside the except block: the error holds the frames of the failed decode, and they hold its tensors.
        release_cache(self._members.device)
        return None, NO_MEMORY if short else ENDED

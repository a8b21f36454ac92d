"""The members of a `Group`, which threads of one process play."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Members:
    """So many members, each in a thread of its own."""

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self._meet = threading.Barrier(size, timeout=60)
        self._said: list[Any] = [None] * size
        self.sent: list[list[torch.Tensor]] = [[] for _ in range(size)]

    def exchanged(self, rank: int, value: Any) -> list[Any]:
        self._said[rank] = value
        self._meet.wait()
        said = list(self._said)
        self._meet.wait()
        return said

    def run(self, act: Callable[[Any], Any]) -> list[Any]:
        """What `act` gives for each member, or the error that it raises."""
        results: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            try:
                results[rank] = act(Member(self, rank))
            except BaseException as error:  # noqa: BLE001 - handed over
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class Member:
    def __init__(self, members: Members, rank: int) -> None:
        self._members, self.rank, self.size = members, rank, members.size
        self.device = torch.device("cpu")

    def most(self, value: float) -> float:
        return max(self._members.exchanged(self.rank, value))

    def gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return self._members.exchanged(self.rank, tensor)

    def told(self, content: bytes) -> bytes:
        return self._members.exchanged(self.rank, content)[0]

    def send(self, tensor: torch.Tensor) -> None:
        self._members.sent[self.rank].append(tensor)

    def received(self, member: int, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        while not self._members.sent[member]:
            threading.Event().wait(0.001)
        found = self._members.sent[member].pop(0)
        assert (found.dtype, list(found.shape)) == (like.dtype, list(shape))
        return found

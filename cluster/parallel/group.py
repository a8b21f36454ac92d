"""The processes that make one picture together, as each of them sees the others: torch.distributed, on one machine."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

RENDEZVOUS = "ranks"
"""The file in the folder of the processes by which they find each other: no port is taken."""
WAIT = timedelta(minutes=30)
"""How long one waits for another: the slowest load of a model. One that has ended is noticed otherwise, at once."""


class Group:
    """A member of the group.

    Args:
        folder: that all of them share.
        rank: which of them this is, from 0.
        size: how many there are, >= 2.
        cards: whether each has a card, `cuda:rank`; else they are on the processor.

    Attributes:
        alike: whether all members have the same kind of card.
    """

    def __init__(self, folder: Path, rank: int, size: int, cards: bool) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cuda", rank) if cards else torch.device("cpu")
        if sys.platform.startswith("linux"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it asks for the address of the host's name
        if cards:
            torch.cuda.set_device(self.device)
        store = distributed.FileStore(str(folder / RENDEZVOUS), size)
        backend = "cpu:gloo,cuda:nccl" if cards else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)
        self.mesh: Any = distributed.device_mesh.init_device_mesh(
            self.device.type, (1, size), mesh_dim_names=("ring", "ulysses")
        )

        kind = zlib.crc32(torch.cuda.get_device_name(self.device).encode()) if cards else 0
        self.alike = self.most(kind) == -self.most(-kind)

    def most(self, value: float) -> float:
        """The largest of the values that the members give, the same for all; waits for all of them."""
        found = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return float(found)

    def gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that the members give, all of one shape and type, in their order."""
        own = tensor.contiguous().reshape(-1).view(torch.uint8)  # not every type travels as itself
        every = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(every, own)
        return [each.view(tensor.dtype).reshape(tensor.shape) for each in every]

    def told(self, content: bytes) -> bytes:
        """What the first member says, to all; the others' content is not read."""
        size = torch.tensor([len(content)])
        distributed.broadcast(size, 0)
        held = bytearray(content if self.rank == 0 else int(size))
        if held:
            distributed.broadcast(torch.frombuffer(held, dtype=torch.uint8), 0)
        return bytes(held)

    def every(self, text: str) -> list[str]:
        """What each of the members says, in their order."""
        own = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        sizes = [int(size) for size in self.gathered(torch.tensor([len(own)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(own)] = own
        said = zip(self.gathered(padded), sizes, strict=True)
        return [bytes(each[:size].tolist()).decode() for each, size in said]

    def send(self, tensor: torch.Tensor) -> None:
        """Give the first member a tensor on the processor."""
        distributed.send(tensor.contiguous().reshape(-1).view(torch.uint8), 0)

    def received(self, member: int, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """What a member sends to this one, the first, as a tensor of a shape and of the type of `like`."""
        found = torch.empty(tuple(shape), dtype=like.dtype)
        distributed.recv(found.reshape(-1).view(torch.uint8), member)
        return found

    @property
    def names(self) -> list[str]:
        """The devices of the members."""
        return [f"cuda:{rank}" if self.device.type == "cuda" else "cpu" for rank in range(self.size)]

"""Which components a process of a group has on its card, looked up where their weights are."""

from __future__ import annotations

from itertools import chain
from typing import Any

from ...memory import gib
from ...optimizations.components import modules
from ...optimizations.offload import mode_of


def held(pipeline: Any) -> str:
    """Where the weights of a pipeline are now, component by component: "cuda:0: transformer 22.17 GiB, vae 0.16 GiB".

    What a memory mode brings to the card in its turn is in main memory between the runs, and said to be.
    """
    places: dict[str, dict[str, int]] = {}
    for name, part in modules(pipeline).items():
        for tensor in {id(each): each for each in chain(part.parameters(), part.buffers())}.values():
            place = places.setdefault(str(tensor.device), {})
            place[name] = place.get(name, 0) + tensor.nbytes
    mode = mode_of(pipeline)
    told = [
        f"{place if place != 'cpu' or mode == 'gpu' else f'main memory, {mode}'}: "
        + ", ".join(f"{name} {gib(size)}" for name, size in held.items())
        for place, held in places.items()
    ]
    return " and ".join(told)

"""The bytes that a launch of a Triton kernel moves, seen under Triton's interpreter with addresses for data.

That takes a process where TRITON_INTERPRET=1: `moved` starts `python . benchmarks.kernel_traffic` as one, which reads
launches as JSON from its input and writes what they move to its output.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from .card_trace import Launch, Place
from .kernel_launches import SPACE, Pointer, from_json, kernel_of, to_json

SECTOR = 32
"""Bytes that a card reads or writes at the least."""
SMALL = 1 << 20
"""Tensors up to so many bytes (weights, statistics) stay in the card's cache: they are read once."""
SAMPLE = 12
"""Programs of a launch that are looked at."""


def moved(launches: list[Launch]) -> list[dict[str, int]]:
    """What each launch moves, found in a process of its own where Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, str(root), "benchmarks.kernel_traffic"]
    given = json.dumps([to_json(launch) for launch in launches])
    ran = subprocess.run(command, input=given, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, int]] = json.loads(ran.stdout.splitlines()[-1])
    return found


class Traffic:
    """Stands in for the card's memory under the interpreter: keeps what is touched, and gives zeros.

    What one program touches twice counts once: its second reading comes from the cache. So does what its neighbours
    touched, at the edges of the runs that they read.
    """

    def __init__(self, launch: Launch) -> None:
        self._bytes = {value.storage: value.nbytes for value in launch.arguments.values() if isinstance(value, Place)}
        self._program: defaultdict[tuple[int, str], list[Any]] = defaultdict(list)
        self._all: defaultdict[tuple[int, str], list[Any]] = defaultdict(list)
        self.sectors: Counter[tuple[int, str]] = Counter()
        """Sectors that programs touched, each by itself, by tensor and way ("ld", "st")."""
        self.items: dict[tuple[int, str], int] = {}
        """Bytes of an element."""

    def touch(self, way: str, pointers: Any, mask: Any, item: int) -> None:
        """Look at one access. Raises IndexError where it leaves its tensor."""
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        if not addresses.size:
            return
        [storage] = {int(addresses.min()) // SPACE - 1, int(addresses.max()) // SPACE - 1}
        offsets = addresses - (storage + 1) * SPACE
        if storage not in self._bytes or offsets.min() < 0 or offsets.max() + item > self._bytes[storage]:
            raise IndexError(f"bytes {offsets.min()} to {offsets.max() + item} of tensor {storage} are touched")
        self._program[storage, way].append(offsets.ravel())
        self.items[storage, way] = item

    def end_program(self) -> None:
        """What comes now is another program's."""
        for key, offsets in self._program.items():
            touched = np.unique(np.concatenate(offsets))
            self.sectors[key] += len(np.unique(touched // SECTOR))
            self._all[key].append(touched)
        self._program.clear()

    def seen(self, key: tuple[int, str]) -> tuple[int, int, int]:
        """Elements that programs touched of a tensor, how many of them are different ones, in how many sectors."""
        touched = np.concatenate(self._all[key])
        different = np.unique(touched)
        return len(touched), len(different), len(np.unique(different // SECTOR))


def sample(launch: Launch) -> list[tuple[int, int, int]]:
    """Programs that stand for all: some rows of cells, of each as many neighbours as there are, up to `SAMPLE`."""
    grid = (*launch.grid, 1, 1)[:3]
    if math.prod(grid) <= 2 * SAMPLE:
        return list(product(range(grid[0]), range(grid[1]), range(grid[2])))
    chance, pieces = random.Random(0), launch.arguments.get("pieces", 1)
    rows, run = grid[0] // pieces, min(pieces, SAMPLE)
    total = rows * grid[1] * grid[2]
    chosen = [divmod(index, rows) for index in chance.sample(range(total), min(total, max(2, SAMPLE // run)))]
    return [(row * pieces + piece, *divmod(rest, grid[2])) for rest, row in chosen for piece in range(run)]


def least(launch: Launch) -> dict[tuple[int, str], int]:
    """Bytes of each tensor that a launch has to read ("ld") or write ("st") at the least."""
    given = launch.arguments
    found: dict[tuple[int, str], int] = {}

    def region(name: str) -> int:
        place = given[name]
        return math.prod(place.shape) * place.dtype.itemsize

    reads = {"_sum_parts": ["x"], "_merge_parts": ["means", "deviations"]}.get(launch.kernel, ["x"])
    flags = {"added": "residual", "bias": "biased", "input_bias": "input_biased", "out": "add"}
    reads += [name for name, flag in flags.items() if given.get(flag)]
    reads += [name for name in ("weight", "mean", "rstd") if name in given]
    reads += ["bias"] if launch.module == "triton_group_norm" and launch.kernel == "_normalise" else []
    for name in reads:
        found[given[name].storage, "ld"] = found.get((given[name].storage, "ld"), 0) + region(name)
    writes = {
        "_sum_parts": ["means", "deviations"],
        "_merge_parts": ["mean_out", "deviations_out", "rstd_out"],
    }.get(launch.kernel, ["out"])
    for name in writes:
        found[given[name].storage, "st"] = found.get((given[name].storage, "st"), 0) + region(name)
    if "out" in given:  # with what surrounds it
        out = given["out"]
        batch, channels, frames, height, width = out.shape
        if launch.kernel == "_shuffle":
            height += given["top"] + given["bottom"]
        elif given["left"] or given["right"] or given["top"]:
            height = launch.grid[0] // given["pieces"]
        width += given["left"] + given["right"]
        frames += given.get("front", 0)
        found[out.storage, "st"] = batch * channels * frames * height * width * out.dtype.itemsize
    return found


def interpreted(launch: Launch) -> dict[str, int]:
    """Run some programs of a launch without data.

    Returns:
        "least": bytes to read and write at the least. "moved": those in whole sectors, as the programs that ran touch
        them. "moved_alone": the same if no program found in the cache what its neighbour read. "programs": that ran.

    Raises:
        IndexError: a program leaves its tensors. ValueError: two programs touch the same element of a large one.
    """
    from triton.runtime import interpreter

    traffic, programs = Traffic(launch), sample(launch)
    builder, kernel = interpreter.interpreter_builder, kernel_of(launch)
    given = {name: Pointer(value) if isinstance(value, Place) else value for name, value in launch.arguments.items()}
    set_size, set_place = builder.set_grid_dim, builder.set_grid_idx

    class Programs(interpreter.GridExecutor):
        """Nothing is copied from a card or back."""

        def _init_args_hst(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
            return args, kwargs

        def _restore_args_dev(self, *given: Any) -> None:
            pass

    def load(pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        kind = pointers.get_element_ty()
        numbers = np.zeros(pointers.data.shape, interpreter._get_np_dtype(kind))
        traffic.touch("ld", pointers, mask, numbers.itemsize)
        return interpreter.TensorHandle(numbers, kind)

    def save(pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
        traffic.touch("st", pointers, mask, value.data.itemsize)

    def begin(index: int, *_: int) -> None:
        traffic.end_program()
        set_place(*programs[index])

    stand_ins: dict[str, Any] = {
        "create_masked_load": load,
        "create_masked_store": save,
        "set_grid_dim": lambda *_: set_size(*(*launch.grid, 1, 1)[:3]),
        "set_grid_idx": begin,
    }
    with patch.multiple(builder, **stand_ins):
        Programs(kernel.rewrite(), kernel.arg_names, (len(programs), 1, 1))(**given)
    traffic.end_program()
    needed, together, alone = least(launch), 0.0, 0.0
    for key, size in needed.items():
        touched, different, sectors = traffic.seen(key)
        if size > SMALL and touched != different:
            raise ValueError(f"{touched - different} elements of tensor {key} are touched by two programs")
        share = size * SECTOR / traffic.items[key]
        together += share * sectors / different
        alone += share * (sectors / different if size <= SMALL else traffic.sectors[key] / touched)
    found = {"least": sum(needed.values()), "moved": round(together), "moved_alone": round(alone)}
    return found | {"programs": len(programs)}


def main(lines: Iterable[str]) -> None:
    found = [interpreted(from_json(data)) for data in json.loads("".join(lines))]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.stdin)

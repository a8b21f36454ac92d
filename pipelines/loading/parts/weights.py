"""The weights of a part, in as little memory as they take: in their file where it has the type that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....safetensors_header import read_header
from . import gguf, layouts

if TYPE_CHECKING:
    import torch

    from .header import Part


def _nothing(done: int) -> None:
    return None


def read_weights(
    part: Part, dtype: torch.dtype, keep_fp8: bool = False, told: Callable[[int], None] = _nothing
) -> dict[str, torch.Tensor]:
    """The weights of a part on the CPU, in its own type, those with a scale multiplied by it and rounded to `dtype`,
    those in blocks or integers written out in it.

    What has `dtype` already, and fp8 that is kept, is mapped from the file. What the caller will convert is read into
    memory of its own, so that each tensor goes when its converted one comes, where pages of the file would stay.

    Args:
        told: called with the bytes of the file that are read, after each tensor; it may raise to stop.
    """
    import torch
    from safetensors import safe_open

    if part.is_gguf:
        named = {part.name_in_file(key): key for key in part.shapes}
        read = gguf.read_gguf_weights(part.path, {name: part.shapes[key] for name, key in named.items()})
        return {named[name]: value for name, value in read.items()}
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    types |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U8": torch.uint8, "I8": torch.int8}
    entries = read_header(part.path)
    weights: dict[str, torch.Tensor] = {}
    copied = {}
    with safe_open(part.path, framework="pt") as file:
        for key in part.shapes:
            entry = entries[part.name_in_file(key)]
            kind = types[entry["dtype"]]
            if kind == dtype or (keep_fp8 and kind.itemsize == 1 and key not in {*part.scales, *part.layouts}):
                weights[key] = file.get_tensor(part.name_in_file(key))
            else:
                copied[key] = (entry, kind)
        scales = {key: file.get_tensor(part.name_in_file(scale)).float() for key, scale in part.scales.items()}
    end = max(entry["data_offsets"][1] for entry in entries.values())
    mapped = sum(value.nbytes for value in weights.values())
    _read_copies(part.path, part.path.stat().st_size - end, copied, weights, lambda done: told(mapped + done))
    if part.layouts:
        with safe_open(part.path, framework="pt") as file:
            for key, entry in part.layouts.items():
                weights[key] = layouts.write_out(
                    part.path, key, weights[key], entry, lambda name: file.get_tensor(part.name_in_file(name)), dtype
                )
    for key, scale in scales.items():
        weights[key] = weights[key].to(torch.float32).mul_(scale).to(dtype)
    return {key: weights.pop(key) for key in part.shapes}


def _read_copies(
    path: Path,
    start: int,
    wanted: Mapping[str, tuple[Any, torch.dtype]],
    weights: dict[str, torch.Tensor],
    told: Callable[[int], None],
) -> None:
    """Read tensors of a file into memory of their own.

    Args:
        start: where the offsets count from: the header ends there, and the tensors fill the rest of the file.
    """
    import torch

    read = 0
    with path.open("rb", buffering=0) as file:
        for key, (entry, kind) in wanted.items():
            begin, end = entry["data_offsets"]
            tensor = torch.empty(end - begin, dtype=torch.uint8)
            bytes_of: Any = tensor.numpy()
            view, done = memoryview(bytes_of), 0
            file.seek(start + begin)
            while done < end - begin:
                count = file.readinto(view[done:])
                if not count:
                    raise OSError(f"{path.name} ended while it was read")
                done += count
            weights[key] = tensor.view(kind).view(tuple(entry["shape"]))
            read += done
            told(read)

"""ComfyUI's log: found by itself, and read as 0.19 and 0.33 write it."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from fastdiffusers.commands.launch.comfyui_log import (
    OutOfMemory,
    PartialLoad,
    SessionLog,
    find_logs,
    last_session,
    read_log,
)

MIB, GIB = 2**20, 2**30
STARTED = """
** ComfyUI startup time: 2026-11-20 10:00:00.000
Total VRAM 24210 MB, total RAM 64235 MB
pytorch version: 2.9.1+cu130
xformers version: 0.0.33
Set vram state to: NORMAL_VRAM
Device: cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync
Using async weight offloading with 2 streams
Enabled pinned memory 28905
Using xformers attention
Python version: 3.12.3 (main, Aug 14 2025, 17:47:21) [GCC 13.3.0]
ComfyUI version: 0.19.3
ComfyUI frontend version: 1.42.8
comfy-aimdo version: 0.1.2
"""
RAN = """
got prompt
Requested to load WanTEModel
loaded completely; 21342.80 MB usable, 6419.48 MB loaded, full load: True
Requested to load WAN21
loaded partially; 11329.26 MB usable, 11329.25 MB loaded, 2299.82 MB offloaded, 52.50 MB buffer reserved, \
lowvram patches: 0
Unloaded partially: 812.25 MB freed, 10517.00 MB remains loaded, 52.50 MB buffer reserved, lowvram patches: 400
Requested to load WAN21
Requested to load WanVAE
loaded partially; 900.00 MB loaded, 100.00 MB offloaded, 8.00 MB buffer reserved, lowvram patches: 0
Warning: Ran out of memory when regular VAE decoding, retrying with tiled VAE decoding.
Prompt executed in 134.20 seconds
"""
NATIVE_ERROR = (
    "CUDA out of memory. Tried to allocate 2.54 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.20 GiB is free."
    " Including non-PyTorch memory, this process has 22.40 GiB memory in use. Of the allocated memory 17.50 GiB is "
    "allocated by PyTorch, and 4.25 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
    "large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
ASYNC_ERROR = """Allocation on device 0 would exceed allowed memory. (out of memory)
Currently allocated     : 21.03 GiB
Requested               : 2.50 GiB
Device limit            : 23.64 GiB
Free (according to CUDA): 512.00 MiB
PyTorch limit (set by user-supplied memory fraction)
                        : 17179869184.00 GiB"""


def failed(error: str, summary: str = "") -> str:
    """What ComfyUI writes when a run ends so."""
    return (
        f"!!! Exception during processing !!! {error}\nTraceback (most recent call last):\n"
        f'  File "execution.py", line 524, in execute\ntorch.OutOfMemoryError: {error}\n\n'
        f"Memory summary: {summary}\nGot an OOM, unloading all loaded models.\nPrompt executed in 12.00 seconds\n"
    )


def memory_summary(allocated: int, reserved: int) -> str:
    """torch's own text for an allocator that holds this much."""
    sizes = {"allocated_bytes": allocated, "active_bytes": allocated, "requested_bytes": allocated}
    sizes |= {"reserved_bytes": reserved, "inactive_split_bytes": reserved - allocated}
    sizes |= dict.fromkeys(("allocation", "active", "segment", "inactive_split"), 1000)
    moments = ("current", "peak", "allocated", "freed")
    stats = {f"{k}.{p}.{m}": n for k, n in sizes.items() for p in ("all", "large_pool", "small_pool") for m in moments}
    stats |= {f"oversize_{kind}.{moment}": 0 for kind in ("allocations", "segments") for moment in moments}
    stats |= {"num_ooms": 1, "num_alloc_retries": 1}
    with patch.object(torch.cuda.memory, "memory_stats", lambda device: stats):
        return torch.cuda.memory.memory_summary(0)


def stamped(text: str) -> str:
    """As ComfyUI's manager writes it into its file."""
    return "".join(f"[2026-11-20 10:00:01.123] {line}\n" for line in text.splitlines())


def coloured(text: str) -> str:
    """As 0.33 writes it on the console."""
    return "".join(f"\x1b[32m[INFO]\x1b[0m {line}\n" for line in text.splitlines())


def filed(text: str) -> str:
    """As 0.33 writes it into a file that --verbose names."""
    return "".join(f"[2026-11-20 10:00:01,123] [INFO] {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("written", [str, stamped, coloured, filed, lambda text: text.replace("\n", "\r\n")])
def test_a_session_is_read_whatever_stands_around_its_lines(written: type[str]) -> None:
    log = read_log(written(STARTED + RAN))
    assert (log.vram_state, log.allocator, log.attention) == ("NORMAL_VRAM", "cudaMallocAsync", "xformers")
    versions = {"ComfyUI": "0.19.3", "pytorch": "2.9.1+cu130", "xformers": "0.0.33", "Python": "3.12.3"}
    assert dict(log.versions) == versions | {"comfy-aimdo": "0.1.2"}
    assert log.runs == 1
    assert log.partial_loads == (
        PartialLoad(int(11329.25 * MIB), int(2299.82 * MIB), "WAN21"),
        PartialLoad(900 * MIB, 100 * MIB),  # one of two that were asked for
    )
    assert log.unloads == (int(812.25 * MIB),)
    assert log.memory_errors == (OutOfMemory(where="VAE decoding"),)


def test_what_dynamic_memory_pages_in_is_read() -> None:
    """0.33 on a card: no model is loaded "partially" there."""
    line = "Model WAN21 prepared for dynamic VRAM loading. 27258MB Staged. 0 patches attached.\n"
    log = read_log(STARTED + "DynamicVRAM support detected and enabled\ngot prompt\n" + line)
    assert (log.dynamic, log.staged) == (True, (("WAN21", 27258 * MIB),))
    assert not read_log(STARTED + RAN).dynamic


def test_memory_that_ran_out_is_read_as_each_allocator_puts_it() -> None:
    (native,) = read_log(STARTED + failed(NATIVE_ERROR)).memory_errors
    assert native == OutOfMemory(int(2.54 * GIB), int(1.20 * GIB), int(17.5 * GIB), int(17.5 * GIB) + int(4.25 * GIB))
    (asynchronous,) = read_log(STARTED + failed(ASYNC_ERROR)).memory_errors
    assert asynchronous == OutOfMemory(int(2.5 * GIB), 512 * MIB, int(21.03 * GIB), 0)


def test_torchs_own_summary_tells_what_is_held_and_what_is_used() -> None:
    summary = memory_summary(15 * GIB, 22 * GIB)
    (error,) = read_log(STARTED + failed("Allocation on device", "\n" + summary)).memory_errors
    assert (error.allocated, error.reserved, error.asked) == (15 * GIB, 22 * GIB, 0)
    (stamped_error,) = read_log(stamped(STARTED + failed(NATIVE_ERROR, summary))).memory_errors
    assert (stamped_error.allocated, stamped_error.reserved) == (15 * GIB, 22 * GIB)


def test_an_exception_that_is_no_lack_of_memory_is_none() -> None:
    other = "!!! Exception during processing !!! mat1 and mat2 shapes differ\nPrompt executed in 1.00 seconds\n"
    assert read_log(STARTED + other + RAN).memory_errors == (OutOfMemory(where="VAE decoding"),)
    both = read_log(STARTED + other + RAN + failed(NATIVE_ERROR)).memory_errors
    assert [error.where for error in both] == ["VAE decoding", ""]


def test_logs_are_found_in_every_comfyui_newest_first(tmp_path: Path) -> None:
    names = ["a/user/comfyui.log", "a/user/comfyui.prev.log", "a/user/comfyui_8190.log"]
    names += ["b/user/comfyui_8190.prev2.log", "b/comfyui.log"]
    others = ["a/user/comfyui.log.bak", "a/user/other.log", "b/comfyui_x.log"]
    for age, name in enumerate([*names, *others]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STARTED)
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "b" / "user" / "comfyui.log").mkdir()  # a folder of that name is none
    found = find_logs([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert found == [tmp_path / name for name in names]


def test_a_session_that_ran_something_counts_before_one_that_was_only_started(tmp_path: Path) -> None:
    new, old = tmp_path / "comfyui.log", tmp_path / "comfyui.prev.log"
    new.write_text(STARTED)
    old.write_text(STARTED + RAN)
    assert last_session([new, old]) == (old, read_log(STARTED + RAN))
    assert last_session([tmp_path / "gone.log", new]) == (new, read_log(STARTED))
    assert last_session([]) == (None, SessionLog())

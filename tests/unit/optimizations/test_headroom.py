"""What is free, and the one sum that decides whether something fits."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastdiffusers import memory
from fastdiffusers.memory import GIB, MemoryState, Need, device_memory, gib, shortage


def test_what_fits_is_no_shortage():
    assert shortage(MemoryState(3 * GIB, 4 * GIB), [Need("of weights", 2 * GIB)], keep=GIB) == ""
    assert shortage(MemoryState(0, 4 * GIB), []) == ""


def test_a_shortage_gives_every_figure():
    needs = [Need("of weights", 2 * GIB), Need("of nothing", 0), Need("for code", GIB // 2)]
    text = shortage(MemoryState(3 * GIB, 24 * GIB), needs, keep=GIB)
    expected = "2.00 GiB of weights + 0.50 GiB for code + 1.00 GiB to stay free, and 3.00 GiB of 24.00 GiB are free"
    assert text == f"it needs {expected}"


def test_sizes_as_text():
    assert gib(1.5 * GIB) == "1.50 GiB"
    assert gib(0) == "0.00 GiB"
    assert gib(GIB / 1000) == "0.001 GiB"


def test_main_memory_is_plausible():
    state = device_memory(torch.device("cpu"))
    assert 0 < state.free <= state.total
    assert state.total > GIB // 4


def test_main_memory_without_proc(monkeypatch):
    real = device_memory(torch.device("cpu"))
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    with_psutil = device_memory(torch.device("cpu"))
    assert with_psutil.total == pytest.approx(real.total, rel=0.01)
    importing = builtins.__import__

    def without_psutil(name, *args, **kwargs):
        if name == "psutil":
            raise ImportError
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_psutil)
    without = device_memory(torch.device("cpu"))
    assert without.total == pytest.approx(real.total, rel=0.01)
    assert without.free == without.total // 2


@pytest.mark.parametrize(
    ("limit", "used"), [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")]
)
def test_a_container_has_no_more_than_its_limit(limit, used, monkeypatch, tmp_path):
    """As docker and kubernetes set it, for every computation on the CPU; cached files are not in the way."""
    system = device_memory(torch.device("cpu"))
    for name, text in {
        limit: str(GIB),
        used: str(GIB // 2),
        "memory.stat": f"anon {GIB // 4}\ninactive_file {GIB // 8}\nactive_file {GIB // 8}\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CONTROL_GROUPS", ((tmp_path / "none", limit, used), (tmp_path, limit, used)))
    assert system.total > GIB
    assert device_memory(torch.device("cpu")) == MemoryState(3 * GIB // 4, GIB)
    (tmp_path / limit).write_text("max")
    assert device_memory(torch.device("cpu")).total == system.total


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_blocks_that_torch_holds_without_using_them_are_free(kind, monkeypatch):
    module = SimpleNamespace(
        mem_get_info=lambda device: (2 * GIB, 24 * GIB),
        memory_reserved=lambda device: 5 * GIB,
        memory_allocated=lambda device: 4 * GIB,
    )
    monkeypatch.setattr(memory.torch, kind, module)
    assert device_memory(torch.device(kind)) == MemoryState(3 * GIB, 24 * GIB)


def test_memory_that_is_shared_with_the_system(monkeypatch):
    module = SimpleNamespace(recommended_max_memory=lambda: 16 * GIB, driver_allocated_memory=lambda: 6 * GIB)
    monkeypatch.setattr(memory.torch, "mps", module)
    assert device_memory(torch.device("mps")) == MemoryState(10 * GIB, 16 * GIB)

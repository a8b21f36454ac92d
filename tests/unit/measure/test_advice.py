"""The advice that doctor gives, from logs as ComfyUI writes them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from fastdiffusers.commands import doctor
from fastdiffusers.commands.launch.advice import GIB, LaunchFacts, launch_advice
from fastdiffusers.commands.launch.comfyui_log import OutOfMemory, PartialLoad, SessionLog, read_log

LOG = """
Total VRAM 32607 MB, total RAM 97890 MB
pytorch version: 2.9.0+cu130
Set vram state to: NORMAL_VRAM
Device: cuda:0 NVIDIA GeForce RTX 5090 : cudaMallocAsync

Import times for custom nodes:
   0.0 seconds: /home/me/ComfyUI/custom_nodes/websocket_image_save.py
   0.3 seconds (IMPORT FAILED): /home/me/ComfyUI/custom_nodes/Broken-Pack
  15.1 seconds: C:\\ComfyUI\\custom_nodes\\Slow-Pack

loaded completely; 14971.79 MB usable, 13629.08 MB loaded, full load: True
loaded partially; 11329.26 MB usable, 11329.25 MB loaded, 2299.82 MB offloaded, lowvram patches: 0
100%|####| 2/2 [01:05<00:00, 32.78s/it]
"""
OLD_SESSION = LOG.replace("2299.82", "9999.99").replace("NORMAL_VRAM", "LOW_VRAM")
FINE = LaunchFacts(total=80 * GIB, free=79 * GIB, capability=(9, 0), log=SessionLog("NORMAL_VRAM", "cudaMallocAsync"))


def test_a_log_is_read() -> None:
    log = read_log(LOG)
    assert (log.vram_state, log.allocator) == ("NORMAL_VRAM", "cudaMallocAsync")
    assert log.partial_loads == (PartialLoad(int(11329.25 * 2**20), int(2299.82 * 2**20)),)
    assert log.imports[0] == (15.1, "Slow-Pack")
    assert log.failed_imports == ("Broken-Pack",)


def test_only_the_last_session_counts() -> None:
    assert read_log(OLD_SESSION + LOG) == read_log(LOG)
    assert read_log(LOG + OLD_SESSION).vram_state == "LOW_VRAM"


def test_current_wording_of_partial_loads_is_read() -> None:
    line = (
        "loaded partially; 1200.00 MB usable, 1024.00 MB loaded, 512.00 MB offloaded, 64.00 MB buffer reserved, "
        "lowvram patches: 3"
    )
    assert read_log(line).partial_loads == (PartialLoad(2**30, 2**29),)


@pytest.mark.parametrize("text", ["", "nothing of use", "\x00\xff" * 50, "seconds: x\nloaded partially; MB loaded"])
def test_a_log_without_facts_gives_none(text: str) -> None:
    assert read_log(text) == SessionLog()


def test_nothing_is_advised_where_nothing_is_wrong() -> None:
    assert launch_advice(FINE) == []
    assert launch_advice(LaunchFacts()) == []


def test_an_offloaded_model_comes_first_with_its_figures() -> None:
    facts = LaunchFacts(total=32 * GIB, free=31 * GIB, capability=(12, 0), log=read_log(LOG))
    found = [one.text for one in launch_advice(facts)]
    assert "11.1 GiB on the card, 2.2 GiB fetched anew in every step" in found[0]
    assert "torch.compile" in found[0]
    assert "--reserve-vram" in found[1]


def advice(**changes: object) -> str:
    facts = {"total": 80 * GIB, "free": 79 * GIB, "capability": (9, 0), "log": FINE.log} | changes
    found = launch_advice(LaunchFacts(**facts))  # type: ignore[arg-type]
    return "\n".join(one.text for one in found)


def test_each_fact_gives_its_advice_and_no_other() -> None:
    assert "--normalvram" in advice(log=SessionLog("LOW_VRAM"), flags=frozenset({"--normalvram"}))
    newer = advice(log=SessionLog("LOW_VRAM"), flags=frozenset({"--lowvram"}))
    assert "without --lowvram" in newer
    assert "--normalvram" not in newer
    assert advice(log=SessionLog("LOW_VRAM", dynamic=True)) == ""
    assert advice(log=SessionLog("LOW_VRAM"), total=8 * GIB, free=8 * GIB) == ""
    small = advice(log=SessionLog("HIGH_VRAM"), total=24 * GIB, free=24 * GIB, capability=None)
    assert "nothing is unloaded" in small
    assert advice(log=SessionLog("HIGH_VRAM")) == ""
    assert "30.0 GiB of the card's 80.0 GiB are in use" in advice(free=50 * GIB)
    assert "--cuda-malloc" in advice(log=SessionLog("NORMAL_VRAM", "native"))
    settled = advice(log=SessionLog("NORMAL_VRAM", "native"), allocator_settings="expandable_segments:True")
    assert settled == ""
    both = "expandable_segments:True,backend:cudaMallocAsync"
    assert "no effect" in advice(allocator_settings=both)
    assert "these extensions failed to load: A, B" in advice(log=SessionLog(failed_imports=("A", "B")))
    slow = advice(log=SessionLog(imports=((15.1, "Slow"), (0.4, "Quick"))))
    assert "Slow 15.1 s" in slow
    assert "Quick" not in slow


def test_fp8_is_advised_where_a_large_model_needs_it() -> None:
    card = {"total": 32 * GIB, "free": 32 * GIB}
    assert "26 GiB in bfloat16 and 13 GiB in fp8" in advice(**card)
    assert "and multiplies in fp8" in advice(**card, capability=(8, 9))
    assert "cannot multiply" in advice(**card, capability=(8, 6))
    assert advice(**card, capability=None) == ""
    assert advice(total=8 * GIB, free=8 * GIB) == ""


FULL = OutOfMemory(asked=3 * GIB, free=GIB, allocated=20 * GIB, reserved=20 * GIB)
PIECES = OutOfMemory(asked=3 * GIB, free=GIB, allocated=15 * GIB, reserved=22 * GIB)


def settings(**changes: object) -> tuple[list[str], list[tuple[str, str]]]:
    """The flags and variables that are advised."""
    facts = {"total": 24 * GIB, "free": 24 * GIB, "capability": None} | changes
    found = launch_advice(LaunchFacts(**facts))  # type: ignore[arg-type]
    return [flag for one in found for flag in one.flags], [pair for one in found for pair in one.variables]


def test_memory_that_ran_out_is_kept_free_of_weights_from_then_on() -> None:
    """3 GiB asked for with 1 GiB free: 2 GiB more, beside what ComfyUI keeps free anyway."""
    assert settings(log=SessionLog(memory_errors=(FULL,))) == (["--reserve-vram 3"], [])
    assert "fewer frames" in advice(log=SessionLog(memory_errors=(OutOfMemory(),)))
    assert "done again in tiles" in advice(log=SessionLog(memory_errors=(OutOfMemory(where="VAE decoding"),)))


@pytest.mark.parametrize(
    ("allocator", "given", "windows", "flags", "variables"),
    [
        ("native", "", False, ["--disable-cuda-malloc"], ["PYTORCH_CUDA_ALLOC_CONF"]),
        ("cudaMallocAsync", "", False, ["--disable-cuda-malloc"], ["PYTORCH_CUDA_ALLOC_CONF"]),
        ("native", "expandable_segments:True", False, [], []),
        ("native", "", True, ["--cuda-malloc"], []),  # Windows has no expandable segments
        ("cudaMallocAsync", "", True, [], []),
    ],
)
def test_fragmentation_is_told_from_memory_that_is_full(
    allocator: str, given: str, windows: bool, flags: list[str], variables: list[str]
) -> None:
    log = SessionLog(allocator=allocator, memory_errors=(PIECES,))
    found = settings(log=log, allocator_settings=given, windows=windows)
    assert (found[0], [name for name, _ in found[1]]) == (flags, variables)
    words = advice(log=log, allocator_settings=given, windows=windows, total=24 * GIB, free=24 * GIB)
    assert "torch held 22.0 GiB and used 15.0 GiB" in words
    full = settings(log=SessionLog(allocator="cudaMallocAsync", memory_errors=(FULL,)), windows=windows)
    assert full == (["--reserve-vram 3"], [])


def test_a_model_that_is_paged_in_and_one_that_is_pushed_off_are_named() -> None:
    paged = SessionLog(staged=(("WAN21", 27 * GIB),), dynamic=True)
    assert "(WAN21) of 27.0 GiB was paged onto a card with 24.0 GiB" in advice(log=paged, total=24 * GIB, free=24 * GIB)
    assert "paged" not in advice(log=paged)
    assert "2.0 GiB of a model were pushed off" in advice(log=SessionLog(unloads=(GIB, 2 * GIB)))


def test_without_an_accelerator_comfyui_is_started_on_the_processor() -> None:
    assert settings(no_accelerator=True, total=0, free=0) == (["--cpu"], [])


def test_doctor_reads_comfyuis_log_and_the_card(tmp_path: Path) -> None:
    facts = {
        "devices": [{"device": "cuda:0", "total_gib": 31.84, "free_gib": 31.0, "capability": "12.0"}],
        "allocator": {"settings": ""},
        "paths": {"comfyui": str(tmp_path)},
    }
    found = doctor.launch_facts(facts, read_log(LOG))
    assert found.capability == (12, 0)
    assert found.total == int(31.84 * GIB)
    assert found.log == read_log(LOG)
    without = facts | {"paths": {"comfyui": ""}, "devices": [{"device": "cpu", "total_gib": 64.0, "free_gib": 1.0}]}
    assert doctor.launch_facts(without, SessionLog()) == LaunchFacts(no_accelerator=True)
    assert not doctor.launch_facts(without, read_log(LOG)).no_accelerator  # it ran on something


def test_what_the_log_says_is_told_to_a_person() -> None:
    session = {"log": "comfyui.log", **asdict(read_log(LOG))}
    rows = doctor._session_rows(session)
    assert rows == {
        "log": "comfyui.log",
        "versions": "pytorch 2.9.0+cu130",
        "memory": "NORMAL_VRAM, cudaMallocAsync",
        "runs": "0",
        "offloaded": "once, 2.2 GiB at most",
    }
    assert "none found" in doctor._session_rows({"log": ""})["log"]


def test_a_device_that_only_comfyui_knows_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {"devices": [{"device": "cpu"}], "allocator": {"settings": ""}, "paths": {"comfyui": ""}}
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name == "torch_npu" or None)
    assert doctor.other_accelerators() == ["torch_npu"]
    assert not doctor.launch_facts(without, SessionLog()).no_accelerator

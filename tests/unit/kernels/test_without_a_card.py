"""What benchmarks/results say of cards without one: complete, of the code as it is, and as good as it has to be."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton only interprets in this process", allow_module_level=True)

import triton

from fastdiffusers.benchmarks import host_side, kernels_static
from fastdiffusers.benchmarks.card_trace import Trace, on_a_card
from fastdiffusers.benchmarks.kernel_launches import compiled, from_json
from fastdiffusers.vae.network.execution import Layout

STORED: dict[str, Any] = json.loads(kernels_static.FILE.read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = STORED["rows"]
HOST: dict[str, Any] = json.loads(host_side.FILE.read_text(encoding="utf-8"))


def test_the_table_is_of_these_kernels() -> None:
    assert STORED["source"] == kernels_static.fingerprint(), "run: python . benchmarks.kernels_static"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kernel']} {row['dtype']} {row['size']} {row['where']}")
def test_a_row(row: dict[str, Any]) -> None:
    threads = 32 * row["launch"][4]["num_warps"]
    assert set(row["cards"]) == set(map(str, kernels_static.CARDS))
    for capability, card in row["cards"].items():
        assert card["spilled"] == card["stack"] == 0, capability
        assert 0 < card["registers"] <= 255, capability
        assert card["registers"] * threads <= 65536, capability
        assert card["shared"] <= kernels_static.CARDS[int(capability)] << 10, capability
        for way, size in zip(("loads", "stores"), row["tile_bytes"], strict=True):
            wide = sum(int(bits) // 8 * count for bits, count in card[way].items() if int(bits) >= 128)
            if row["may_be_wide"][way]:
                assert wide * threads >= size, f"{capability}: some {way} move less than 16 bytes"
    assert row["least"] <= row["moved"] <= 1.1 * row["least"]
    if row["may_be_wide"]["loads"]:
        assert row["moved_alone"] <= 1.1 * row["least"]


def test_the_layout_of_the_video_vae_moves_sixteen_bytes_at_a_time() -> None:
    found = [row for row in ROWS if row["where"].startswith("video VAE") and "merge" not in row["kernel"]]
    large = [row for row in found if int(row["size"].split("x")[1]) % 16 == 0]  # pixels have three channels
    assert len(large) >= 30
    assert {row["kernel"] for row in found} == {row["kernel"] for row in large}
    assert all(row["may_be_wide"]["loads"] for row in large)
    assert all(row["may_be_wide"]["stores"] for row in large if "sum" not in row["kernel"])


@pytest.mark.parametrize(
    ("kernel", "capability"),
    [("triton_group_norm._normalise", 90), ("triton_pixel_shuffle._shuffle", 75), ("triton_rms_norm._normalise", 120)],
)
def test_some_rows_anew(kernel: str, capability: int) -> None:
    row = next(row for row in ROWS if row["kernel"] == kernel and row["may_be_wide"]["stores"])
    found, before = compiled(from_json(row["launch"]), capability), row["cards"][str(capability)]
    assert found.spilled == found.stack == 0
    assert max(found.loads) >= 128
    assert max(found.stores) >= 128
    if STORED["versions"]["triton"] == triton.__version__:
        assert found.registers == before["registers"]
        assert {str(bits): count for bits, count in found.stores.items()} == before["stores"]


@pytest.fixture(scope="module", params=list(host_side.CASES))
def traced(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], Trace]:
    vae = kernels_static.empty_vae(torch.bfloat16)
    with on_a_card() as trace:
        parts = kernels_static.run(trace, vae, request.param, Layout(), host_side.CASES[request.param])
    job = {"slices": [host_side.told(part) for part in parts], "between": host_side.told(trace.counts)}
    return request.param, job, trace


def test_no_slice_waits_for_the_card(traced: Any) -> None:
    direction, job, _ = traced
    assert len(job["slices"]) == 4
    for part in job["slices"]:
        assert part["waits"] == {}
        assert part["queued_copies"] == 0
    assert set(job["between"]["waits"]) <= {"copy to the card", "a queued copy"}
    if direction == "decode":
        assert job["between"]["waits"]["a queued copy"] == job["between"]["queued_copies"] == 4


def test_launches_and_allocations_are_those_stored(traced: Any) -> None:
    direction, job, _ = traced
    stored = HOST["jobs"][direction]
    for part, before in zip((*job["slices"], job["between"]), (*stored["slices"], stored["between"]), strict=True):
        assert {name: part[name] for name in ("launches", "allocations", "allocated_mib")} == {
            name: before[name] for name in ("launches", "allocations", "allocated_mib")
        }, "run: python . benchmarks.host_side"
    last = [part["allocations"] for part in job["slices"][1:-1]]
    assert len(set(last)) == 1, "steady slices differ"


def test_what_is_launched_is_in_the_table(traced: Any) -> None:
    _, _, trace = traced
    known = {row["kind"] for row in ROWS}
    assert {kernels_static.kind_of(launch) for launch in trace.launches} - known == set()


def test_a_wait_inside_a_slice_would_be_seen() -> None:
    with on_a_card() as trace:
        x = torch.empty(4, device="cuda")
        with trace.part() as part:
            bool(x.sum())
            x.cpu()
    assert sum(part.waits.values()) == 2
    assert part.waits["copy from the card"] == 1
    assert not trace.counts.waits

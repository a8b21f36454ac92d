"""Stages against ceilings: what is timed and counted, on networks whose arithmetic is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiffusers.benchmarks import roofline
from fastdiffusers.benchmarks.kernels import Bench, Ceilings
from fastdiffusers.benchmarks.stages import ALL, REST, AttentionCalls, measure_stages, nbytes
from fastdiffusers.benchmarks.top_kernels import top_kernels

CPU = torch.device("cpu")
CEILINGS = Ceilings(copy=1e9, matmul=1e9)


def test_work_and_time_of_each_stage() -> None:
    first, second, head = nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 2, bias=False)
    x = torch.randn(3, 4)

    def run() -> torch.Tensor:
        return head(second(second(first(x))))

    with torch.inference_mode():
        found = {stage.name: stage for stage in measure_stages(run, {"in": [first], "twice": [second]}, CPU, runs=2)}
    assert list(found) == ["in", "twice", REST, ALL]
    assert [found[name].calls for name in found] == [1, 2, 0, 1]
    assert found["in"].flops == 2 * 3 * 4 * 8
    assert found["in"].bytes == 4 * (3 * 4 + 4 * 8 + 3 * 8)
    assert found["twice"].flops == 2 * (2 * 3 * 8 * 8)
    assert found[REST].flops == 2 * 3 * 8 * 2
    assert found[ALL].flops == sum(stage.flops for stage in found.values()) // 2
    assert found[ALL].seconds == pytest.approx(found["in"].seconds + found["twice"].seconds + found[REST].seconds)
    assert not first._forward_hooks
    assert not first._forward_pre_hooks


def test_a_row_holds_a_stage_against_the_ceilings() -> None:
    stage = roofline.Stage("s", calls=2, seconds=0.5, flops=250_000_000, bytes=50_000_000)
    row = roofline.row(stage, 2.0, CEILINGS)
    assert (row["share_of_time"], row["of_matmul"], row["of_copy"]) == (0.25, 0.5, 0.1)
    assert (row["ms"], row["tflop"], row["least_gb"]) == (500.0, 0.00025, 0.05)


def test_bytes_of_what_a_module_takes_and_gives() -> None:
    x = torch.zeros(2, 3)
    assert nbytes(((x, None), {"a": [x, 1]}, x)) == 3 * 24


def test_attention_is_timed_by_itself() -> None:
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 8, 4)

    def run() -> None:
        for _ in range(3):
            torch.nn.functional.scaled_dot_product_attention(query=q, key=k, value=k)

    with AttentionCalls() as calls:
        run()
    assert calls.shapes == {(q.shape, k.shape): 3}
    (alone,) = roofline.attention_alone(run, Bench(CPU, 1))
    assert (alone.calls, alone.flops, alone.bytes) == (3, 3 * 4 * 2 * 6 * 8 * 4, 3 * 4 * 2 * (2 * 24 + 2 * 32))
    assert alone.seconds > 0


def test_the_slowest_kernels_come_first_and_the_others_are_summed_up() -> None:
    x = torch.randn(64, 64)
    found = top_kernels(lambda: (x @ x).add(1).relu(), CPU, shown=1)
    assert len(found) == 2
    assert found[1]["kernel"].endswith(" others")
    assert sum(kernel["share"] for kernel in found) == pytest.approx(1, abs=1e-3)


def test_the_decoder_is_measured_stage_by_stage() -> None:
    network = roofline.video_vae(CPU, small=True)
    data = roofline.measure(network, Bench(CPU, 1), CEILINGS)
    rows = {row["stage"]: row for row in data["rows"]}
    blocks = {f"up block {level}, {part}" for level in range(4) for part in ("resnets", "upsampler")}
    assert {"conv_in", "mid block", "conv_out", *blocks} - {"up block 3, upsampler"} <= set(rows)
    assert all(row["tflop"] > 0 and row["least_gb"] > 0 for name, row in rows.items() if name not in (REST, ALL))
    assert rows[REST]["tflop"] == 0
    # Where they fit, the levels at full resolution take all frames of a slice at once.
    assert (rows["up block 1, resnets"]["calls"], rows["up block 3, resnets"]["calls"]) == (3, 3)
    assert data["kernels"]["plain"]


def test_the_transformer_is_measured_by_kinds_of_blocks() -> None:
    network = roofline.flux(CPU, small=True)
    with network.around():
        stages = {stage.name: stage for stage in measure_stages(network.run, network.stages, CPU, runs=1)}
    assert (stages["transformer blocks"].calls, stages["single transformer blocks"].calls) == (2, 4)
    assert 0 < stages[REST].flops < stages["transformer blocks"].flops

"""Switches that are global in torch hold while a run lasts and are exactly as before afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastdiffusers.optimizations import precision
from fastdiffusers.optimizations.apply import apply, revert
from fastdiffusers.optimizations.settings import OptimizationSettings, PrecisionSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ALL_ON = PrecisionSettings(tf32="on", cudnn_benchmark="on", channels_last="on")


def flags():
    """Every flag for TF32, old and new, and cuDNN's; None where the old ones cannot be read."""
    found = [torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()]
    for holder, name in precision._OLD_FLAGS:
        try:
            found.append(getattr(holder, name))
        except RuntimeError:
            found.append(None)
    return [*found, *(holder.fp32_precision for holder in precision._new_flags())]


@pytest.fixture(autouse=True)
def _restored():
    before = flags()
    yield
    assert flags() == before


def test_everything_is_on_while_active_and_as_before_afterwards():
    before = flags()
    with precision.active(ALL_ON, CUDA):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.benchmark
    assert flags() == before


def test_a_run_that_raises_restores_too():
    before = flags()
    with pytest.raises(KeyboardInterrupt), precision.active(ALL_ON, CUDA):
        raise KeyboardInterrupt
    assert flags() == before


@pytest.mark.parametrize("device", [CPU, torch.device("mps")])
def test_nothing_is_touched_off_cuda(device):
    before = flags()
    with precision.active(ALL_ON, device):
        assert flags() == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_flags_that_only_the_newer_names_can_tell_are_kept_to_the_letter():
    """What a program has set through the newer names can make the old ones unreadable."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        inside = flags()
        with precision.active(ALL_ON, CUDA):
            assert torch.backends.cuda.matmul.fp32_precision == conv.fp32_precision == "tf32"
        assert flags() == inside
    finally:
        conv.fp32_precision = before


def test_records_say_what_is_on_and_why_not(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    tf32, benchmark, layout = precision.records(pipeline, ALL_ON, CPU)
    assert tf32.failed
    assert benchmark.failed
    assert "NVIDIA" in tf32.reason
    assert layout.applied == "vae"
    auto = precision.records(pipeline, PrecisionSettings("auto", "auto", "auto"), CUDA)
    assert [record.applied for record in auto] == ["off"] * 3
    assert all("measured" in record.reason for record in auto)
    on = precision.records(pipeline, ALL_ON, CUDA)
    assert [record.applied for record in on] == ["on", "on", "vae"]


def test_channels_last_is_undone_to_the_stride(tiny_pipeline, picture):
    pipeline = tiny_pipeline("sdxl")
    plain = picture(pipeline, "sdxl")
    strides = {name: p.stride() for name, p in pipeline.unet.named_parameters()}
    identities = {name: id(p) for name, p in pipeline.unet.named_parameters()}
    (*_, record) = precision.records(pipeline, ALL_ON, CPU)
    assert record.applied == "unet + vae"
    changed = [p for p in pipeline.unet.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in changed)
    torch.testing.assert_close(picture(pipeline, "sdxl"), plain, atol=1e-3, rtol=0)

    precision.records(pipeline, PrecisionSettings(), CPU)
    assert {name: p.stride() for name, p in pipeline.unet.named_parameters()} == strides
    assert {name: id(p) for name, p in pipeline.unet.named_parameters()} == identities
    assert torch.equal(picture(pipeline, "sdxl"), plain)


def test_channels_last_is_off_where_weights_come_in_another_layout(tiny_pipeline):
    """Group offloading has copies of the weights from when it was switched on."""
    pipeline = tiny_pipeline("sdxl")
    strides = {name: p.stride() for name, p in pipeline.unet.named_parameters()}
    on = OptimizationSettings.plain(precision=PrecisionSettings(channels_last="on"))
    assert apply(pipeline, on)["channels_last"].applied == "unet + vae"
    record = apply(pipeline, replace(on, memory_mode="group_offload_leaf"))["channels_last"]
    assert (record.applied, record.failed) == ("off", True)
    assert "group offloading" in record.reason
    assert {name: p.stride() for name, p in pipeline.unet.named_parameters()} == strides
    assert apply(pipeline, on)["channels_last"].applied == "unet + vae"
    revert(pipeline)


def test_channels_last_without_convolutions_says_so():
    class Bare:
        components = {"transformer": nn.Linear(2, 2)}  # noqa: RUF012 - a pipeline's is a property

    (*_, record) = precision.records(Bare(), ALL_ON, CPU)
    assert record.failed
    assert "convolutions" in record.reason

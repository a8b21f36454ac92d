"""Compiled slices of the video VAE against plain ones: the faster run, and the report says which, with both figures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdiffusers.vae import VaeConfig, VaeSettings, VideoVAE, decode_raw
from fastdiffusers.vae.compile_trial import AT_MOST, SpeedTrial
from fastdiffusers.vae.kernels import eager

Latents = Callable[..., torch.Tensor]

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fresh_dynamo")]


class Compiler:
    """A dynamo backend that takes its time to compile, and whose code may be slow."""

    def __init__(self, compiling: float = 0.2, running: float = 0.0) -> None:
        self.compiling, self.running, self.calls = compiling, running, 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        time.sleep(self.compiling)

        def run(*args: torch.Tensor) -> object:
            self.calls += 1
            time.sleep(self.running)
            return graph.forward(*args)

        return run


@pytest.fixture
def flat() -> VideoVAE:
    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(8, 16), layers_per_block=1, temporal_scale_num=1, norm_num_groups=4)
    return VideoVAE(config).eval().requires_grad_(False)


def settings(backend: object, **how: Any) -> VaeSettings:
    return VaeSettings(mode="whole", temporal_slice=1, compile={"backend": backend}, **how)


def figures(reason: str) -> tuple[float, float]:
    """(plain, compiled) in seconds."""
    found = re.search(r"([\d.e-]+) s plain, ([\d.e-]+) s compiled", reason)
    assert found, reason
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("scope", ["blocks", "slice"])
def test_slower_compiled_code_gives_way_to_plain_code(flat: VideoVAE, latents: Latents, scope: str) -> None:
    slow = Compiler(running=0.05 if scope == "blocks" else 1.0)
    chosen, z = settings(slow, compile_scope=scope), latents(3, 4, 4)
    plain_frames, _ = decode_raw(flat, z, VaeSettings(mode="whole", temporal_slice=1))
    frames, first = decode_raw(flat, z, chosen)
    assert float((frames - plain_frames).abs().max() / plain_frames.std()) <= 2e-5
    record = first["torch_compile"]
    assert (record.applied, record.failed) == ("off", False)
    assert "compiled slices are slower, so plain ones run" in record.reason
    plain, compiled = figures(record.reason)
    assert plain < compiled
    assert "checking it against plain code took" in record.cost
    calls = slow.calls
    result, second = decode_raw(flat, z, chosen)
    assert slow.calls == calls
    assert torch.equal(result, plain_frames)
    assert (second["torch_compile"].reason, second["torch_compile"].cost) == (record.reason, "")
    twin = VideoVAE(flat.config).eval().requires_grad_(False)
    twin.load_state_dict(flat.state_dict())
    result, third = decode_raw(twin, z, chosen)  # loaded again: the verdict is the process's
    assert slow.calls == calls
    assert torch.equal(result, plain_frames)
    assert third["torch_compile"].reason == record.reason
    decode_raw(flat, z, settings(slow, compile_scope=scope, compile_trial=False))
    assert slow.calls > calls  # whoever asks for it all the same


def test_faster_compiled_code_stays_and_its_compiling_does_not_count(
    flat: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain code is made slower here; units have no part of what is."""
    statistics, quick = eager.group_norm_statistics, Compiler()

    def slow(x: torch.Tensor, groups: int, **options: Any) -> object:
        if x.device.type != "meta":
            time.sleep(0.05)
        return statistics(x, groups, **options)

    monkeypatch.setattr(eager, "group_norm_statistics", slow)
    chosen, z = settings(quick), latents(3, 4, 4)
    plain_frames, _ = decode_raw(flat, z, VaeSettings(mode="whole", temporal_slice=1))
    frames, first = decode_raw(flat, z, chosen)
    assert float((frames - plain_frames).abs().max() / plain_frames.std()) <= 2e-5
    record = first["torch_compile"]
    assert record.applied == "repeated units, for any size"
    assert "compiled slices are faster and kept" in record.reason
    plain, compiled = figures(record.reason)
    assert compiled < plain
    calls = quick.calls
    again, second = decode_raw(flat, z, chosen)
    assert quick.calls > calls
    assert torch.equal(again, frames)
    assert second["torch_compile"].reason == record.reason
    assert second["torch_compile"].cost == ""  # nothing is compiled or run twice any more


def test_the_report_names_all_that_a_first_decode_takes_longer(
    flat: VideoVAE, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow plain code makes the check long, slow compiling the rest; what is left are fractions of both."""
    chosen, z, norm = settings(Compiler(compiling=1.0)), latents(3, 4, 4), eager.group_norm_statistics

    def slow(x: torch.Tensor, groups: int, **options: Any) -> object:
        if x.device.type != "meta":
            time.sleep(0.05)
        return norm(x, groups, **options)

    monkeypatch.setattr(eager, "group_norm_statistics", slow)
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        _, report = decode_raw(flat, z, chosen)
        taken.append((time.perf_counter() - began, report["torch_compile"].cost))
    (cold, cost), (warm, _) = taken
    named = sum(float(seconds) for seconds in re.findall(r"took ([\d.]+) s", cost))
    assert 0.8 * (cold - warm) <= named <= cold + 0.1  # both are said to a tenth of a second


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.5], ""),
        ([1.5, 1.2], "slower"),
        ([0.5, 0.8], "faster"),
        ([1.05, 0.8], ""),
        ([0.95] * AT_MOST, "faster"),
        ([1.05] * AT_MOST, "slower"),
        ([0.5, 0.5, 2.0], "faster"),  # it is over after two
        ([1.05, 0.95, 1.02, 0.99, 1.0], "noise"),
    ],
)
def test_when_a_trial_ends(ratios: list[float], verdict: str) -> None:
    trial = SpeedTrial()
    for ratio in ratios:
        trial.add(2.0, 2.0 * ratio)
    assert trial.verdict == verdict
    assert trial.reverted == (verdict in ("slower", "noise"))
    plain, compiled = figures(str(trial))
    assert plain == 2.0 * len(trial.plain)
    assert compiled > 0

"""The benchmark of the VAE nodes beside ComfyUI's own: what it builds is ComfyUI's, full size, and results agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiffusers.benchmarks import core_nodes
from fastdiffusers.benchmarks.core_nodes import KINDS, SMALL, Case

torch.set_num_threads(1)

LIGHT = {"FLUX.1": (16, 83), "FLUX.2": (128, 84), "Wan 2.1, Qwen-Image": (16, 126)}
"""Kinds that are built in a second, of every ComfyUI: channels of their latents, and parameters in millions."""
NEWER = pytest.param("SeedVR2", marks=pytest.mark.core_has(KINDS["SeedVR2"].module))


@pytest.fixture(scope="module", params=[*LIGHT, NEWER])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vae(core: Any, name: str) -> Any:
    return core_nodes.made(KINDS[name])


def test_a_kind_is_what_comfyui_takes_it_for(vae: Any, name: str) -> None:
    channels, millions = LIGHT.get(name, (16, 250))
    assert vae.latent_channels == channels
    assert vae.latent_dim == len(KINDS[name].latent)
    parameters = list(vae.first_stage_model.parameters())
    assert sum(parameter.numel() for parameter in parameters) / 1e6 == pytest.approx(millions, abs=1)
    assert all(parameter.isfinite().all() for parameter in parameters)


def test_both_nodes_give_the_same(vae: Any, name: str) -> None:
    with torch.inference_mode():
        found = {case.name: case for case in core_nodes.cases(vae, SMALL[vae.latent_dim], 64)}
        for case in found.values():
            core_nodes.measure(case, rounds=2)
            assert len(case.seconds) == 2
            assert case.difference < 1e-4, case.name  # one tile holds it all
            assert case.own().std() > 0
    assert list(found) == ["decode", "decode in tiles", "encode", "encode in tiles"]
    if name != "SeedVR2":  # which runs through the pack's own networks
        assert found["decode"].difference == found["encode"].difference == 0


def test_a_row_holds_the_medians_of_both() -> None:
    case = Case("decode", lambda: torch.zeros(1), lambda: torch.zeros(1))
    case.seconds[:] = [(1.0, 2.0), (2.0, 2.0), (1.0, 3.0)]
    row = core_nodes.row(case)
    assert (row["seconds"], row["core_seconds"]) == (1.0, 2.0)
    assert (row["core_over_ours"], row["least"], row["largest"]) == (2.0, 1.0, 3.0)


def test_results_of_two_sizes_are_refused() -> None:
    case = Case("decode", lambda: torch.zeros(1), lambda: torch.zeros(2))
    with pytest.raises(ValueError, match=r"decode: \[1\] here, \[2\] by ComfyUI's node"):
        core_nodes.measure(case, 1)

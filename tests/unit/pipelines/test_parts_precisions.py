"""Diffusion models whose other components have tests of their own: read in every precision, and as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ltx2_parts import ltx23, original_ltx2
from modular_parts import (
    flux3,
    minimax_h3,
    original_flux3,
    original_minimax_h3,
    original_qwenimage21,
    qwenimage21,
)
from original_families import restored
from test_parts_families import assert_read_in_every_precision
from test_parts_gguf import LARGEST, write_gguf

from fastdiffusers.pipelines.loading.parts import DIFFUSION_MODEL, kind_of_part
from fastdiffusers.pipelines.loading.parts.fit import configuration
from fastdiffusers.pipelines.loading.parts.header import read_part
from fastdiffusers.pipelines.loading.parts.plan import family_of_part
from fastdiffusers.pipelines.loading.parts.read import read_component

MODELS: dict[str, tuple[Any, Any]] = {
    "ltx23": (ltx23, original_ltx2),
    "flux3": (flux3, original_flux3),
    "qwenimage21": (qwenimage21, original_qwenimage21),
    "minimax-h3": (minimax_h3, original_minimax_h3),
}


def original_of(family: str) -> Any:
    """The renaming, without what a file has besides: that is no weight of the model."""
    renaming = MODELS[family][1]
    return lambda state: {key: value for key, value in renaming(state).items() if key != "rope.inv_freq"}


@pytest.mark.parametrize("family", MODELS)
def test_it_is_read_in_every_precision(family: str, tmp_path: Path) -> None:
    network = MODELS[family][0]().transformer
    assert_read_in_every_precision(network, "transformer", original_of(family), tmp_path / "model.safetensors")


@pytest.mark.parametrize("family", MODELS)
def test_its_weights_are_those_that_gguf_reads(family: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    network, original, path = MODELS[family][0]().transformer, original_of(family), tmp_path / "model.gguf"
    before = {key: value.clone() for key, value in network.state_dict().items()}
    meant, used = write_gguf(path, original(before))
    assert used >= {"Q8_0", "Q4_K"}
    network.save_config(path.with_suffix("") / "transformer")
    assert kind_of_part(path) == DIFFUSION_MODEL
    part, component = read_part(path, "diffusion_model"), family_of_part(path).components["transformer"]
    config = configuration("transformer", component, part, path)
    made = read_component(component, part, config, torch.float32)
    assert sum(isinstance(each, GGUFLinear) for each in made.modules()) >= 7
    held = {key: dequantize_gguf_tensor(value).float() for key, value in made.state_dict().items()}
    expected = restored(before, original, meant)
    assert held.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(held[key], value, rtol=2**-10, atol=2**-10 * LARGEST, msg=lambda text: text)

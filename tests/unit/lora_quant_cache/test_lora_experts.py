"""A LoRA for one noise expert: it acts there as in diffusers, and the other expert stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kit import loaded, write

from fastdiffusers.optimizations.lora_layers import LoraLayer, LoraNorm
from fastdiffusers.pipelines.lora import set_loras
from fastdiffusers.pipelines.tiny import TINY_LORAS, lora_tensors
from fastdiffusers.pipelines.types import LoraSpec


def touched(model: Any) -> bool:
    return any(isinstance(module, LoraLayer | LoraNorm) for module in model.modules())


@pytest.mark.parametrize("family", ["wan22-i2v", "wan22-t2v"])
@pytest.mark.parametrize(
    ("expert", "changed", "kept"), [("high", "transformer", "transformer_2"), ("low", "transformer_2", "transformer")]
)
def test_the_other_expert_is_not_touched(
    family: str, expert: str, changed: str, kept: str, tiny_pipeline: Callable, make_lora: Callable, run: Callable
) -> None:
    path = make_lora(family)
    pipeline, reference = tiny_pipeline(family), tiny_pipeline(family)
    plain = run(pipeline, 4, num_frames=1)
    reference.load_lora_weights(str(path), load_into_transformer_2=expert == "low")
    set_loras(loaded(pipeline), (LoraSpec(str(path), expert=expert),))
    assert touched(getattr(pipeline, changed))
    assert not touched(getattr(pipeline, kept))
    result = run(pipeline, 4, num_frames=1)
    torch.testing.assert_close(result, run(reference, 4, num_frames=1), rtol=1e-3, atol=1e-4)
    assert not torch.equal(result, plain)
    set_loras(loaded(pipeline), ())
    assert torch.equal(run(pipeline, 4, num_frames=1), plain)


def test_the_tiny_loras_are_what_diffusers_makes_of_the_same_file(
    tiny_pipeline: Callable, run: Callable, tmp_path: Path
) -> None:
    pipeline, reference = tiny_pipeline("wan22-i2v"), tiny_pipeline("wan22-i2v")
    for name, second in zip(TINY_LORAS, (False, True), strict=True):
        path = write(tmp_path / f"{second}.safetensors", lora_tensors(name))
        reference.load_lora_weights(str(path), adapter_name=f"lora{second}", load_into_transformer_2=second)
    specs = (LoraSpec(TINY_LORAS[0], expert="high"), LoraSpec(TINY_LORAS[1], expert="low"))
    plain = run(pipeline, 4, num_frames=1)
    (record,) = set_loras(loaded(pipeline), specs)
    assert record.applied == "24 layers, rank 4"
    result = run(pipeline, 4, num_frames=1)
    torch.testing.assert_close(result, run(reference, 4, num_frames=1), rtol=1e-3, atol=1e-4)
    assert (result - plain).abs().max() > 0.01, "it can be seen"


def test_the_tiny_loras_are_the_same_every_time_and_differ() -> None:
    high, low = map(lora_tensors, TINY_LORAS)
    assert all(torch.equal(tensor, lora_tensors(TINY_LORAS[0])[key]) for key, tensor in high.items())
    assert high.keys() == low.keys()
    assert not any(torch.equal(tensor, low[key]) for key, tensor in high.items())

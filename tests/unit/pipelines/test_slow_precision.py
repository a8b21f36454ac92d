"""Half precision where a processor convolves none: said with its cure where it is so, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.slow_precision import slow_precision_note
from fastdiffusers.vae.network import convolution

CPU = torch.device("cpu")


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def set_takes(half: bool) -> None:
        monkeypatch.setattr(convolution, "onednn_takes", lambda dtype: half or dtype == torch.float32)

    return set_takes


@pytest.mark.parametrize(
    ("family", "dtype", "models"),
    [("sdxl", torch.bfloat16, "vae and unet"), ("zimage", torch.float16, "vae")],
)
def test_it_is_said_where_the_processor_has_none(
    family: str, dtype: torch.dtype, models: str, takes: Callable[[bool], None]
) -> None:
    pipeline = tiny.build(family).to(dtype)
    takes(False)
    note = slow_precision_note(pipeline, CPU)
    assert note.startswith(f"dtype: {str(dtype)[6:]} is slow on this processor, ")
    assert note.endswith(f"many times as long, in {models}. Use float32 (--dtype float32).")
    assert " in vae. " in slow_precision_note(pipeline, CPU, vae_only=True)
    assert slow_precision_note(pipeline, torch.device("cuda")) == ""
    pipeline.vae.float()
    assert slow_precision_note(pipeline, CPU, vae_only=True) == ""
    assert ("unet" in models) == bool(slow_precision_note(pipeline, CPU))
    pipeline.to(dtype)
    takes(True)
    assert slow_precision_note(pipeline, CPU) == ""

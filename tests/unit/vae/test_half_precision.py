"""Half precision on a processor that has no instructions for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_models import golden_config, golden_vae, golden_weights
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiffusers.vae import VaeSettings, decode_raw, from_state_dict
from fastdiffusers.vae.network import convolution, winograd


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
@pytest.mark.parametrize("way", ["conv3d", "fast"])
def test_a_processor_without_half_precision_convolves_in_float32(
    latents: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    dtype: torch.dtype,
    most: float,
) -> None:
    for module in (convolution, winograd):
        monkeypatch.setattr(module, "onednn_takes", lambda dtype: dtype == torch.float32)
    half = from_state_dict(golden_weights("small"), config=golden_config("small"), dtype=dtype)
    exact, _ = decode_raw(golden_vae("small"), latents(3), VaeSettings(convolution="conv3d"))
    convolved = set()

    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in str(func) and args[0].device.type == "cpu":
                convolved.add(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with Convolutions():
        made, report = decode_raw(half, latents(3), VaeSettings(convolution=way))
    assert convolved == {torch.float32}
    assert (report["convolution"].applied == "conv3d") == (way == "conv3d")
    assert float((made - exact).square().mean().sqrt() / exact.std()) <= most

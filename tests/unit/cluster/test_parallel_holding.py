"""Which components are said to be on which card: a pipeline whose components are on devices that stand for cards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiffusers.cluster.parallel import holding


class Pipeline:
    def __init__(self, **components: object) -> None:
        self.components = components


def weights(gib: float, device: str = "meta") -> nn.Module:
    part = nn.Module()
    part.weight = nn.Parameter(torch.empty(int(gib * 2**28), device=device), requires_grad=False)
    part.again = part.weight  # tied weights are there once
    return part


def test_components_are_where_their_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(text_encoder=weights(2e-6, "cpu"), transformer=weights(22.0), vae=weights(0.25), scheduler=3)
    found = "meta: transformer 22.00 GiB, vae 0.25 GiB"
    assert holding.held(pipeline) == f"cpu: text_encoder 2e-06 GiB and {found}"
    # What is brought to the card in its turn is not there now.
    monkeypatch.setattr(holding, "mode_of", lambda pipeline: "model_offload")
    assert holding.held(pipeline) == f"main memory, model_offload: text_encoder 2e-06 GiB and {found}"

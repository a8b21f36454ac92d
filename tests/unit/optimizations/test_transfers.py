"""Bytes of weights that are moved on and off a device, counted without one: "meta" stands for the card."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import accelerate.hooks
import pytest
import torch
from torch import nn

from fastdiffusers.optimizations import offload
from fastdiffusers.optimizations.tuning.transfers import counted
from fastdiffusers.pipelines import tiny

CPU, CARD = torch.device("cpu"), torch.device("meta")
SIZE = 4 * (8 * 8 + 8)


class Component(nn.Linear):
    """288 bytes that go to the card and come back, as accelerate's model offload has them."""

    def __init__(self) -> None:
        super().__init__(8, 8)

    def to(self, device: Any) -> Component:
        return super().to(device) if torch.device(device).type == "meta" else self.to_empty(device=device)


def pipeline_of(**components: nn.Module) -> Any:
    return SimpleNamespace(components=components)


def test_whole_components_that_come_and_go() -> None:
    transformer, vae = Component(), Component()
    with counted(pipeline_of(transformer=transformer, vae=vae), CARD) as moved:
        transformer.to("meta")
        transformer.to("meta")  # it is there already
        transformer.to("cpu")
        vae.to("meta")
    assert (moved.on, moved.off) == (2 * SIZE, SIZE)
    assert "to" not in vars(transformer)
    vae.to("cpu")
    assert moved.off == SIZE, "the count has ended"


class Group:
    """One of diffusers' groups of layers."""

    def __init__(self, stream: object) -> None:
        self.modules, self.parameters, self.buffers = [Component()], [torch.zeros(3)], [torch.zeros(1)]
        self.stream = stream

    def onload_(self) -> None:
        self.modules[0].to("meta")
        self.parameters[0] = self.parameters[0].to("meta")

    def offload_(self) -> None:
        self.modules[0].to("cpu")
        self.parameters[0] = torch.zeros(3)


@pytest.mark.parametrize(("stream", "off"), [(None, SIZE + 12), (object(), 0)], ids=["copied back", "kept"])
def test_groups_of_layers_that_come_and_go(stream: object, off: int) -> None:
    """With a stream, main memory has kept its copy: nothing is copied back."""
    group, model = Group(stream), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    hook = SimpleNamespace(group=group)
    for layer in model:
        layer._diffusers_hook = SimpleNamespace(get_hook=lambda name: hook if name == "group_offloading" else None)
    with counted(pipeline_of(transformer=model), CARD) as moved:
        for _ in range(3):
            group.onload_()
            group.offload_()
    assert (moved.on, moved.off) == (3 * (SIZE + 12), 3 * off)
    assert not {"onload_", "offload_"} & vars(group).keys()


@pytest.mark.parametrize("mode", offload.GROUP_MODES)
def test_diffusers_groups_are_found_and_left_as_they_were(mode: str) -> None:
    pipeline = tiny.build("wan22-t2v")
    offload.use(pipeline, mode, CPU, SimpleNamespace(free=2**40, total=2**40))
    leaf = next(m for m in pipeline.transformer.modules() if getattr(m, "_diffusers_hook", None))
    group = leaf._diffusers_hook.get_hook("group_offloading").group
    with counted(pipeline, CARD) as moved:
        assert {"onload_", "offload_"} <= vars(group).keys()
        group.onload_()
    assert (moved.on, moved.off) == (0, 0), "it came to the CPU, not to the card"
    assert not {"onload_", "offload_"} & vars(group).keys()


def test_on_the_cpu_nothing_is_watched() -> None:
    model = Component()
    with counted(pipeline_of(transformer=model), CPU) as moved:
        assert "to" not in vars(model)
    assert (moved.on, moved.off) == (0, 0)


def test_a_model_whose_hooks_are_renewed_at_the_end_of_the_run() -> None:
    """So diffusers ends a run with model offload, and accelerate takes `to` off the model together with its hooks."""
    model = Component()
    with counted(pipeline_of(transformer=model), CARD) as moved:
        model.to("meta")
        accelerate.hooks.remove_hook_from_module(model, recurse=True)
        model.to("cpu")
    assert (moved.on, moved.off) == (SIZE, SIZE)
    assert "to" not in vars(model)

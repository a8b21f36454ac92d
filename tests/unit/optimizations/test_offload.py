"""Memory modes: what is chosen, that pictures stay the same, and that no hook is left behind."""

from __future__ import annotations

import diffusers.hooks as hooks_module
import pytest
import torch
from torch import nn

from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations import offload
from fastdiffusers.optimizations.components import modules
from fastdiffusers.pipelines.tiny import TINY_FAMILIES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLENTY = MemoryState(100 * GIB, 100 * GIB)


class Model(nn.Module):
    """As many gibibytes of weights as asked for, none of them real."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size * GIB // 4, device="meta"))


class Pipeline:
    """Components by name, with the order in which diffusers would offload them."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(self, **sizes):
        self.components = {name: Model(size) for name, size in sizes.items()}


def hooks(pipeline):
    found = []
    for model in modules(pipeline).values():
        for module in model.modules():
            found += [key for key in ("forward", "_diffusers_hook", "_hf_hook") if key in module.__dict__]
    return found


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_group_offloading_changes_nothing_and_leaves_no_trace(family, tiny_pipeline, picture):
    pipeline = tiny_pipeline(family)
    plain = picture(pipeline, family)
    for mode in offload.GROUP_MODES:
        record = offload.use(pipeline, mode, CPU, PLENTY)
        assert record.applied == mode
        assert hooks(pipeline)
        assert torch.allclose(picture(pipeline, family), plain, rtol=0, atol=1e-5)
    offload.use(pipeline, "gpu", CPU, PLENTY)
    assert hooks(pipeline) == []
    assert torch.allclose(picture(pipeline, family), plain, rtol=0, atol=1e-5)


def test_a_placement_that_fails_half_way_is_undone(tiny_pipeline, monkeypatch):
    """Locking pages can fail for want of memory when some components have their hooks already."""
    pipeline, calls = tiny_pipeline("sd3"), []
    place = hooks_module.apply_group_offloading

    def third_fails(model, **options):
        calls.append(model)
        if len(calls) == 3:
            raise RuntimeError("CUDA error: out of memory")
        place(model, **options)

    monkeypatch.setattr(hooks_module, "apply_group_offloading", third_fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        offload.use(pipeline, "group_offload_block", CPU, PLENTY)
    assert hooks(pipeline) == []
    assert offload.use(pipeline, "gpu", CPU, PLENTY).applied == "on the cpu"


@pytest.mark.parametrize(("free_gib", "scarce"), [(1000, False), (5, True)])
def test_streams_are_for_weights_that_stay_as_they_are(monkeypatch, free_gib, scarce):
    """Page-locked copies are made once: not of a VAE that is cast for its decodes, not all at once where memory is
    scarce."""
    pipeline, asked = Pipeline(transformer=2, vae=2), []
    pipeline.components["vae"].half().config = {"force_upcast": True}
    monkeypatch.setattr(hooks_module, "apply_group_offloading", lambda model, **options: asked.append(options))
    monkeypatch.setattr(offload, "device_memory", lambda device: MemoryState(free_gib * GIB, free_gib * GIB))
    offload._group_offload(pipeline, "group_offload_block", CUDA)
    assert [options["use_stream"] for options in asked] == [True, False]
    assert [options["low_cpu_mem_usage"] for options in asked] == [scarce, False]


def test_a_run_that_breaks_off_leaves_group_offloading_usable(tiny_pipeline, picture):
    pipeline = tiny_pipeline("flux")
    plain = picture(pipeline, "flux")
    offload.use(pipeline, "group_offload_block", CPU, PLENTY)

    def cancel(*_):
        raise KeyboardInterrupt

    handle = pipeline.transformer.single_transformer_blocks[0].register_forward_pre_hook(cancel)
    with pytest.raises(KeyboardInterrupt):
        picture(pipeline, "flux")
    handle.remove()
    pipeline.maybe_free_model_hooks()
    assert torch.allclose(picture(pipeline, "flux"), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["model_offload", "sequential"])
def test_what_a_processor_does_not_need_is_left_out_and_said(mode, tiny_pipeline):
    pipeline = tiny_pipeline("sdxl")
    record = offload.use(pipeline, mode, CPU, PLENTY)
    assert record.applied == "on the cpu"
    assert "not needed on the cpu" in record.reason
    assert hooks(pipeline) == []


def test_model_offload_is_put_on_and_taken_off(tiny_pipeline, picture):
    """accelerate's hooks work from the CPU to the CPU too, so that they can be seen without a card."""
    pipeline = tiny_pipeline("flux")
    plain = picture(pipeline, "flux")
    offload._place(pipeline, "model_offload", CPU)
    offload._placed[pipeline] = offload._Placement("model_offload", CPU)
    assert "_hf_hook" in hooks(pipeline)
    assert torch.allclose(picture(pipeline, "flux"), plain, rtol=0, atol=1e-5)
    offload.use(pipeline, "group_offload_leaf", CPU, PLENTY)  # on top of model offload this would raise
    assert torch.allclose(picture(pipeline, "flux"), plain, rtol=0, atol=1e-5)
    offload.use(pipeline, "gpu", CPU, PLENTY)
    assert not {"_hf_hook", "_diffusers_hook"} & set(hooks(pipeline))
    assert torch.allclose(picture(pipeline, "flux"), plain, rtol=0, atol=1e-5)


def test_the_same_mode_again_moves_nothing(tiny_pipeline, monkeypatch):
    pipeline = tiny_pipeline("flux")
    offload.use(pipeline, "group_offload_block", CPU, PLENTY)
    monkeypatch.setattr(offload, "_place", lambda *_: pytest.fail("placed again"))
    offload.use(pipeline, "group_offload_block", CPU, PLENTY)


def test_an_exchanged_model_is_placed_too(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    offload.use(pipeline, "group_offload_block", CPU, PLENTY)
    pipeline.transformer = tiny_pipeline("flux", 1).transformer
    offload.use(pipeline, "group_offload_block", CPU, PLENTY)
    assert any(hasattr(module, "_diffusers_hook") for module in pipeline.transformer.modules())


@pytest.mark.parametrize(
    ("free", "mode", "said"),
    [
        (20, "gpu", "everything fits"),
        (15, "model_offload", "15.00 GiB of weights + 2.00 GiB assumed for the computation"),
        (9, "group_offload_block", "10.00 GiB for the largest model"),
    ],
)
def test_auto_decides_by_what_fits(free, mode, said):
    pipeline = Pipeline(text_encoder=4, transformer=10, vae=1)
    found, reason = offload.decide(pipeline, "auto", CUDA, MemoryState(free * GIB, 24 * GIB), working=2 * GIB)
    assert found == mode
    assert said in reason
    assert mode == "gpu" or f"{free}.00 GiB of 24.00 GiB are free" in reason


def test_auto_leaves_on_the_device_what_is_there_while_a_run_has_room():
    pipeline, meta = Pipeline(text_encoder=4, transformer=10, vae=1), torch.device("meta")
    assert offload.use(pipeline, "auto", meta, PLENTY).applied == "gpu"
    assert offload.decide(pipeline, "auto", meta, MemoryState(2 * GIB, 24 * GIB), working=2 * GIB)[0] == "gpu"
    assert offload.decide(pipeline, "auto", meta, MemoryState(1 * GIB, 24 * GIB), working=2 * GIB)[0] == "model_offload"


def test_auto_without_an_order_for_model_offload_takes_blocks():
    pipeline = Pipeline(transformer=10, text_encoder=10)
    pipeline.model_cpu_offload_seq = None
    mode, _ = offload.decide(pipeline, "auto", CUDA, MemoryState(15 * GIB, 24 * GIB))
    assert mode == "group_offload_block"


def test_choices_are_taken_as_they_are_and_sequential_is_done_better():
    pipeline = Pipeline(transformer=1)
    for choice in ("gpu", "model_offload", "group_offload_block", "group_offload_leaf"):
        assert offload.decide(pipeline, choice, CUDA, PLENTY) == (choice, "")
    assert offload.decide(pipeline, "sequential", CUDA, PLENTY)[0] == "group_offload_leaf"
    assert "layer by layer" in offload._substitute_reason("sequential", "group_offload_leaf")


def test_bytes_to_come():
    pipeline = Pipeline(text_encoder=4, transformer=10, vae=1)
    assert offload.bytes_to_come(pipeline, "gpu", CUDA) == 15 * GIB
    assert offload.bytes_to_come(pipeline, "model_offload", CUDA) == 10 * GIB
    assert offload.bytes_to_come(pipeline, "group_offload_block", CUDA) == 0
    assert offload.bytes_to_come(pipeline, "gpu", CPU) == 0


def test_what_breaks_graphs():
    assert offload.breaks_graphs("gpu", "model") == offload.breaks_graphs("model_offload", "blocks") == ""
    assert "model offloading" in offload.breaks_graphs("model_offload", "model")
    assert "group offloading" in offload.breaks_graphs("group_offload_leaf", "blocks")


def test_where_a_model_is():
    model = nn.Linear(2, 2)
    assert not offload._is_elsewhere(model, CPU)
    assert offload._is_elsewhere(model, CUDA)
    assert not offload._is_elsewhere(nn.Module(), CUDA)

"""Attention on real pipelines: every family, both experts, masks, exact restore, and failures that come late."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdiffusers.optimizations import attention
from fastdiffusers.optimizations.attention_processors import can_vary
from fastdiffusers.optimizations.components import attention_layers, denoisers, head_size
from fastdiffusers.pipelines.tiny import TINY_FAMILIES

CPU = torch.device("cpu")


def processors(pipeline):
    return {
        (name, number): layer.processor
        for name, model in denoisers(pipeline).items()
        for number, layer in enumerate(attention_layers(model))
    }


def default_backend():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return _AttentionBackendRegistry._active_backend


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("choice", ["xformers", "flash"])
def test_every_layer_of_every_denoiser_uses_the_kernel(family, choice, tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline(family)
    plain = picture(pipeline, family)
    before, default = processors(pipeline), default_backend()

    record = attention.use(pipeline, choice, CPU)
    kernels.calls.clear()
    result = picture(pipeline, family)

    assert (record.applied, record.reason, record.failed) == (choice, "", False)
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    heads = {head_size(layer) for model in denoisers(pipeline).values() for layer in attention_layers(model)}
    assert {shape[-1] for shape in kernels.calls} == heads
    assert default_backend() is default  # other models are not touched

    attention.restore(pipeline)
    assert all(processors(pipeline)[key] is processor for key, processor in before.items())
    assert torch.equal(picture(pipeline, family), plain)


@pytest.mark.parametrize("family", ["flux", "flux2-klein", "sdxl", "sd3", "wan22-t2v"])
def test_no_call_is_left_to_torchs_own_attention(family, tiny_pipeline, picture, kernels):
    """In families whose denoisers are never given a mask, every call of every layer reaches the kernel."""
    pipeline = tiny_pipeline(family)
    attention.use(pipeline, "flash", CPU)
    layer_calls = []
    for model in denoisers(pipeline).values():
        for layer in attention_layers(model):
            layer.register_forward_hook(lambda module, args, output: layer_calls.append(module))
    kernels.calls.clear()
    picture(pipeline, family)
    assert len(kernels.calls) == len(layer_calls) > 0


def test_both_experts_of_wan_run_on_the_kernel(tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline("wan22-t2v")
    attention.use(pipeline, "xformers", CPU)
    seen = []
    for name in ("transformer", "transformer_2"):
        hook = lambda module, args, output, name=name: seen.append((name, len(kernels.calls)))
        getattr(pipeline, name).register_forward_hook(hook)
    kernels.calls.clear()
    picture(pipeline, "wan22-t2v", steps=4)
    assert {name for name, _ in seen} == {"transformer", "transformer_2"}
    counts = [count for _, count in seen]
    assert counts == sorted(set(counts))  # every call of either expert reached the kernel


def test_boolean_masks_reach_xformers_as_numbers(tiny_pipeline, picture, kernels):
    """Z-Image masks prompts of different lengths; its boolean masks must not become biases of 1 and 0."""
    pipeline = tiny_pipeline("zimage")
    plain = picture(pipeline, "zimage")
    attention.use(pipeline, "xformers", CPU)
    kernels.biases.clear()
    result = picture(pipeline, "zimage")
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    assert {float(bias[torch.isfinite(bias)].abs().max()) for bias in kernels.biases} == {0.0}
    assert any(torch.isinf(bias).any() for bias in kernels.biases)


def test_calls_with_a_mask_stay_with_sdpa_where_the_kernel_takes_none(tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline("zimage")
    plain = picture(pipeline, "zimage")
    record = attention.use(pipeline, "flash", CPU)
    kernels.calls.clear()
    result = picture(pipeline, "zimage")
    assert record.applied == "flash"
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_a_probe_that_fails_leaves_everything_as_it_was(family, tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline(family)
    plain, before = picture(pipeline, family), processors(pipeline)
    kernels.fail = NotImplementedError("no kernel for this card")
    record = attention.use(pipeline, "xformers", CPU)
    assert record.applied == "sdpa"
    assert record.failed
    assert "no kernel for this card" in record.reason
    assert processors(pipeline) == before
    assert torch.equal(picture(pipeline, family), plain)


@pytest.mark.parametrize("family", ["flux", "sdxl", "zimage", "wan22-t2v"])
def test_a_failure_at_the_first_real_use_falls_back_within_the_run(family, tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline(family)
    plain, before = picture(pipeline, family), processors(pipeline)
    asked = attention.use(pipeline, "xformers", CPU)
    assert asked.applied == "xformers"
    kernels.fail = RuntimeError("illegal instruction")
    result = picture(pipeline, family)
    assert torch.equal(result, plain)
    record = attention.record(pipeline, asked)
    assert (record.applied, record.failed) == ("sdpa", True)
    assert "illegal instruction" in record.reason
    assert processors(pipeline) == before

    kernels.fail = None  # the same settings again: it is not tried again, and still said
    again = attention.use(pipeline, "xformers", CPU)
    assert (again.applied, again.failed) == ("sdpa", True)
    attention.restore(pipeline)
    assert attention.use(pipeline, "xformers", CPU).applied == "xformers"


def test_a_lossy_kernel_that_gives_nan_falls_back_within_the_run(tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline("flux")
    plain = picture(pipeline, "flux")
    asked = attention.use(pipeline, "sage", CPU)
    assert asked.applied == "sage"
    kernels.poison = True
    assert torch.equal(picture(pipeline, "flux"), plain)
    record = attention.record(pipeline, asked)
    assert record.applied == "sdpa"
    assert "NaN" in record.reason


def test_a_model_that_gives_nan_by_itself_is_not_blamed_on_the_kernel(tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline("flux")
    with torch.no_grad():
        next(attention_layers(pipeline.transformer)).to_v.weight.fill_(float("nan"))
    asked = attention.use(pipeline, "sage", CPU)
    picture(pipeline, "flux")
    assert attention.record(pipeline, asked).applied == "sage"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_out_of_memory_and_interrupts_travel(error, tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline("sd3")
    asked = attention.use(pipeline, "xformers", CPU)
    kernels.fail = error
    with pytest.raises(type(error)):
        picture(pipeline, "sd3")
    kernels.fail = None
    assert attention.record(pipeline, asked).applied == "xformers"


def test_auto_is_sdpa_and_says_why(tiny_pipeline):
    record = attention.use(tiny_pipeline("flux"), "auto", CPU)
    assert record.applied == "sdpa"
    assert "Benchmark Optimizations" in record.reason
    assert not record.failed


def test_sdpa_overrides_a_default_that_something_else_has_changed(tiny_pipeline, picture, monkeypatch, kernels):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    pipeline = tiny_pipeline("flux")
    plain = picture(pipeline, "flux")
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.XFORMERS)
    attention.use(pipeline, "sdpa", CPU)
    kernels.calls.clear()
    assert torch.equal(picture(pipeline, "flux"), plain)
    assert not kernels.calls


def test_processors_with_weights_stay_and_are_counted(tiny_pipeline, kernels):
    pipeline = tiny_pipeline("sdxl")
    layer = next(attention_layers(pipeline.unet))

    class WithWeights(nn.Module):
        def __call__(self, *args, **kwargs):
            return original(*args, **kwargs)

    original = layer.processor
    layer.processor = WithWeights()
    record = attention.use(pipeline, "xformers", CPU)
    assert record.applied == "xformers"
    assert record.reason.startswith("1 layers")
    assert isinstance(layer.processor, WithWeights)


def test_a_processor_exchanged_by_somebody_else_is_kept(tiny_pipeline, kernels):
    pipeline = tiny_pipeline("flux")
    attention.use(pipeline, "xformers", CPU)
    layer = next(attention_layers(pipeline.transformer))
    mine = type(layer.processor._original)()
    layer.set_processor(mine)
    attention.use(pipeline, "sdpa", CPU)
    assert layer.processor is mine


def test_a_model_without_exchangeable_attention_says_so(tiny_pipeline, kernels):
    pipeline = tiny_pipeline("flux")
    pipeline.transformer = nn.Linear(2, 2)
    record = attention.use(pipeline, "xformers", CPU)
    assert record.applied == "sdpa"
    assert "Linear has no attention layer" in record.reason
    assert not can_vary(object())


def test_a_variant_keeps_the_name_the_class_and_the_signature(tiny_pipeline, kernels):
    import inspect

    for family in ("flux", "sd3"):
        pipeline = tiny_pipeline(family)
        original = next(attention_layers(pipeline.transformer)).processor
        attention.use(pipeline, "flash", CPU)
        varied = next(attention_layers(pipeline.transformer)).processor
        assert isinstance(varied, type(original))
        assert type(varied).__name__ == type(original).__name__
        assert inspect.signature(varied.__call__) == inspect.signature(original.__call__)

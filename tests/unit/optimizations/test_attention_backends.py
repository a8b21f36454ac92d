"""Probing attention backends: what works is found by calling it, and what does not is said in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.optimizations import attention_backends as backends
from fastdiffusers.optimizations.attention_backends import BACKENDS, Case, additive_mask, attend, refuse
from fastdiffusers.optimizations.settings import ATTENTION_CHOICES

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> None:
    backends.forget_probes()


def test_every_choice_of_the_settings_is_a_backend_of_diffusers():
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert set(BACKENDS) == set(ATTENTION_CHOICES) - {"auto"}
    for backend in BACKENDS.values():
        AttentionBackendName(backend.dispatch)
        assert "hub" not in backend.dispatch  # those download code


def test_on_a_processor_sdpa_and_math_work_and_all_others_say_why_not():
    found = backends.available("cpu", torch.float32)
    assert found["sdpa"] == found["math"] == ""
    for name in ("cudnn", "efficient", "flex"):
        assert "cpu" in found[name]
    for name in ("xformers", "flash", "flash3", "sage"):
        assert found[name]


def test_a_missing_package_is_named():
    assert "not installed" in refuse("sage", Case(CPU, torch.float32, 64))


def test_constraints_name_what_the_case_has(kernels):
    flash = replace(BACKENDS["flash"], checks=(backends.half_precision, backends.heads_up_to_256))
    assert "float32" in flash.checks[0](Case(CPU, torch.float32, 64))
    assert "512" in flash.checks[1](Case(CPU, torch.float16, 512))
    assert flash.checks[1](Case(CPU, torch.float16, 256)) == ""
    assert "cpu" in backends.hopper(Case(CPU, torch.float16, 64))


def test_a_probe_calls_the_kernel_once_per_case_and_remembers(kernels):
    case = Case(CPU, torch.float32, 16)
    assert refuse("xformers", case) == refuse("xformers", case) == ""
    assert kernels.calls == [(2, 128, 2, 16)]
    assert refuse("xformers", replace(case, head_dim=12)) == ""
    assert kernels.calls[1:] == [(2, 128, 2, 12)]


def test_a_probe_that_raises_gives_the_reason(kernels):
    kernels.fail = NotImplementedError("no operator found for this input\nlots of details")
    reason = refuse("xformers", Case(CPU, torch.float32, 16))
    assert reason == "a trial call failed: NotImplementedError: no operator found for this input"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_probe_without_memory_is_not_remembered(kernels, error):
    kernels.fail = error
    case = Case(CPU, torch.float32, 16)
    with pytest.raises(type(error)):
        refuse("xformers", case)
    kernels.fail = None
    assert refuse("xformers", case) == ""


def test_a_kernel_that_computes_something_else_is_refused(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "_attend", lambda q, k, v, bias, scale: v.roll(1, 1))
    assert "wrong result" in refuse("flash", Case(CPU, torch.float32, 16))


def test_a_kernel_that_gives_nan_is_refused(kernels):
    kernels.poison = True
    assert "wrong result (difference nan" in refuse("flash", Case(CPU, torch.float32, 16))


def test_a_boolean_mask_that_is_not_converted_would_be_noticed(kernels):
    """The defect that the conversion cures: xFormers adds 1 and 0 as a bias. The probe's mask must tell it apart."""
    case = Case(CPU, torch.float32, 16, "bool")
    assert refuse("xformers", case) == ""
    backends.forget_probes()
    unconverted = replace(BACKENDS["xformers"], masks="any")  # diffusers casts the mask and adds it
    assert backends._difference_from_exact(unconverted, case) > backends._TOLERANCE


def test_a_probe_leaves_the_random_state_alone(kernels):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    refuse("flash", Case(CPU, torch.float32, 16))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["sdpa", "math", "xformers", "flash"])
@pytest.mark.parametrize("shape", [(2, 11), (2, 1, 1, 11), (2, 2, 7, 11)])
@pytest.mark.parametrize("boolean", [True, False])
def test_attend_means_the_same_with_every_backend_and_mask(kernels, name, shape, boolean):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 7, 2, 16, generator=generator)
    k, v = (torch.randn(2, 11, 2, 16, generator=generator) for _ in range(2))
    mask = torch.rand(shape, generator=generator) > 0.4
    mask[..., 0] = True
    full = mask[:, None, None] if mask.ndim == 2 else mask
    exact = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=full).transpose(1, 2)
    given = mask if boolean else torch.zeros(shape).masked_fill(~mask, float("-inf"))
    if name == "math" and len(shape) == 2:
        given = given[:, None, None]  # of torch's kernels only the dispatcher's default unfolds such masks
    torch.testing.assert_close(attend(BACKENDS[name], q, k, v, given), exact)


def test_an_additive_mask_is_aligned_and_exact():
    mask = torch.tensor([[True, False, True, True, False]])
    added = additive_mask(mask, torch.float16)
    assert added.tolist() == [[0, -torch.inf, 0, 0, -torch.inf]]
    assert added.stride(0) % 8 == 0
    assert added.dtype == torch.float16
    ready = torch.zeros(2, 8)
    assert additive_mask(ready, torch.float32) is ready
    crooked = torch.arange(10.0).view(2, 5)
    aligned = additive_mask(crooked, torch.float32)
    assert aligned.stride(0) % 4 == 0
    assert torch.equal(aligned, crooked)

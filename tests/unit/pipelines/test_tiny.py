"""The embedded pipelines: real classes, deterministic by seed, the same again after a round trip through a folder."""

from __future__ import annotations

import pytest
import torch

from fastdiffusers.errors import InputError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.tiny.build import build

CLASSES = {
    "flux": "FluxPipeline",
    "flux-kontext": "FluxKontextPipeline",
    "flux2-klein": "Flux2KleinPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "qwenimage": "QwenImagePipeline",
    "qwenimage-edit": "QwenImageEditPipeline",
    "zimage": "ZImagePipeline",
    "wan22-t2v": "WanPipeline",
    "wan22-i2v": "WanImageToVideoPipeline",
}


def weights(pipeline):
    modules = {n: c for n, c in pipeline.components.items() if isinstance(c, torch.nn.Module)}
    return {f"{n}.{key}": value for n, module in modules.items() for key, value in module.state_dict().items()}


def test_every_family_is_listed():
    assert set(CLASSES) == set(tiny.TINY_FAMILIES)


@pytest.mark.parametrize("family", tiny.TINY_FAMILIES)
def test_build_is_deterministic_finite_and_survives_a_folder(family, tiny_folder):
    from diffusers import DiffusionPipeline

    state = torch.get_rng_state()
    built = build(family)
    assert torch.equal(torch.get_rng_state(), state), "the global random state moved"
    assert type(built).__name__ == CLASSES[family]
    expected = weights(built)
    assert all(value.isfinite().all() for value in expected.values() if value.is_floating_point())
    assert sum(value.nbytes for value in expected.values()) < 10e6

    reloaded = DiffusionPipeline.from_pretrained(tiny_folder(family))
    assert type(reloaded) is type(built)
    found = weights(reloaded)
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(value, found[key])] == []


def test_the_seed_chooses_the_weights_and_dtype_is_kept():
    one, two = weights(build("sdxl", seed=0)), weights(build("sdxl", seed=1))
    key = next(key for key in one if key.startswith("unet.") and key.endswith("conv_in.weight"))
    assert not torch.equal(one[key], two[key])
    half = build("sdxl", dtype=torch.bfloat16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="flux2-klein"):
        build("flux9")


@pytest.mark.parametrize("family", [*tiny.TINY_FAMILIES, *tiny.TINY_SOUND_FAMILIES])
def test_the_copies_that_other_tests_use_are_what_build_gives(family):
    assert tiny.build is not build
    built, first, second = build(family, 3), tiny.build(family, 3), tiny.build(family, 3)
    expected = weights(built)
    for copied in (first, second):
        assert type(copied) is type(built)
        assert dict(copied.config) == dict(built.config)
        found = weights(copied)
        assert list(found) == list(expected)
        assert all(value.stride() == found[key].stride() for key, value in expected.items())
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        for name, part in built.components.items():
            assert type(copied.components[name]) is type(part), name
            if hasattr(part, "config"):
                assert copied.components[name].config.__dict__.keys() == part.config.__dict__.keys(), name
            if isinstance(part, torch.nn.Module):
                modules = [(path, type(module), module.training) for path, module in part.named_modules()]
                assert [(p, type(m), m.training) for p, m in copied.components[name].named_modules()] == modules
                assert [p.requires_grad for p in copied.components[name].parameters()] == [
                    p.requires_grad for p in part.parameters()
                ]
                # One tensor in two places is one tensor in the copy.
                shared = len(list(part.named_parameters(remove_duplicate=False))) - len(list(part.parameters()))
                copy = copied.components[name]
                assert len(list(copy.named_parameters(remove_duplicate=False))) - len(list(copy.parameters())) == shared
    mine = next(iter(weights(first).values()))
    mine.add_(1)
    assert torch.equal(next(iter(weights(second).values())), next(iter(expected.values())))
    assert torch.equal(next(iter(weights(tiny.build(family, 3)).values())), next(iter(expected.values())))

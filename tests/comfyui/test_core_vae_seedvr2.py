"""ComfyUI's SeedVR2 VAE, which this pack runs through its own networks, as other nodes leave it, beside ComfyUI's."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from fastdiffusers.callbacks import SILENT

pytestmark = pytest.mark.core_has("comfy/ldm/seedvr/vae.py")
torch.set_num_threads(1)

Change = Callable[[Any, pytest.MonkeyPatch], Any]
"""Of a VAE object: returns it, or the copy that is used from then on."""


@pytest.fixture(autouse=True)
def _as_comfyui_runs_nodes() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def loaded(core: Any) -> Iterator[Any]:
    """ComfyUI's VAE object around a SeedVR2 network of few channels."""
    import comfy.ldm.seedvr.constants as constants
    import comfy.ldm.seedvr.vae as module

    from fastdiffusers.nodes.host import core_changes

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(mode=False):
        for home in (constants, module):
            patch.setattr(home, "BYTEDANCE_BLOCK_OUT_CHANNELS", (32, 32, 32, 32))
        # What a new network of the class is made of, which others may have asked for at full size.
        patch.setattr(core_changes, "_built", WeakKeyDictionary())
        network = module.VideoAutoencoderKLWrapper()
        for parameter in network.parameters():
            parameter.data.normal_(std=parameter[0].numel() ** -0.5) if parameter.ndim > 1 else parameter.data.fill_(
                0.1
            )
        vae = core.sd.VAE(sd=dict(network.state_dict()), dtype=torch.float32)
        assert type(vae.first_stage_model) is module.VideoAutoencoderKLWrapper
        yield vae


@pytest.fixture
def vae(loaded: Any) -> Any:
    return fresh(loaded)


def fresh(loaded: Any) -> Any:
    """The same object around its own copy of the network."""
    vae = copy.copy(loaded)
    with torch.inference_mode(mode=False):
        vae.first_stage_model = copy.deepcopy(loaded.first_stage_model)
    vae.patcher = copy.copy(loaded.patcher)
    vae.patcher.model = vae.first_stage_model
    vae.format_encoded = vae.first_stage_model.comfy_format_encoded
    return vae


def both_decodes(vae: Any) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Frames of ComfyUI's node and of this pack's, and what the report notes."""
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices

    samples = torch.randn(1, 16, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    own, report = vae_engines.decode(vae, {"samples": samples.clone()}, VaeChoices(tiling="whole"), SILENT)
    return sys.modules["nodes"].VAEDecode().decode(vae, {"samples": samples})[0], own.flatten(0, 1), report.notes


def both_encodes(vae: Any) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    from fastdiffusers.nodes import vae_engines
    from fastdiffusers.nodes.vae_choices import VaeChoices

    pixels = torch.rand(5, 24, 32, 3, generator=torch.Generator().manual_seed(1))
    own, report = vae_engines.encode(vae, pixels.clone(), VaeChoices(tiling="whole"), SILENT)
    return sys.modules["nodes"].VAEEncode().encode(vae, pixels)[0]["samples"], own["samples"], report.notes


def recognised(notes: list[str]) -> bool:
    return any("recognised as a causal" in note for note in notes)


def of_vae(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """A function that the object holds, replaced on a copy of it."""

    def apply(vae: Any, patch: pytest.MonkeyPatch) -> Any:
        other = copy.copy(vae)
        own = getattr(vae, name)
        setattr(other, name, lambda tensor: change(own(tensor)))
        return other

    return apply


def of_class(owner: str, name: str, *, wraps: bool = False) -> Change:
    """A method, or a function of the module, whose results are halved."""

    def apply(vae: Any, patch: pytest.MonkeyPatch) -> Any:
        import comfy.ldm.seedvr.vae as module

        home = getattr(module, owner) if owner else module
        own = getattr(home, name)
        halved = lambda *given, **how: own(*given, **how) * 0.5
        patch.setattr(home, name, functools.wraps(own)(halved) if wraps else halved)
        return vae

    return apply


def of_core(name: str) -> Change:
    """A method of `comfy.sd.VAE` itself, wrapped as a decorator does it."""

    def apply(vae: Any, patch: pytest.MonkeyPatch) -> Any:
        own: Any = getattr(type(vae), name)
        halved = functools.wraps(own)(lambda *given, **how: own(*given, **how) * 0.5)
        patch.setattr(type(vae), name, halved)
        return vae

    return apply


def of_activations(vae: Any, patch: pytest.MonkeyPatch) -> Any:
    own = torch.nn.SiLU.forward
    patch.setattr(torch.nn.SiLU, "forward", lambda self, x: own(self, x) * 0.5)
    return vae


def of_network(change: Callable[[Any], None]) -> Change:
    def apply(vae: Any, patch: pytest.MonkeyPatch) -> Any:
        change(vae.first_stage_model)
        return vae

    return apply


def hook(network: Any, part: str) -> None:
    getattr(network, part).register_forward_hook(lambda _module, _given, made: made * 0.5)


def exchange_activations(network: Any) -> None:
    network.decoder.conv_act, network.encoder.conv_act = torch.nn.ReLU(), torch.nn.ReLU()


def method_of_object(network: Any, name: str) -> None:
    own = getattr(network, name)
    network.__dict__[name] = lambda *given, **how: own(*given, **how) * 0.5


DECODE: dict[str, Change] = {
    "process_output": of_vae("process_output", lambda images: images.div_(4)),
    "process_output of another order": of_vae("process_output", lambda images: images.copy_(images.flip(1))),
    "decode of the class": of_class("VideoAutoencoderKLWrapper", "decode"),
    "the same, as a decorator": of_class("VideoAutoencoderKLWrapper", "decode", wraps=True),
    "forward of the decoder": of_class("Decoder3D", "forward"),
    "the same as a decorator": of_class("Decoder3D", "forward", wraps=True),
    "a method of its base": of_class("VideoAutoencoderKL", "slicing_decode"),
    "a function of the module": of_class("", "causal_norm_wrapper"),
    "a block's convolution": of_class("InflatedCausalConv3d", "forward"),
    "decode of ComfyUI's class": of_core("decode"),
    "an activation of torch's": of_activations,
    "a hook": of_network(lambda network: hook(network, "decoder")),
    "another activation": of_network(exchange_activations),
    "a method of the object": of_network(lambda network: method_of_object(network, "_decode")),
    "epsilon of a norm": of_network(lambda network: setattr(network.decoder.conv_norm_out, "eps", 0.5)),
}
ENCODE: dict[str, Change] = {
    "process_input": of_vae("process_input", lambda images: images / 4),
    "format_encoded": of_vae("format_encoded", lambda latent: latent * 2),
    "encode of the class": of_class("VideoAutoencoderKL", "slicing_encode"),
    "forward of the encoder": of_class("Encoder3D", "forward", wraps=True),
    "encode of ComfyUI's class": of_core("encode"),
    "a hook": of_network(lambda network: hook(network, "encoder")),
    "another activation": of_network(exchange_activations),
    "a method of the object": of_network(lambda network: method_of_object(network, "_encode")),
}


def test_an_unchanged_one_runs_through_this_pack_s_networks(vae: Any) -> None:
    for core_s, own, notes in (both_decodes(vae), both_encodes(vae)):
        assert recognised(notes)
        assert torch.allclose(core_s, own, atol=1e-3)


def test_what_other_libraries_add_to_torch_s_classes_changes_nothing(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "smart_apply", lambda self: None, raising=False)  # as transformers does
    assert recognised(both_decodes(vae)[2])


@pytest.mark.parametrize("name", DECODE)
@pytest.mark.parametrize("decoded_before", [True, False])
def test_what_other_nodes_changed_is_decoded_as_by_comfyui(
    vae: Any, name: str, decoded_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoded_before:
        both_decodes(vae)
    plain = both_decodes(vae)[0]
    core_s, own, notes = both_decodes(DECODE[name](vae, monkeypatch))
    assert torch.allclose(core_s, own, atol=1e-5), name
    assert not torch.allclose(core_s, plain, atol=1e-3)
    assert any("another node has changed this VAE" in note for note in notes)


@pytest.mark.parametrize("name", ENCODE)
def test_what_other_nodes_changed_is_encoded_as_by_comfyui(
    vae: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = both_encodes(vae)[0]
    core_s, own, _ = both_encodes(ENCODE[name](vae, monkeypatch))
    assert torch.allclose(core_s, own, atol=1e-5), name
    assert not torch.allclose(core_s, plain, atol=1e-3)


@pytest.mark.parametrize("through_data", [True, False])
@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_weights_changed_in_place_and_back(vae: Any, part: str, through_data: bool) -> None:
    both = both_decodes if part == "decoder" else both_encodes
    plain, own, _ = both(vae)
    parameters = list(getattr(vae.first_stage_model, part).conv_out.parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            (parameter.data if through_data else parameter).mul_(0.3)
    core_s, changed, notes = both(vae)
    assert recognised(notes)
    assert torch.allclose(core_s, changed, atol=1e-3)
    assert not torch.allclose(changed, own, atol=1e-2)
    with torch.no_grad():
        for parameter, before in zip(parameters, kept, strict=True):
            parameter.copy_(before)
    core_s, back, _ = both(vae)
    assert torch.equal(core_s, plain)
    assert torch.equal(back, own)


def test_a_change_of_order_among_weights_is_seen(vae: Any) -> None:
    both_decodes(vae)
    weight = vae.first_stage_model.decoder.conv_in.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0, 1, 2, 3, 4).clone())
    core_s, own, _ = both_decodes(vae)
    assert torch.allclose(core_s, own, atol=1e-3)


def test_another_dtype_of_the_same_network(vae: Any) -> None:
    before = both_decodes(vae)[1]
    vae.first_stage_model.to(torch.bfloat16)
    vae.vae_dtype = torch.bfloat16
    core_s, own, notes = both_decodes(vae)
    assert recognised(notes)
    assert torch.allclose(core_s, own, atol=0.05)
    assert not torch.equal(own, before)

"""Fused projections on real pipelines: the same picture, no second copy of a weight, and undone bit for bit."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
import torch._dynamo
from torch import nn

from fastdiffusers.cli import main
from fastdiffusers.comparison.choices import CHOICES, TRIED_BY_ALL, settings_of
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations import attention, offload, projections
from fastdiffusers.optimizations.apply import active, apply, apply_to_vae, revert
from fastdiffusers.optimizations.components import attention_layers, denoisers
from fastdiffusers.optimizations.lora_factors import Factors
from fastdiffusers.optimizations.lora_layers import LoraBranches
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading.loader import resolve
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

CPU = torch.device("cpu")
LAYERS = {"flux": 4, "flux2-klein": 2, "wan22-t2v": 8, "wan22-i2v": 8}
"""Families with a path for fused projections, and how many attention layers of theirs can be fused."""
OTHERS = {
    "sdxl": "AttnProcessor2_0",
    "sd3": "JointAttnProcessor2_0",
    "qwenimage": "QwenDoubleStreamAttnProcessor2_0",
    "zimage": "ZSingleStreamAttnProcessor",
}
"""Families without one, and the processor that has none."""
PLAIN = OptimizationSettings.plain(memory_mode="gpu")
FUSED = OptimizationSettings.plain(memory_mode="gpu", fused_projections="on")


def compiled(backend, fused="on"):
    how = CompileSettings(backend=backend, headroom_gib=0.0)
    return OptimizationSettings.plain(torch_compile="on", compile=how, fused_projections=fused)


@pytest.fixture
def multiplied(monkeypatch):
    """How often linear layers of each name ran, once `watch` has given every layer of a pipeline its name."""
    seen, names = Counter(), weakref.WeakKeyDictionary()
    forward = nn.Linear.forward

    def counting(layer, hidden):
        seen[names.get(layer, "")] += 1
        return forward(layer, hidden)

    def watch(pipeline):
        seen.clear()
        for model in denoisers(pipeline).values():
            for path, module in model.named_modules():
                names[module] = path.rpartition(".")[2]
        return seen

    monkeypatch.setattr(nn.Linear, "forward", counting)
    return watch


def weights(pipeline):
    """Everything that undoing has to give back, by name and in order; bits are compared as integers."""
    found = []
    for name, model in denoisers(pipeline).items():
        found += [(name, path, type(module)) for path, module in model.named_modules()]
        found += [(name, path, id(p), p.stride(), p.requires_grad) for path, p in model.named_parameters()]
        found += [(name, path, sorted(vars(module))) for path, module in model.named_modules() if path]
        for key, value in model.state_dict().items():
            found.append((name, key, value.dtype, value.device, value.shape, value.view(torch.uint8).tolist()))
    return found


def stored(pipeline):
    """Bytes of all weights of the denoisers, storage by storage: views count as what they keep in memory."""
    tensors = [t for model in denoisers(pipeline).values() for t in (*model.parameters(), *model.buffers())]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def fused_layers(pipeline):
    layers = [layer for model in denoisers(pipeline).values() for layer in attention_layers(model)]
    return [layer for layer in layers if getattr(layer, "fused_projections", False)]


def run(pipeline, family, settings, picture):
    report = apply(pipeline, settings)
    with active(pipeline, settings, report):
        return picture(pipeline, family), report


@pytest.mark.parametrize("family", LAYERS)
def test_the_picture_is_the_same_and_the_products_are_fewer(family, tiny_pipeline, picture, multiplied):
    pipeline = tiny_pipeline(family)
    seen = multiplied(pipeline)
    plain = picture(pipeline, family, steps=4)
    separately = Counter(seen)

    record = projections.use(pipeline, "on")
    seen = multiplied(pipeline)
    result = picture(pipeline, family, steps=4)

    assert (record.reason, record.failed) == ("", False)
    assert len(fused_layers(pipeline)) == LAYERS[family]
    torch.testing.assert_close(result, plain, atol=1e-5, rtol=0)
    # A fused layer runs where its parts ran; query alone is left, of cross-attention.
    assert seen["to_qkv"] + seen["to_kv"] == separately["to_k"] > 0
    assert seen["to_q"] == seen["to_kv"]
    assert seen["to_added_qkv"] == separately["add_k_proj"]
    assert not any(seen[name] for name in ("to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"))
    assert sum(separately.values()) > sum(seen.values())


def test_both_experts_of_wan_are_fused(tiny_pipeline):
    record = projections.use(tiny_pipeline("wan22-t2v"), "on")
    assert record.applied == "transformer (4 attention layers) + transformer_2 (4 attention layers)"


def test_the_image_projections_of_wan_are_fused_too():
    from diffusers.models.transformers.transformer_wan import WanAttention

    class Pipeline:
        def __init__(self, model):
            self.components = {"transformer": nn.ModuleList([model])}

    torch.manual_seed(0)
    layer = WanAttention(16, heads=2, dim_head=8, added_kv_proj_dim=16, cross_attention_dim_head=8)
    layer.set_processor(WanAttention._default_processor_cls())
    hidden, text = torch.randn(1, 6, 16), torch.randn(1, 512 + 3, 16)
    with torch.no_grad():
        plain = layer(hidden, text)
        assert projections.use(Pipeline(layer), "on").applied == "transformer (1 attention layers)"
        assert {"to_kv", "to_added_kv"} <= dict(layer.named_children()).keys()
        torch.testing.assert_close(layer(hidden, text), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", LAYERS)
def test_undoing_gives_back_every_bit_under_its_name(family, tiny_pipeline, picture):
    pipeline = tiny_pipeline(family)
    for model in denoisers(pipeline).values():
        for number, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(number % 2 == 0)
    plain, before = picture(pipeline, family), weights(pipeline)
    projections.use(pipeline, "on")
    assert weights(pipeline) != before
    projections.use(pipeline, "off")
    assert weights(pipeline) == before
    assert torch.equal(picture(pipeline, family), plain)


@pytest.mark.parametrize("family", LAYERS)
def test_no_weight_is_in_memory_twice(family, tiny_pipeline, monkeypatch):
    pipeline = tiny_pipeline(family)
    before, between = stored(pipeline), []

    def noted(change):
        def run(layer, *arguments):
            change(layer, *arguments)
            between.append(stored(pipeline))

        return run

    for name in ("__init__", "undo"):  # after each layer, so that only the one at hand is ever there twice
        monkeypatch.setattr(projections._FusedAttention, name, noted(getattr(projections._FusedAttention, name)))
    projections.use(pipeline, "on")
    projections.use(pipeline, "off")
    assert between == [before] * 2 * LAYERS[family]


def test_moving_the_model_moves_every_weight_once(tiny_pipeline, picture):
    """`.to` makes new storages: a link between the layers that lived in a storage would be lost, and doubled."""
    pipeline, expected = tiny_pipeline("flux"), tiny_pipeline("flux")
    before = stored(pipeline)
    projections.use(pipeline, "on")
    pipeline.transformer.to(torch.float64)
    assert stored(pipeline) == 2 * before
    pipeline.transformer.to(torch.float32)
    assert stored(pipeline) == before
    assert torch.equal(picture(pipeline, "flux"), picture(expected, "flux"))
    pipeline.transformer.to(torch.bfloat16)
    expected.transformer.to(torch.bfloat16)
    projections.use(pipeline, "off")
    state = pipeline.transformer.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in expected.transformer.state_dict().items())


@pytest.mark.parametrize(("family", "processor"), OTHERS.items())
def test_models_without_a_path_for_them_are_left_alone(family, processor, tiny_pipeline, picture):
    pipeline = tiny_pipeline(family)
    plain, before = picture(pipeline, family), weights(pipeline)
    record = projections.use(pipeline, "on")
    assert (record.applied, record.failed) == ("off", True)
    assert f"{processor} has no path for fused ones" in record.reason
    assert weights(pipeline) == before
    assert torch.equal(picture(pipeline, family), plain)


def test_a_class_that_says_no_is_believed(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    for layer in attention_layers(pipeline.transformer):
        layer._supports_qkv_fusion = False
    assert "FluxAttnProcessor has no path" in projections.use(pipeline, "on").reason


def test_a_processor_that_ignores_the_flag_is_left_alone():
    """diffusers' own call fuses these too: the weights would be there twice, and never used."""
    from diffusers.models.transformers.transformer_ltx import LTXAttention

    layer = LTXAttention(16, heads=2, kv_heads=2, dim_head=8)
    assert layer._supports_qkv_fusion
    assert projections._refuse(layer) == "LTXVideoAttnProcessor has no path for fused ones"


def spoil_class(layer):
    class Quantized(nn.Linear):
        """As bitsandbytes and GGUF have their own."""

    layer.to_k.__class__ = Quantized


def spoil_weight(layer):
    class QuantizedTensor(torch.Tensor):
        """As torchao's weights are."""

    layer.to_k.weight = nn.Parameter(layer.to_k.weight.data.as_subclass(QuantizedTensor))


def spoil_branch(layer):
    LoraBranches(layer).make_room({"to_v": [Factors(torch.ones(2, 32), torch.ones(32, 2))]})


SPOILED = {
    "another class": (spoil_class, "Quantized layers"),
    "another kind of tensor": (spoil_weight, "of QuantizedTensor"),
    "fp8": (lambda layer: layer.to_k.to(torch.float8_e4m3fn), "quantized (fp8)"),
    "a LoRA of this pack": (spoil_branch, "a LoRA is on them"),
    "a hook": (lambda layer: layer.to_v.register_forward_hook(lambda *_: None), "hooks are on them"),
    "a hook of accelerate": (lambda layer: setattr(layer.to_q, "_hf_hook", object()), "hooks are on them"),
    "a part is missing": (lambda layer: setattr(layer, "add_v_proj", None), "one of them is missing"),
    "another type": (lambda layer: layer.to_k.to(torch.float64), "differ in shape, type or place"),
    "another shape": (lambda layer: setattr(layer, "to_v", nn.Linear(32, 64)), "differ in shape, type or place"),
    "no bias": (lambda layer: setattr(layer.to_q, "bias", None), "differ in shape, type or place"),
    "another order": (lambda layer: setattr(layer.to_q.weight, "data", layer.to_q.weight.t()), "row by row"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_layers_that_are_more_than_a_matrix_stay_separate(case, tiny_pipeline):
    spoil, reason = SPOILED[case]
    pipeline = tiny_pipeline("flux")
    layer = pipeline.transformer.transformer_blocks[0].attn
    assert layer.to_q.weight.shape == (32, 32)
    spoil(layer)
    record = projections.use(pipeline, "on")
    assert record.applied == "transformer (3 attention layers)"
    assert not record.failed
    assert record.reason.startswith("separate in 1 of 4 attention layers: ")
    assert reason in record.reason
    assert layer not in fused_layers(pipeline)
    assert not hasattr(layer, "to_qkv")


@pytest.mark.parametrize("scheme", ["sdnq-int8", "torchao-int8"])
def test_quantized_models_stay_as_they_are(scheme, tiny_pipeline, picture):
    from fastdiffusers.optimizations.quantization import quantize

    pytest.importorskip(scheme.split("-")[0])
    pipeline = tiny_pipeline("flux")
    pipeline.to(torch.bfloat16)
    quantize.quantize_loaded(pipeline, scheme, minimum_numel=256)
    plain = picture(pipeline, "flux")
    record = projections.use(pipeline, "on")
    assert (record.applied, record.failed) == ("off", True)
    assert "quantized" in record.reason
    assert torch.equal(picture(pipeline, "flux"), plain)


def test_layers_with_an_adapter_of_peft_stay_separate(tiny_pipeline, picture):
    from peft import LoraConfig

    pipeline = tiny_pipeline("flux")
    config = LoraConfig(r=2, target_modules=r"transformer_blocks\.\d\.attn\.to_q", init_lora_weights=False)
    pipeline.transformer.add_adapter(config, "one")
    plain = picture(pipeline, "flux")
    record = projections.use(pipeline, "on")
    assert record.reason == "separate in 2 of 4 attention layers: a LoRA is on them"
    torch.testing.assert_close(picture(pipeline, "flux"), plain, atol=1e-5, rtol=0)


def test_an_adapter_that_comes_later_takes_the_fusing_back(tiny_pipeline, picture):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["to_q", "add_v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    expected = tiny_pipeline("flux")
    expected.transformer.add_adapter(config, "one")
    torch.manual_seed(0)
    pipeline = tiny_pipeline("flux")
    projections.use(pipeline, "on")
    pipeline.transformer.add_adapter(config, "one")
    record = projections.use(pipeline, "on")
    assert record.reason == "separate in 4 of 4 attention layers: a LoRA is on them"
    assert record.failed
    assert torch.equal(picture(pipeline, "flux"), picture(expected, "flux"))


def test_what_diffusers_has_fused_is_left_to_it(tiny_pipeline, picture):
    pipeline = tiny_pipeline("flux")
    pipeline.transformer.fuse_qkv_projections()
    plain, before = picture(pipeline, "flux"), weights(pipeline)
    record = projections.use(pipeline, "on")
    assert record.reason == "separate in 4 of 4 attention layers: something else has fused them"
    projections.use(pipeline, "off")
    assert weights(pipeline) == before
    assert torch.equal(picture(pipeline, "flux"), plain)

    pipeline.transformer.unfuse_qkv_projections()  # leaves a flag on every layer, which has to stay
    before = weights(pipeline)
    assert projections.use(pipeline, "on").reason == ""
    projections.use(pipeline, "off")
    assert weights(pipeline) == before


def test_out_of_memory_leaves_the_rest_separate(tiny_pipeline, picture, monkeypatch):
    pipeline = tiny_pipeline("flux")
    plain, before = picture(pipeline, "flux"), weights(pipeline)
    stack, calls = projections._stack, []

    def tight(parts):
        calls.append(parts)
        if len(calls) > 3:  # the first layer takes two, and the second one of its two
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stack(parts)

    monkeypatch.setattr(projections, "_stack", tight)
    record = projections.use(pipeline, "on")
    assert record.applied == "transformer (1 attention layers)"
    assert record.reason == "separate in 3 of 4 attention layers: there is no room to fuse them"
    torch.testing.assert_close(picture(pipeline, "flux"), plain, atol=1e-5, rtol=0)
    projections.use(pipeline, "off")
    assert weights(pipeline) == before


def test_without_room_to_undo_what_is_fused_still_works(tiny_pipeline, picture, monkeypatch):
    pipeline = tiny_pipeline("flux")
    plain, before = picture(pipeline, "flux"), weights(pipeline)
    projections.use(pipeline, "on")
    calls, rows = [], projections._FusedAttention._rows

    def tight(layer):
        calls.append(layer)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows(layer)

    monkeypatch.setattr(projections._FusedAttention, "_rows", tight)
    with pytest.raises(torch.OutOfMemoryError):
        projections.restore(pipeline)
    assert len(fused_layers(pipeline)) == 2
    torch.testing.assert_close(picture(pipeline, "flux"), plain, atol=1e-5, rtol=0)
    monkeypatch.undo()
    projections.restore(pipeline)
    assert weights(pipeline) == before


@pytest.mark.parametrize("family", ["flux", "wan22-t2v"])
def test_it_is_switched_with_everything_else(family, tiny_pipeline, picture):
    """Through the front door, under every order of memory modes and fusing, and back to the model as loaded."""
    pipeline = tiny_pipeline(family)
    plain, before = picture(pipeline, family), weights(pipeline)
    grouped = OptimizationSettings.plain(memory_mode="group_offload_block", fused_projections="on")
    leaves = OptimizationSettings.plain(memory_mode="group_offload_leaf", fused_projections="on")
    walk = [PLAIN, FUSED, PLAIN, FUSED, grouped, FUSED, leaves, grouped, PLAIN, leaves, FUSED, FUSED]
    for settings in walk:
        result, report = run(pipeline, family, settings, picture)
        record = report["fused_projections"]
        torch.testing.assert_close(result, plain, atol=1e-5, rtol=0)
        if settings is PLAIN:
            assert (record.applied, record.failed) == ("off", False)
        elif settings is FUSED:
            assert (record.reason, record.failed) == ("", False)
            assert len(fused_layers(pipeline)) == LAYERS[family]
        else:
            assert (record.applied, record.failed) == ("off", True)
            assert "group offloading" in record.reason
            assert fused_layers(pipeline) == []
    revert(pipeline)
    assert weights(pipeline) == before
    assert torch.equal(picture(pipeline, family), plain)


def test_a_decode_by_itself_leaves_them_unless_its_memory_mode_cannot(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    apply(pipeline, FUSED)
    apply_to_vae(pipeline, PLAIN)
    assert len(fused_layers(pipeline)) == 4
    apply_to_vae(pipeline, OptimizationSettings.plain(memory_mode="group_offload_leaf"))
    assert fused_layers(pipeline) == []


def test_auto_and_off_say_why_nothing_is_fused(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    assert OptimizationSettings().fused_projections == "off"
    records = [projections.use(pipeline, choice) for choice in ("auto", "off")]
    assert [(record.applied, record.reason, record.failed) for record in records] == [
        ("off", "off until it was measured to pay", False),
        ("off", "", False),
    ]
    with pytest.raises(InputError, match="fused_projections"):
        OptimizationSettings(fused_projections="maybe")


def test_model_offload_moves_what_is_fused(tiny_pipeline, picture):
    """accelerate's hooks work from the CPU to the CPU too, so that they can be seen without a card."""
    pipeline = tiny_pipeline("wan22-t2v")
    plain, before, size = picture(pipeline, "wan22-t2v"), weights(pipeline), stored(pipeline)
    offload._place(pipeline, "model_offload", CPU)
    offload._placed[pipeline] = offload._Placement("model_offload", CPU)
    assert projections.use(pipeline, "on").reason == ""
    for _ in range(2):
        torch.testing.assert_close(picture(pipeline, "wan22-t2v"), plain, atol=1e-5, rtol=0)
    assert stored(pipeline) == size
    projections.use(pipeline, "off")
    assert torch.equal(picture(pipeline, "wan22-t2v"), plain)
    projections.use(pipeline, "on")
    revert(pipeline)
    assert weights(pipeline) == before


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("family", ["flux", "wan22-t2v"])
def test_compiled_blocks_follow(family, backend, tiny_pipeline, picture):
    pipeline = tiny_pipeline(family)
    plain = picture(pipeline, family)
    for fused in ("off", "on", "off", "on"):
        result, report = run(pipeline, family, compiled(backend, fused), picture)
        assert not report["torch_compile"].failed, report["torch_compile"].reason
        torch.testing.assert_close(result, plain, atol=1e-4, rtol=0)
    with torch.no_grad():
        for layer in fused_layers(pipeline):
            next(child for name, child in layer.named_children() if name in projections.PARTS).weight.mul_(3)
    changed, report = run(pipeline, family, compiled(backend), picture)
    assert not report["torch_compile"].failed
    assert (changed - plain).abs().max() > 1e-3, "compiled code still multiplies with the separate weights"


def test_switching_back_and_forth_compiles_each_way_once(tiny_pipeline, picture):
    pipeline = tiny_pipeline("flux")
    results = {fused: run(pipeline, "flux", compiled("eager", fused), picture)[0] for fused in ("off", "on")}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for fused in ("off", "on", "off"):
            result, report = run(pipeline, "flux", compiled("eager", fused), picture)
            assert not report["torch_compile"].failed, report["torch_compile"].reason
            assert torch.equal(result, results[fused])


@pytest.mark.parametrize("family", ["flux", "flux2-klein", "wan22-t2v"])
def test_another_attention_kernel_works_with_fused_projections(family, tiny_pipeline, picture, kernels, multiplied):
    pipeline = tiny_pipeline(family)
    plain = picture(pipeline, family)
    for choice in ("sdpa", "xformers", "flash", "sdpa"):
        settings = OptimizationSettings.plain(attention=choice, fused_projections="on")
        apply(pipeline, settings)
        seen = multiplied(pipeline)
        kernels.calls.clear()
        result, report = run(pipeline, family, settings, picture)
        assert report["attention"].applied == choice
        assert report["fused_projections"].reason == ""
        assert bool(kernels.calls) == (choice != "sdpa")
        assert not seen["to_k"]
        torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)


def test_a_kernel_that_fails_gives_way_while_they_are_fused(tiny_pipeline, picture, kernels):
    pipeline = tiny_pipeline("flux")
    plain = picture(pipeline, "flux")
    settings = OptimizationSettings.plain(attention="xformers", fused_projections="on")
    report = apply(pipeline, settings)
    kernels.fail = RuntimeError("illegal instruction")
    with active(pipeline, settings, report):
        result = picture(pipeline, "flux")
    assert report["attention"].applied == "sdpa"
    torch.testing.assert_close(result, plain, atol=1e-5, rtol=0)
    assert len(fused_layers(pipeline)) == 4
    attention.restore(pipeline)


def test_a_processor_without_a_path_that_comes_later_takes_the_fusing_back(tiny_pipeline):
    class Own:
        """Somebody's own processor."""

        def __call__(self, attn, hidden_states):
            return attn.to_q(hidden_states)

    pipeline = tiny_pipeline("flux")
    before = [value.clone() for value in pipeline.transformer.state_dict().values()]
    projections.use(pipeline, "on")
    layer = pipeline.transformer.transformer_blocks[0].attn
    layer.set_processor(Own())
    record = projections.use(pipeline, "on")
    assert record.reason == "separate in 1 of 4 attention layers: Own has no path for fused ones"
    assert layer.to_q.weight.shape == (32, 32)
    projections.restore(pipeline)
    after = list(pipeline.transformer.state_dict().values())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_cached_pipeline_is_switched_in_place():
    handle = PipelineHandle(resolve("tiny:flux", device="cpu", dtype="float32"))
    request = SampleRequest("a red fox", steps=2, width=64, height=64, seed=3, decode=False)
    try:
        plain = generate(handle, request, PLAIN).latent
        with CACHE.use(handle.key) as loaded:
            transformer = loaded.pipeline.transformer
        for settings in (FUSED, PLAIN, FUSED):
            result = generate(handle, request, settings)
            torch.testing.assert_close(result.latent, plain, atol=1e-4, rtol=0)
            applied = result.report["fused_projections"].applied
            assert applied == ("off" if settings is PLAIN else "transformer (4 attention layers)")
        with CACHE.use(handle.key) as loaded:
            assert loaded.pipeline.transformer is transformer
    finally:
        CACHE.clear()


def test_it_can_be_compared_but_is_not_tried_unasked():
    base = OptimizationSettings.plain()
    assert settings_of("fused+compile", base).fused_projections == "on"
    assert CHOICES["fused"].lossless
    assert "fused" not in TRIED_BY_ALL


def test_the_command_line_switches_it(tmp_path):
    arguments = ["generate", "--model", "tiny:flux", "--prompt", "a", "--steps", "1", "--width", "64", "--height", "64"]
    report = tmp_path / "report.json"
    target = ["--output", str(tmp_path / "picture.png"), "--report", str(report), "--fused-projections", "on"]
    try:
        assert main([*arguments, *target]) == 0
    finally:
        CACHE.clear()
    assert "transformer (4 attention layers)" in report.read_text()


def test_bookkeeping_keeps_no_model_alive(tiny_pipeline):
    pipeline = tiny_pipeline("flux")
    projections.use(pipeline, "on")
    reference = weakref.ref(pipeline.transformer)
    del pipeline
    gc.collect()
    assert reference() is None

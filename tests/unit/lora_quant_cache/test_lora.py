"""LoRAs on tiny pipelines: the same result as diffusers gives, changed in place, taken off without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.pipelines.lora import active_loras, set_loras
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, LoraSpec

LORA_FAMILIES = ("flux", "flux-kontext", "flux2-klein", "sdxl", "sd3", "qwenimage", "zimage", "wan22-t2v")


def loaded(pipeline: Any, lora_rank: int = 0) -> LoadedPipeline:
    key = LoadKey("tiny:test", device="cpu", dtype="float32", lora_rank=lora_rank)
    return LoadedPipeline(key, pipeline, family_of(pipeline), torch.device("cpu"), torch.float32)


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{n}.{k}": v.clone() for n, model in models.items() for k, v in model.state_dict().items()}


def module_types(pipeline: Any) -> list[tuple[str, type]]:
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return [(name, type(module)) for model in models for name, module in model.named_modules()]


@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_it_gives_what_diffusers_gives_and_comes_off_exactly(
    family: str, tiny_pipeline: Callable, make_lora: Callable, run: Callable
) -> None:
    path = make_lora(family, rank=4, alpha=2)
    reference = tiny_pipeline(family)
    reference.load_lora_weights(str(path), adapter_name="reference")
    if family.startswith("wan"):
        reference.load_lora_weights(str(path), adapter_name="second", load_into_transformer_2=True)
        reference.transformer_2.set_adapters(["second"], [0.7])
        reference.transformer.set_adapters(["reference"], [0.7])
    else:
        reference.set_adapters(["reference"], [0.7])
    expected = run(reference)

    pipeline = tiny_pipeline(family)
    plain, before, types = run(pipeline), weights(pipeline), module_types(pipeline)
    (record,) = set_loras(loaded(pipeline), (LoraSpec(str(path), 0.7),))
    result = run(pipeline)
    assert not record.failed
    assert (result - plain).abs().max() > 1e-3
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)

    set_loras(loaded(pipeline), ())
    assert torch.equal(run(pipeline), plain)
    assert module_types(pipeline) == types
    after = weights(pipeline)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_several_at_once_are_the_sum_of_their_updates(
    tiny_pipeline: Callable, make_lora: Callable, run: Callable
) -> None:
    first, second = make_lora("flux", rank=4, seed=1), make_lora("flux", rank=8, seed=2)
    reference = tiny_pipeline("flux")
    reference.load_lora_weights(str(first), adapter_name="first")
    reference.load_lora_weights(str(second), adapter_name="second")
    reference.set_adapters(["first", "second"], [0.5, -0.25])

    pipeline = tiny_pipeline("flux")
    (record,) = set_loras(loaded(pipeline), (LoraSpec(str(first), 0.5), LoraSpec(str(second), -0.25)))
    torch.testing.assert_close(run(pipeline), run(reference), rtol=1e-3, atol=1e-4)
    assert "rank 12" in record.applied


def test_strengths_and_files_change_without_recompiling(
    tiny_pipeline: Callable, make_lora: Callable, run: Callable, fresh_dynamo: None
) -> None:
    files = [make_lora("flux", rank=rank, seed=seed) for seed, rank in enumerate((8, 8, 4))]
    pipeline = tiny_pipeline("flux")
    entry = loaded(pipeline)
    set_loras(entry, (LoraSpec(str(files[0]), 1.0),))
    eager = {}
    for file in files:
        for strength in (1.0, 0.3, -0.5, 0.0):
            set_loras(entry, (LoraSpec(str(file), strength),))
            eager[file, strength] = run(pipeline)
    assert len({round(float(result.double().sum()), 6) for result in eager.values()}) == 10  # strength 0 is one result

    pipeline.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    set_loras(entry, (LoraSpec(str(files[0]), 1.0),))
    compiled = [run(pipeline)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for (file, strength), expected in eager.items():
            (record,) = set_loras(entry, (LoraSpec(str(file), strength),))
            assert "layers added" not in record.cost
            compiled.append(run(pipeline))
            assert torch.equal(compiled[-1], expected)
        # Two that fit into the room of one, and back.
        set_loras(entry, (LoraSpec(str(files[0]), 0.5), LoraSpec(str(files[1]), 0.5)))
        two = run(pipeline)
        set_loras(entry, (LoraSpec(str(files[0]), 1.0),))
        assert torch.equal(run(pipeline), compiled[0])
    assert not torch.equal(two, compiled[0])


def test_the_first_and_the_last_lora_reach_compiled_blocks(
    tiny_pipeline: Callable, make_lora: Callable, run: Callable, fresh_dynamo: None
) -> None:
    pipeline = tiny_pipeline("flux")
    pipeline.transformer.compile_repeated_blocks(backend="eager")
    plain = run(pipeline)
    set_loras(loaded(pipeline), (LoraSpec(str(make_lora("flux"))),))
    assert (run(pipeline) - plain).abs().max() > 1e-3
    set_loras(loaded(pipeline), ())
    assert torch.equal(run(pipeline), plain)


def test_a_bad_file_leaves_the_former_state(
    tiny_pipeline: Callable, make_lora: Callable, run: Callable, tmp_path: Path
) -> None:
    good, foreign = make_lora("flux"), make_lora("sd3")
    wrong_shape = tmp_path / "wrong_shape.safetensors"
    tensors = load_file(good)
    save_file({key: torch.cat([value, value], dim=-1) for key, value in tensors.items()}, wrong_shape)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(good.read_bytes()[:-100])
    pipeline = tiny_pipeline("flux")
    entry = loaded(pipeline)
    a = (LoraSpec(str(good), 0.8),)
    set_loras(entry, a)
    expected = run(pipeline)
    for bad, words in ((foreign, "FluxPipeline"), (wrong_shape, "inputs"), (torn, "unfinished")):
        with pytest.raises(InputError, match=words) as caught:
            set_loras(entry, (LoraSpec(str(good), 0.1), LoraSpec(str(bad))))
        assert "\n" not in str(caught.value)
        assert active_loras(entry) == a
        assert torch.equal(run(pipeline), expected)
    assert set_loras(entry, a)[0].cost == "as before"
    assert torch.equal(run(pipeline), expected)


def test_the_keys_that_do_not_match_are_named(tiny_pipeline: Callable, make_lora: Callable) -> None:
    with pytest.raises(InputError, match=r"transformer_blocks\.0\.attn|input_blocks|down_blocks") as caught:
        set_loras(loaded(tiny_pipeline("flux")), (LoraSpec(str(make_lora("sdxl"))),))
    assert "sdxl-r4-s0.safetensors" in str(caught.value)


def test_a_change_that_fails_half_way_is_taken_back(
    tiny_pipeline: Callable, make_lora: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdiffusers.optimizations import lora_layers

    first, larger = make_lora("wan22-t2v", rank=4), make_lora("wan22-t2v", rank=32)
    pipeline = tiny_pipeline("wan22-t2v")
    entry = loaded(pipeline)
    set_loras(entry, (LoraSpec(str(first)),))
    expected = run(pipeline)
    write = lora_layers.LoraBranches.write

    def fail_on_the_second_expert(branches: Any, updates: Any) -> None:
        if branches._model is pipeline.transformer_2 and any(f.rank == 32 for fs in updates.values() for f in fs):
            raise torch.OutOfMemoryError("out of memory")
        write(branches, updates)

    monkeypatch.setattr(lora_layers.LoraBranches, "write", fail_on_the_second_expert)
    with pytest.raises(torch.OutOfMemoryError):
        set_loras(entry, (LoraSpec(str(larger)),))
    assert torch.equal(run(pipeline), expected)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf])
def test_a_strength_is_a_finite_number(strength: float, tiny_pipeline: Callable, make_lora: Callable) -> None:
    entry = loaded(tiny_pipeline("flux"))
    with pytest.raises(InputError, match="strength"):
        set_loras(entry, (LoraSpec(str(make_lora("flux")), strength),))
    assert active_loras(entry) == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.safetensors", None, "cannot be read"),
        ("lora.pt", b"PK", "pickle"),
        ("lora.txt", b"text", "no .safetensors file"),
        ("lora.safetensors", b"", "empty"),
        ("garbage.safetensors", b"x" * 64, "damaged"),
    ],
)
def test_only_whole_safetensors_files_are_read(
    name: str, content: bytes | None, words: str, tmp_path: Path, tiny_pipeline: Callable
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=words) as caught:
        set_loras(loaded(tiny_pipeline("flux")), (LoraSpec(str(tmp_path / name)),))
    assert str(caught.value).startswith("lora = ")


def test_other_adapters_than_plain_lora_are_refused_by_name(
    tiny_pipeline: Callable, make_lora: Callable, tmp_path: Path
) -> None:
    tensors = load_file(make_lora("flux"))
    key = (
        next(iter(tensors)).replace(".lora_A.weight", ".lora_magnitude_vector").replace(".lora_B.weight", ".dora_scale")
    )
    save_file({**tensors, key: torch.ones(32)}, tmp_path / "dora.safetensors")
    with pytest.raises(InputError, match="DoRA"):
        set_loras(loaded(tiny_pipeline("flux")), (LoraSpec(str(tmp_path / "dora.safetensors")),))


def test_an_edited_file_is_read_again(tiny_pipeline: Callable, make_lora: Callable, run: Callable) -> None:
    path, other = make_lora("flux", seed=1, name="one.safetensors"), make_lora("flux", seed=2, name="two.safetensors")
    pipeline = tiny_pipeline("flux")
    entry = loaded(pipeline)
    spec = (LoraSpec(str(path)),)
    set_loras(entry, spec)
    before = run(pipeline)
    path.write_bytes(other.read_bytes() + b"")
    import os

    os.utime(path, ns=(1, 1))
    (record,) = set_loras(entry, spec)
    assert record.cost.startswith("exchanged in place")
    assert not torch.equal(run(pipeline), before)


def test_each_noise_expert_can_have_its_own(tiny_pipeline: Callable, make_lora: Callable, run: Callable) -> None:
    high, low = make_lora("wan22-t2v", seed=1), make_lora("wan22-t2v", seed=2)
    pipeline, reference = tiny_pipeline("wan22-t2v"), tiny_pipeline("wan22-t2v")
    reference.load_lora_weights(str(high), adapter_name="high")
    reference.load_lora_weights(str(low), adapter_name="low", load_into_transformer_2=True)
    (record,) = set_loras(loaded(pipeline), (LoraSpec(str(high), expert="high"), LoraSpec(str(low), expert="low")))
    torch.testing.assert_close(run(pipeline, 6), run(reference, 6), rtol=1e-3, atol=1e-4)
    assert "(high noise)" in record.requested
    with pytest.raises(InputError, match="expert"):
        set_loras(loaded(tiny_pipeline("flux")), (LoraSpec(str(make_lora("flux")), expert="low"),))


def test_text_encoders_take_their_part(tiny_pipeline: Callable, make_lora: Callable, run: Callable) -> None:
    path = make_lora("sdxl", parts=("", "text_encoder", "text_encoder_2"))
    reference, pipeline = tiny_pipeline("sdxl"), tiny_pipeline("sdxl")
    reference.load_lora_weights(str(path))
    set_loras(loaded(pipeline), (LoraSpec(str(path)),))
    torch.testing.assert_close(run(pipeline), run(reference), rtol=1e-3, atol=1e-4)
    assert type(pipeline.text_encoder.get_submodule(_query(pipeline.text_encoder))).__name__ == "LoraLayer"


def _query(encoder: Any) -> str:
    return next(name for name, _ in encoder.named_modules() if name.endswith("q_proj"))


def test_kohya_names_with_alphas(tiny_pipeline: Callable, make_lora: Callable, run: Callable, tmp_path: Path) -> None:
    """The form that most files for SDXL have: flat names, down and up, one alpha per layer."""
    made = load_file(make_lora("sdxl", rank=4))
    kohya = {}
    for key, value in made.items():
        stem = key.removeprefix("unet.").removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
        half = "lora_down" if "lora_A" in key else "lora_up"
        flat = "lora_unet_" + stem.replace(".", "_")
        kohya[f"{flat}.{half}.weight"] = value
        kohya[f"{flat}.alpha"] = torch.tensor(2.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    reference, pipeline = tiny_pipeline("sdxl"), tiny_pipeline("sdxl")
    reference.load_lora_weights(str(tmp_path / "kohya.safetensors"))
    set_loras(loaded(pipeline), (LoraSpec(str(tmp_path / "kohya.safetensors")),))
    torch.testing.assert_close(run(pipeline), run(reference), rtol=1e-3, atol=1e-4)
    assert not torch.equal(run(pipeline), run(tiny_pipeline("sdxl")))


def test_room_can_be_made_beforehand(tiny_pipeline: Callable, make_lora: Callable) -> None:
    entry = loaded(tiny_pipeline("flux"), lora_rank=40)
    set_loras(entry, (LoraSpec(str(make_lora("flux", rank=4))),))
    (record,) = set_loras(entry, (LoraSpec(str(make_lora("flux", rank=36))),))
    assert record.cost.startswith("exchanged in place")


@pytest.mark.parametrize("weights_dtype", ["int8", "uint4"])
def test_it_works_on_a_quantized_model(
    weights_dtype: str, tiny_pipeline: Callable, make_lora: Callable, run: Callable
) -> None:
    pytest.importorskip("sdnq")
    from fastdiffusers.optimizations.quantization.quantize import quantize_loaded

    pipeline = tiny_pipeline("flux")
    quantize_loaded(pipeline, f"sdnq-{weights_dtype}", minimum_numel=1024)
    plain = run(pipeline)
    path = str(make_lora("flux"))
    set_loras(loaded(pipeline), (LoraSpec(path),))
    with_lora = run(pipeline)
    unquantized = tiny_pipeline("flux")
    set_loras(loaded(unquantized), (LoraSpec(path),))
    effect, error = (with_lora - plain).abs().mean(), (with_lora - run(unquantized)).abs().mean()
    assert error < effect
    set_loras(loaded(pipeline), ())
    assert torch.equal(run(pipeline), plain)


def test_dropping_a_pipeline_drops_its_loras(tiny_pipeline: Callable, make_lora: Callable) -> None:
    import gc
    import weakref

    pipeline = tiny_pipeline("flux")
    entry = loaded(pipeline)
    set_loras(entry, (LoraSpec(str(make_lora("flux"))),))
    model = weakref.ref(pipeline.transformer)
    del pipeline, entry
    gc.collect()
    assert model() is None

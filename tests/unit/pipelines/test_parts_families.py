"""Models in parts, family by family: what is loaded is what the diffusers folder of the same weights holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_families import build, write
from safetensors.torch import load_file, save_file

from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.parts import DIFFUSION_MODEL, TEXT_ENCODER, VAE, kind_of_part


def resolve(files: dict[str, Path], dtype: str = "float32", **changes: Any) -> Any:
    models = [path for name, path in files.items() if name.startswith("model")]
    given: dict[str, Any] = {"text_encoders": [str(files["text"])], "vae": str(files["vae"])}
    if len(models) > 1:
        given["second_expert"] = str(models[1])
    given |= changes
    return loader.resolve(str(given.pop("model", models[0])), in_parts=True, dtype=dtype, device="cpu", **given)


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def assert_same(made: Any, expected: Any) -> None:
    """The same class, components, configurations and weights."""
    assert type(made) is type(expected)
    assert made.components.keys() == expected.components.keys()
    for name, component in expected.components.items():
        other = made.components[name]
        assert type(other) is type(component), name
        if isinstance(component, torch.nn.Module):
            ours, theirs = tensors(other), tensors(component)
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert ours[key].dtype == value.dtype, (name, key)
                assert torch.equal(ours[key], value), (name, key)
    for setting in ("boundary_ratio", "expand_timesteps", "is_distilled"):
        assert made.config.get(setting) == expected.config.get(setting)


def picture(pipeline: Any) -> np.ndarray:
    video = "Wan" in type(pipeline).__name__
    more: dict[str, Any] = {"num_frames": 5} if video else {}
    if "ImageToVideo" in type(pipeline).__name__ or "Edit" in type(pipeline).__name__:
        from PIL import Image

        more["image"] = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    if "QwenImage" in type(pipeline).__name__:
        more["negative_prompt"] = " "
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt="a fox",
        num_inference_steps=2,
        width=32,
        height=32,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
        **more,
    )
    return np.asarray(made.frames if video else made.images)


@pytest.mark.parametrize(
    ("family", "precision", "encoder", "dtype"),
    [
        ("zimage", "bfloat16", "bfloat16", "bfloat16"),
        ("zimage", "scaled fp8", "fp8", "float32"),
        ("flux2-klein", "bfloat16", "scaled fp8", "bfloat16"),
        ("flux2-klein", "fp8", "float32", "float32"),
        ("qwenimage", "fp8", "scaled fp8", "bfloat16"),
        ("qwenimage", "float32", "comfy_quant", "float32"),
        ("qwenimage-edit", "bfloat16", "bfloat16", "bfloat16"),
        ("wan22-t2v", "float16", "float32", "bfloat16"),
        ("wan22-t2v", "comfy_quant", "scaled fp8", "float32"),
        ("wan22-i2v", "float32", "float32", "float32"),
    ],
)
def test_what_is_loaded_is_what_the_folder_holds(
    family: str, precision: str, encoder: str, dtype: str, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    files, twin = write(family, build(family), tmp_path, precision, encoder)
    kinds = {"text": TEXT_ENCODER, "vae": VAE}
    assert {name: kind_of_part(path) for name, path in files.items()} == {
        name: kinds.get(name, DIFFUSION_MODEL) for name in files
    }
    loaded = loader.load(resolve(files, dtype))
    expected = DiffusionPipeline.from_pretrained(twin, torch_dtype=getattr(torch, dtype))
    assert_same(loaded.pipeline, expected)
    made = picture(loaded.pipeline)
    assert made.std() > 0
    assert np.array_equal(made, picture(expected))


@pytest.mark.parametrize("precision", ["fp8", "fp8 e5m2"])
def test_fp8_stays_as_its_file_has_it(precision: str, tmp_path: Path) -> None:
    """Kept in fp8 and cast layer by layer, the weights are the same as those that are cast while loading."""
    files, _ = write("zimage", build("zimage"), tmp_path, precision)
    cast = loader.load(resolve(files))
    kept = loader.load(resolve(files, quantization="layerwise-fp8"))
    kind = torch.float8_e5m2 if "e5m2" in precision else torch.float8_e4m3fn
    held = {key: value for key, value in kept.pipeline.transformer.state_dict().items() if value.dtype == kind}
    assert sum(key.endswith(".weight") for key in held) >= 20
    widened = cast.pipeline.transformer.state_dict()
    assert all(torch.equal(value.float(), widened[key]) for key, value in held.items())
    assert {value.dtype for value in kept.pipeline.transformer.state_dict().values()} == {kind, torch.float32}
    assert np.array_equal(picture(kept.pipeline), picture(cast.pipeline))
    assert f"(fp8 {'e5m2' if 'e5m2' in precision else 'e4m3'}, kept" in kept.facts["parts"]["transformer"]
    assert "fp8 in" in kept.facts["quantization"]["transformer"]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write("wan22-t2v", build("wan22-t2v"), tmp_path_factory.mktemp("wan"))[0]


@pytest.fixture(scope="module")
def zimage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write("zimage", build("zimage"), tmp_path_factory.mktemp("zimage"))[0]


def test_two_experts_are_checked_again_before_they_load(wan: dict[str, Path], zimage: dict[str, Path]) -> None:
    """As the cache does, whatever the files are called."""
    for files in (wan, zimage):
        key = resolve(files)
        with CACHE.use(key) as loaded:
            assert loaded.key == key
    CACHE.clear()


def test_wrong_pairings_are_refused_by_name(wan: dict[str, Path], zimage: dict[str, Path]) -> None:
    high, low = (str(wan[f"model_{level}_noise"]) for level in ("high", "low"))
    for files, changes, said in (
        (wan, {"text_encoders": [str(zimage["text"])]}, r"no text encoder of Wan.*umt5_xxl"),
        (wan, {"vae": str(zimage["vae"])}, r"does not fit.*wan_2\.1_vae"),
        (wan, {"second_expert": ""}, r"one of the two experts.*low_noise"),
        (wan, {"model": low}, r"expert for little noise.*high_noise"),
        (wan, {"second_expert": high}, r"expert for much noise.*low_noise"),
        (zimage, {"second_expert": low}, "one diffusion model"),
        (zimage, {"text_encoders": [str(wan["text"])]}, r"no text encoder of Z-Image.*qwen_3_4b"),
        (zimage, {"text_encoders": [str(zimage["text"])] * 2}, "is that too"),
        (zimage, {"text_encoders": []}, r"Z-Image needs Qwen3-4B"),
        (zimage, {"vae": ""}, r"ae\.safetensors"),
        (zimage, {"vae": str(wan["vae"])}, r"does not fit.*ae\.safetensors"),
    ):
        with pytest.raises(InputError, match=said) as error:
            resolve(files, **changes)
        assert "\n" not in str(error.value)


def test_a_quantization_that_is_not_read_is_refused_by_name(zimage: dict[str, Path], tmp_path: Path) -> None:
    whole = load_file(zimage["text"])
    layer = "model.layers.0.mlp.up_proj"
    for said, match in ((b'{"format": "nvfp4"}', "comfy_quant 'nvfp4'"), (b"{", "cannot be read")):
        mark = {f"{layer}.comfy_quant": torch.tensor(list(said), dtype=torch.uint8)}
        save_file({**whole, **mark}, tmp_path / "text.safetensors")
        with pytest.raises(ModelFileError, match=match) as error:
            resolve(zimage, text_encoders=[str(tmp_path / "text.safetensors")])
        assert "\n" not in str(error.value)
    fp8 = {f"{layer}.weight": whole[f"{layer}.weight"].to(torch.float8_e4m3fn)}
    mark = {f"{layer}.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)}
    save_file({**whole, **fp8, **mark}, tmp_path / "text.safetensors")
    with pytest.raises(ModelFileError, match=rf"scale of '{layer}.weight' is missing"):
        resolve(zimage, text_encoders=[str(tmp_path / "text.safetensors")])


def test_pictures_to_edit_are_prepared_as_published(tmp_path: Path) -> None:
    """What Qwen2.5-VL publishes for its encoder of pictures, where no folder beside the model says otherwise."""
    from fastdiffusers.pipelines.loading.parts import qwenimage

    tokenizer = build("qwenimage-edit").tokenizer
    family = next(family for family in qwenimage.FAMILIES if family.title == "Qwen-Image-Edit")
    assert family.more is not None
    pictures = family.more({"tokenizer": tokenizer}, tmp_path)["processor"].image_processor
    assert (pictures.patch_size, pictures.temporal_patch_size, pictures.merge_size) == (14, 2, 2)
    np.testing.assert_allclose(pictures.image_mean, [0.48145466, 0.4578275, 0.40821073])
    np.testing.assert_allclose(pictures.image_std, [0.26862954, 0.26130258, 0.27577711])
    assert (pictures.size["shortest_edge"], pictures.size["longest_edge"]) == (56 * 56, 12845056)


def test_the_tokenizer_in_the_file_of_umt5_gives_its_tokens(wan: dict[str, Path], tmp_path: Path) -> None:
    """ComfyUI's files of UMT5 hold a SentencePiece model, whose own library is the reference."""
    import io

    import sentencepiece

    from fastdiffusers.pipelines.loading.parts.encoders import UMT5_TOKENIZER
    from fastdiffusers.pipelines.loading.parts.read import read_tokenizer

    words = ["a red fox runs over the snow", "blue birds sing, and the fox listens", "ice on the lake: 12 swans"]
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=proto,
        vocab_size=36,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    held = torch.tensor(list(proto.getvalue()), dtype=torch.uint8)
    save_file({**load_file(wan["text"]), "spiece_model": held}, tmp_path / "text.safetensors")
    assert kind_of_part(tmp_path / "text.safetensors") == TEXT_ENCODER
    resolve(wan, text_encoders=[str(tmp_path / "text.safetensors")])
    nowhere = tmp_path / "model.safetensors"
    made = read_tokenizer("tokenizer", UMT5_TOKENIZER, nowhere, "", {"text_encoder": tmp_path / "text.safetensors"})
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue(), add_eos=True)
    for text in ("a red fox", "The  fox, 12 birds!", "snow\u00e9 on ice", "", " lake "):
        padded = made(text, padding="max_length", max_length=64, truncation=True)
        tokens = reference.encode(text)
        assert padded.input_ids == tokens + [0] * (64 - len(tokens)), text
        assert sum(padded.attention_mask) == len(tokens)
    with pytest.raises(ModelFileError, match=r"neither .* nor in the file of the text encoder"):
        read_tokenizer("tokenizer", UMT5_TOKENIZER, nowhere, "", {"text_encoder": wan["text"]})
